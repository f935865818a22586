"""int8 and float16 beside float32: what the graphs are made of, and quality by hand from ONNX Runtime's outputs."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoints import LABELS, classifier, pretrained
from made_bundles import make_bundle
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ehm.config import CalibrationConfig, DataConfig
from ehm.deploy import bench
from ehm.deploy.bench import bench_export
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export import export
from ehm.deploy.export.precision import quality as numbers
from ehm.deploy.export.precision.calibration import choose_images
from ehm.deploy.export.precision.int8 import write_int8
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.predict.registry import create_handler
from ehm.deploy.predict.runtime import open_session
from ehm.errors import ConfigError, DataError, EhmError, ExportError

BOTH = ["int8=true", "float16=true", "calibration.images=4"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eight pictures of each class, in folders of their own."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(2)
    for label in LABELS:
        (folder / label).mkdir()
        for number in range(8):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """A classifier that was fine-tuned on all but a quarter of the pictures."""
    data = DataConfig(source=str(images))
    return classifier(tmp_path_factory.mktemp("run"), (32, 32), data=data, folds=4)


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory):
    return Bundle.open(export(run, head="multi", overrides=BOTH, out=tmp_path_factory.mktemp("out") / "bundle"))


def outputs(file, inputs):
    """Features and logits by plain ONNX Runtime."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(["features", "logits"], {"images": inputs})


def cosines(a, b):
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_int8_is_standard_operators_around_linear_layers_with_a_scale_for_each_feature(bundle):
    record = bundle.manifest.models["int8"]
    layers = 4  # of the one block: qkv, proj, fc1, fc2
    assert record.operators["QuantizeLinear"] == layers
    assert record.operators["DequantizeLinear"] == 2 * layers
    assert record.domains == {}
    graph = onnx.load(bundle.model("int8")).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in arrays]
    assert [arrays[node.input[0]].dtype for node in weights] == [np.int8] * layers
    assert [len(arrays[node.input[1]]) for node in weights] == [96, 32, 128, 32]
    assert all(
        np.abs(arrays[node.input[0]]).max(axis=0).tolist() == [64] * len(arrays[node.input[1]]) for node in weights
    )


def test_float16_is_half_of_float32_with_the_same_inputs_and_outputs(bundle):
    graphs = {precision: onnx.load(bundle.model(precision)).graph for precision in ("float32", "float16")}
    assert graphs["float16"].input == graphs["float32"].input
    assert list(graphs["float16"].output) == list(graphs["float32"].output)
    assert {t.data_type for t in graphs["float16"].initializer} == {TensorProto.FLOAT16, TensorProto.INT64}


def test_no_sum_of_two_int8_products_leaves_16_bits(bundle):
    """VPMADDUBSW, which processors without VNNI have, adds two products of uint8 and int8 and clips at 32,767."""
    graph = onnx.load(bundle.model("int8")).graph
    matrices = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name.endswith("/int8")]
    assert len(matrices) == 4
    for matrix in matrices:
        largest = np.abs(matrix.astype(np.int64)).max(axis=0)
        assert (255 * 2 * largest <= np.iinfo(np.int16).max).all()  # whichever two rows meet


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_quality_is_what_onnx_runtime_gives_on_the_pictures_that_training_held_out(bundle, run, images, precision):
    quality = bundle.manifest.models[precision].quality
    calibration, measured = choose_images(CalibrationConfig(images=4), bundle.manifest.source)
    source, held_out = measured.subset.source, sorted(measured.subset.selected)
    assert not set(held_out) & set(calibration.subset.selected)
    predictor = Predictor(bundle)
    inputs = np.stack([predictor.prepare(Image.open(source.name(i))) for i in held_out])
    truth = np.array([LABELS.index(source.name(i).split("/")[-2]) for i in held_out])
    before, after = outputs(bundle.model(), inputs), outputs(bundle.model(precision), inputs)
    assert quality.images == len(held_out) == 6
    assert quality.cosine == pytest.approx(cosines(before[0], after[0]).mean(), abs=1e-6)
    assert quality.cosine_min == pytest.approx(cosines(before[0], after[0]).min(), abs=1e-6)
    assert 0.99 < quality.cosine < 1
    assert quality.default_cosine == pytest.approx(cosines(before[0], after[0]).mean(), abs=1e-6)
    assert quality.default_cosine_min == pytest.approx(cosines(before[0], after[0]).min(), abs=1e-6)
    assert quality.default_agreement == quality.agreement
    assert quality.agreement == (before[1].argmax(1) == after[1].argmax(1)).mean()
    assert quality.accuracy == (after[1].argmax(1) == truth).mean()
    assert quality.accuracy_float32 == (before[1].argmax(1) == truth).mean()


def test_accuracy_is_that_of_each_network(tmp_path):
    float32 = {"logits": np.array([[2, 1], [2, 1], [2, 1.9], [1, 2]], np.float32)}
    other = {"logits": np.array([[2, 1], [2, 1], [1.9, 2], [1, 2]], np.float32)}
    truth = np.array([0, 1, 0, 1])
    handler = create_handler(make_bundle(tmp_path / "bundle").manifest)
    accuracies = []
    for outputs in (float32, other):
        tally = numbers._Tally(handler, "--int8", "four")
        tally.add({"logits": float32["logits"][:3]}, {"logits": outputs["logits"][:3]})
        tally.add({"logits": float32["logits"][3:]}, {"logits": outputs["logits"][3:]})
        accuracies.append(tally.measure_accuracy(truth))
    assert accuracies == [0.75, 0.5]
    assert tally.summarise("four").agreement == 0.75
    other["logits"][0] = np.nan
    with pytest.raises(ExportError, match="--int8: logits are not finite on images of four"):
        tally.add(float32, other)


def test_the_same_checkpoint_gives_the_same_bytes(bundle, run, tmp_path):
    again = Bundle.open(export(run, head="multi", overrides=BOTH, out=tmp_path / "bundle"))
    assert again.manifest.files == bundle.manifest.files
    assert again.manifest.models == bundle.manifest.models


def test_features_that_are_far_larger_than_others_cost_nothing(bundle, tmp_path):
    """The same function with a few features of each norm a hundred times as large and their weights as much smaller."""
    model = onnx.load(bundle.model())
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    factor = np.ones(32, np.float32)
    factor[[3, 20]] = 100
    for norm, layer in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
        for name, by in (
            (f"{norm}.weight", factor),
            (f"{norm}.bias", factor),
            (f"{layer}.weight", 1 / factor[:, None]),
        ):
            tensor = tensors[f"blocks.0.{name}"]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * by, tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    inputs = np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32)
    write_int8(tmp_path / "model.onnx", tmp_path / "model.int8.onnx", [inputs[:8], inputs[8:]])
    before, after = outputs(tmp_path / "model.onnx", inputs), outputs(tmp_path / "model.int8.onnx", inputs)
    assert cosines(before[0], after[0]).min() > 0.998
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.int8.onnx", "model.onnx"]


def test_preprocessing_in_the_graph_stays_in_float32(run, images, tmp_path):
    made = Bundle.open(export(run, overrides=[*BOTH, "preprocessing=true"], out=tmp_path / "bundle"))
    graph = onnx.load(made.model("float16")).graph
    (last,) = (node for node in graph.node if node.name == "pixels/normalised")
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert [kinds[name] for name in last.input if name in kinds] == [TensorProto.FLOAT]
    picture = Image.open(images / "cat" / "0.png")
    rows = {precision: Predictor(made, "cpu", precision) for precision in made.manifest.models}
    found = {name: each.run(each.prepare(picture)[None])["logits"][0] for name, each in rows.items()}
    assert np.allclose(found["float16"], found["float32"], atol=0.01)
    assert np.allclose(found["int8"], found["float32"], atol=0.1)


def test_a_graph_for_onnx_runtime_keeps_its_fused_attention(run, tmp_path):
    made = Bundle.open(export(run, overrides=[*BOTH, "target=onnxruntime"], out=tmp_path / "bundle"))
    assert set(made.manifest.models) == {"float32", "int8", "float16"}
    assert made.manifest.models["int8"].domains == made.manifest.models["float32"].domains != {}


def test_images_can_be_named_and_never_serve_twice(run, images, tmp_path):
    source = Bundle.open(export(pretrained(tmp_path, (32, 32)), out=tmp_path / "b")).manifest.source
    config = CalibrationConfig(source=str(images), images=20, measure_images=3)
    calibration, measured = choose_images(config, source)
    used, others = set(calibration.subset.selected.tolist()), set(measured.subset.selected.tolist())
    assert used | others == set(range(24))
    assert not used & others
    taken = [number for indices, _ in measured.iterate_batches(np.asarray, 2, "") for number in indices]
    assert len(taken) == 3
    assert taken == [number for indices, _ in measured.iterate_batches(np.asarray, 2, "") for number in indices]
    assert set(taken) < others
    (tmp_path / "other").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "other" / "a.png")
    _, measured = choose_images(config.model_copy(update={"measure": str(tmp_path / "other")}), source)
    assert (measured.origin, len(measured.subset)) == (str(tmp_path / "other"), 1)


def test_to_measure_on_the_source_that_calibrates_is_to_measure_on_the_rest(run, bundle, images, tmp_path):
    pretraining = Bundle.open(export(pretrained(tmp_path, (32, 32)), out=tmp_path / "b")).manifest.source
    again = str(images / "cat" / "..")
    for settings, source in (
        ({"source": str(images), "images": 10, "measure": again}, pretraining),
        ({"images": 10, "measure": again}, bundle.manifest.source),  # fine-tuned on it, all but what it held out
    ):
        calibration, measured = choose_images(CalibrationConfig(**settings), source)
        used, others = (
            {int(number) for indices, _ in part.iterate_batches(np.asarray, 4, "") for number in indices}
            for part in (calibration, measured)
        )
        assert (len(used), bool(others), used & others) == (10, True, set())
    with pytest.raises(DataError, match="images 24: leaves none of the 24 images"):
        choose_images(CalibrationConfig(source=str(images), images=24, measure=str(images)), pretraining)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            ["calibration.images=24", "calibration.source={images}"],
            DataError,
            "images 24: leaves none of the 24 images",
        ),
        (["calibration.source=/none"], DataError, "calibration.source /none: there is no such folder"),
        (["calibration.measure=/none"], DataError, "calibration.measure /none: there is no such folder"),
        (["target=ascend"], ConfigError, "target ascend: its converter knows no quantised operators"),
    ],
)
def test_wrong_images_are_one_sentence_and_leave_nothing(run, images, tmp_path, settings, error, message):
    settings = [setting.format(images=images) for setting in settings]
    with pytest.raises(error, match=message):
        export(run, overrides=["int8=true", *settings], out=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_bare_file_asks_for_images(run, tmp_path):
    shutil.copy(run / "model.safetensors", tmp_path)
    settings = ["float16=true", "model.image_size=32", "model.heads=2"]
    with pytest.raises(ConfigError, match=r"--set calibration\.source=FOLDER names images"):
        export(tmp_path / "model.safetensors", overrides=settings, out=tmp_path / "bundle")


def test_numbers_that_change_too_much_are_an_error_and_leave_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(numbers, "FLOOR", 1.1)
    with pytest.raises(ExportError, match=r"--int8: the mean cosine to float32 is .* at least 1.1 is asked for"):
        export(run, overrides=["int8=true", "calibration.images=4"], out=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_default_session_that_says_something_else_is_measured_and_refused(run, tmp_path, monkeypatch):
    def wrong(model):
        names = ["features", "logits"]
        rng = np.random.default_rng(0)
        return lambda inputs, wanted: {
            name: rng.standard_normal((len(inputs), 32 if name == "features" else 3)).astype(np.float32)
            for name in names
            if name in wanted
        }

    monkeypatch.setattr(numbers, "_open_default_session", wrong)
    with pytest.raises(
        ExportError, match=r"--int8: the mean cosine .* in a session with ONNX Runtime's default settings"
    ):
        export(run, head="multi", overrides=["int8=true", "calibration.images=4"], out=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_norm_that_something_else_takes_too_stays_as_it_is(tmp_path):
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("LayerNormalization", ["images", "scale", "bias"], ["norm"], axis=-1),
        helper.make_node("MatMul", ["norm", "weight"], ["product"]),
        helper.make_node("Add", ["norm", "product"], ["sum"]),
    ]
    constants = {"scale": [9, 1, 1, 1], "bias": [0, 0, 0, 0], "weight": rng.standard_normal((4, 4)) / 100}
    graph = helper.make_graph(
        nodes,
        "norm",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    images = rng.standard_normal((8, 4)).astype(np.float32)
    write_int8(tmp_path / "model.onnx", tmp_path / "model.int8.onnx", [images])
    one, other = (
        open_session(tmp_path / name).run(None, {"images": images})[0] for name in ("model.onnx", "model.int8.onnx")
    )
    assert np.allclose(one, other, atol=0.01)


def wide_sum(path):
    """(B, 64) -> 64 times their mean: the largest int8 weights and uint8 inputs that there can be."""
    node = helper.make_node("MatMul", ["images", "ones"], ["sum"])
    images, result = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name, width in (("images", 64), ("sum", 8))
    )
    graph = helper.make_graph([node], "sum", [images], [result], [numpy_helper.from_array(ONES, "ones")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


ONES = np.ones((64, 8), np.float32)
RUN = """
import sys, numpy
from pathlib import Path
from ehm.deploy.predict.runtime import open_session
print(open_session(Path(sys.argv[1])).run(None, {"images": numpy.ones((2, 64), "float32")})[0].min())
"""


def test_int8_is_right_in_a_session_without_settings(tmp_path):
    """The largest possible inputs and weights give the right sum; eight-bit weights give 32 here without VNNI."""
    wide_sum(tmp_path / "model.onnx")
    write_int8(tmp_path / "model.onnx", tmp_path / "model.int8.onnx", [ONES.T])
    session = onnxruntime.InferenceSession(tmp_path / "model.int8.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"images": ONES.T})[0], 64, rtol=0.01)


def test_sessions_ask_for_sums_that_are_not_clipped(tmp_path, monkeypatch):
    """Bundles of earlier versions have eight-bit weights, whose products without VNNI are clipped in 16 bits."""
    wide_sum(tmp_path / "model.onnx")
    asked = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda m, s, **k: (asked.append(s), real(m, s, **k))[1])
    open_session(tmp_path / "model.onnx")
    assert asked[0].get_session_config_entry("session.x64quantprecision") == "1"


@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="takes qemu-user")
def test_int8_says_the_same_on_a_processor_without_vnni(tmp_path):
    wide_sum(tmp_path / "model.onnx")
    write_int8(tmp_path / "model.onnx", tmp_path / "model.int8.onnx", [ONES.T])
    command = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-c", RUN, tmp_path / "model.int8.onnx"]
    environment = os.environ | {"OPENBLAS_CORETYPE": "Haswell"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(64, rel=0.01)


def test_a_network_without_linear_layers_has_nothing_to_quantise(tmp_path):
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3])
    node = helper.make_node("Relu", ["images"], ["features"])
    output = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph([node], "g", [value], [output])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "model.onnx"
    )
    with pytest.raises(ExportError, match="no linear layer"):
        write_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx", [])


def test_the_bench_times_every_network_beside_torch(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.compile", lambda module, **_: module)  # which takes a compiler and half a minute
    timings = bench_export(bundle.path, batch=[2], device="cpu", rounds=3, json=True, out=tmp_path)
    torch_ways = ["torch float32", "torch float32 compiled", "torch bfloat16"]
    assert [timing.name for timing in timings] == [*torch_ways, "CPU float32", "CPU int8", "CPU float16"]
    assert timings[0].ratio == timings[0].ratio_low == 1
    assert all(timing.cosine > 0.99 and timing.p95_ms >= timing.median_ms > 0 for timing in timings)
    assert timings[0].images_per_second == pytest.approx(2000 / timings[0].median_ms)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in printed["timings"]] == [timing.name for timing in timings]


def test_the_bench_says_why_torch_is_left_out(bundle, monkeypatch, capsys):
    def gone(manifest, output, threads):
        raise EhmError(f"{manifest.source.checkpoint} has changed since it was exported")

    monkeypatch.setattr("ehm.deploy.bench_baselines.load_torch_baselines", gone)
    timings = bench_export(bundle.path, batch=[1], rounds=1)
    assert timings[0].name.endswith("float32")
    out, err = capsys.readouterr()
    assert "torch is left out:" in err
    assert "has changed since" in err
    assert "ratio (quartiles)" in out
    with pytest.raises(ConfigError, match="--batch 0: expected at least 1"):
        bench_export(bundle.path, batch=[0])


def test_the_bench_measures_time_against_the_baseline_of_the_same_round(bundle):
    clock = iter(np.cumsum([0, 8, 0, 2, 0, 4, 0, 4]))  # seconds: rounds of 8 and 2, then 4 and 4
    reference, ways = bench._load_exported(bundle, ["cpu"], 1)
    inputs = bench._prepare_inputs(reference, bench._draw_pictures(2, reference.manifest.preprocessing))
    _, timing = bench._time_rounds(reference, ways[:2], inputs, 2, lambda: float(next(clock)), lambda: None)
    assert (timing.batch, timing.median_ms, timing.ratio) == (2, 3000, 2.5)
