"""Bundles and prediction without any framework: a hand-made graph, and files altered on purpose."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ehm.deploy.bundle import manifest as manifests
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Manifest
from ehm.deploy.bundle.staging import stage_bundle
from ehm.deploy.predict.command import main, predict
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.predict.runtime import PROVIDERS, open_session
from ehm.errors import BackendError, ConfigError, DataError, ExportError
from ehm.probabilities import compute_softmax
from ehm.processors import count_physical_cores

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def manifest(task="features", labels=(), **changes):
    output = "logits" if labels else "features"
    values = {
        "format": 2,
        "task": task,
        "models": {"float32": {"file": "model.onnx", "opset": 17, "operators": {"ReduceMean": 1}}},
        "input": {"name": "images", "dtype": "float32", "layout": "NCHW", "shape": ["batch", 3, 28, 42]},
        "outputs": [{"name": output, "dtype": "float32", "layout": "NC", "shape": ["batch", 3]}],
        "preprocessing": {"image_size": [28, 42], "cover": [32, 48], "mean": MEAN, "std": STD},
        "labels": labels,
        "source": {"checkpoint": "run", "kind": "pretrain", "sha256": "0" * 64},
        "versions": {"ehm": "0"},
        "parity": {"reference": "", "runtime": "", "tolerance": 1e-4, "max_abs": 0, "cosine": 1, "cases": []},
    }
    return Manifest.model_validate({**values, **changes})


def channel_means(path, output="features"):
    """images (batch, 3, 28, 42) -> the mean of each channel (batch, 3)."""
    node = helper.make_node("ReduceMean", ["images"], [output], axes=[2, 3], keepdims=0)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 28, 42])
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph([node], "means", [images], [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def bundle(tmp_path):
    with stage_bundle(tmp_path / "bundle") as folder:
        channel_means(folder / "model.onnx")
        Bundle.seal(folder, manifest())
    return tmp_path / "bundle"


@pytest.fixture
def classifier(tmp_path):
    with stage_bundle(tmp_path / "classifier") as folder:
        channel_means(folder / "model.onnx", "logits")
        Bundle.seal(folder, manifest("classification", labels=["red", "green", "blue"]))
    return tmp_path / "classifier"


def plain(path, colour, size=(90, 70)):
    Image.new("RGB", size, colour).save(path)
    return path


def test_what_was_sealed_opens(bundle):
    opened = Bundle.open(bundle)
    assert opened.model() == bundle / "model.onnx"
    assert set(opened.manifest.files) == {"model.onnx"}
    assert opened.manifest.files["model.onnx"].bytes == opened.model().stat().st_size
    assert {path.name for path in bundle.iterdir()} == {"model.onnx", "manifest.json"}
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("place", [0, 40, -1])
def test_one_altered_byte_is_found(bundle, place):
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[place] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.onnx: does not match the SHA-256"):
        predict(bundle, [])


def rewrite(bundle, **changes):
    path = bundle / "manifest.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        place = values
        for parent in parents:
            place = place[int(parent) if parent.isdecimal() else parent]
        place[leaf] = value
    path.write_text(json.dumps(values), encoding="utf-8")


def test_a_missing_file_is_named(bundle):
    (bundle / "model.onnx").unlink()
    with pytest.raises(ExportError, match=r"model\.onnx: missing; the bundle is incomplete"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["model.onnx.data", "w", "weights" * 30])
def test_weights_beside_the_network_must_be_among_the_files(name, tmp_path):
    bundle = tmp_path / "bundle"
    with stage_bundle(bundle) as folder:
        channel_means(folder / "model.onnx")
        model = onnx.load(folder / "model.onnx")
        model.graph.initializer.append(numpy_helper.from_array(np.ones(99, np.float32), "ones"))
        onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location=name, size_threshold=9)
        Bundle.seal(folder, manifest())
    opened = Bundle.open(bundle)
    assert set(opened.manifest.files) == {"model.onnx", name}
    (bundle / "notes.data").touch()  # which no network reads
    Bundle.open(bundle)
    rewrite(bundle, files={"model.onnx": opened.manifest.files["model.onnx"].model_dump()})
    with pytest.raises(ExportError, match=f"model.onnx reads '{name}', which is not among its files"):
        Bundle.open(bundle)


def test_the_version_covers_weights_beside_the_network(tmp_path):
    """Above 2 GB the graph is the same file whatever the weights are."""
    found = {}
    for name, value in {"one": 1, "same": 1, "other": 2}.items():
        with stage_bundle(tmp_path / name) as folder:
            channel_means(folder / "model.onnx")
            model = onnx.load(folder / "model.onnx")
            weights = np.full(99, value, np.float32)
            model.graph.initializer.append(numpy_helper.from_array(weights, "weights"))
            onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="w", size_threshold=9)
            Bundle.seal(folder, manifest())
        found[name] = Bundle.open(tmp_path / name)
    graphs = {opened.manifest.files["model.onnx"].sha256 for opened in found.values()}
    assert len(graphs) == 1
    assert found["one"].version() == found["same"].version() != found["other"].version()
    assert len(found["one"].version()) == 12


def test_the_version_of_a_network_in_one_file_is_the_beginning_of_its_hash(bundle):
    opened = Bundle.open(bundle)
    assert opened.version() == hashlib.sha256(opened.model().read_bytes()).hexdigest()[:12]


def carded(place):
    with stage_bundle(place) as folder:
        channel_means(folder / "model.onnx")
        (folder / "README.md").write_text("# Model\n", encoding="utf-8")
        Bundle.seal(folder, manifest())
    return place


@pytest.mark.parametrize("change", ["edited", "missing"])
def test_a_card_is_hashed_and_may_be_edited_or_left_out(change, tmp_path):
    bundle = carded(tmp_path / "bundle")
    assert "README.md" in Bundle.open(bundle).manifest.files
    if change == "edited":
        (bundle / "README.md").write_text("# My model\n", encoding="utf-8")
    else:
        (bundle / "README.md").unlink()
    assert len(predict(bundle, plain(tmp_path / "a.png", "red"))) == 1


def test_an_edited_card_is_not_overwritten_and_a_card_as_it_was_is(tmp_path):
    carded(carded(tmp_path / "bundle"))
    (tmp_path / "bundle/README.md").write_text("# My model\n", encoding="utf-8")
    with pytest.raises(ExportError, match=r"its README\.md was edited, and would be lost; choose another --out"):
        carded(tmp_path / "bundle")
    assert (tmp_path / "bundle/README.md").read_text(encoding="utf-8") == "# My model\n"


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(ExportError, match=r"not a bundle: it has no manifest\.json"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{}", "{", "\xff"])
def test_a_damaged_manifest_is_one_sentence(bundle, text):
    (bundle / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ExportError, match="not a bundle's manifest"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "bundle format 3; this version of ehm reads 2"),
        ({"format": 1}, r"models\.float32"),  # without what that format had
        ({"preprocessing__interpolation": "nearest"}, r"preprocessing\.interpolation"),
        ({"preprocessing__mean": [0.5]}, r"preprocessing: mean has 1 values for 3 channels"),
        ({"task": "classification"}, "a classification without the output logits"),
        ({"outputs__0__name": "logits", "task": "classification"}, "0 labels for an output of 3"),
        ({"models": {}}, "models has no float32"),
        ({"outputs": []}, "outputs is empty"),
        ({"models__float32__file": "other.onnx"}, "'other.onnx' is not among its files"),
        ({"files": {"../model.onnx": {"bytes": 1, "sha256": ""}}}, "may not lie outside the bundle"),
    ],
)
def test_a_wrong_manifest_is_named(bundle, changes, message):
    rewrite(bundle, **changes)
    with pytest.raises(ExportError, match=message):
        Bundle.open(bundle)


def test_keys_of_later_versions_are_ignored(bundle):
    rewrite(bundle, novelty=1, models__float32__novelty={"a": 1})
    assert Bundle.open(bundle).manifest.task == "features"


def test_images_are_resized_as_the_manifest_says(bundle):
    rewrite(bundle, preprocessing__cover=[30, 44])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 88, 3), dtype=np.uint8))
    pixels = np.asarray(image.resize((44, 30), Image.Resampling.BICUBIC).crop((1, 1, 43, 29))) / 255
    found = Predictor(bundle).prepare(image)
    np.testing.assert_allclose(found, ((pixels - MEAN) / STD).transpose(2, 0, 1), atol=1e-5)


def test_a_resize_that_this_version_does_not_know_is_refused(bundle):
    rewrite(bundle, preprocessing__resize="tile")
    with pytest.raises(ExportError, match=r"preprocessing\.resize: Input should be 'cover', 'squash' or 'fit'"):
        Predictor(bundle)


def test_a_failed_export_leaves_nothing(tmp_path):
    def fail():
        with stage_bundle(tmp_path / "out") as folder:
            (folder / "model.onnx").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_earlier_bundle(bundle):
    def fail():
        with stage_bundle(bundle):
            raise ExportError("parity")

    with pytest.raises(ExportError, match="parity"):
        fail()
    assert Bundle.open(bundle).manifest.task == "features"
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_an_earlier_bundle_is_replaced_and_leftovers_of_a_killed_export_go(bundle):
    (bundle.parent / ".bundle-partial").mkdir()
    (bundle.parent / ".bundle-partial" / "model.onnx").write_bytes(b"half")
    with stage_bundle(bundle) as folder:
        (folder / "new").touch()
    assert [path.name for path in bundle.iterdir()] == ["new"]
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_bundle_that_a_killed_export_had_set_aside_comes_back(bundle):
    """Killed between its two renames; the next export fails."""
    bundle.rename(bundle.parent / ".bundle-replaced")
    with pytest.raises(ExportError, match="parity"), stage_bundle(bundle):
        raise ExportError("parity")
    assert Bundle.open(bundle).manifest.task == "features"
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("kind", ["file", "folder", "bundle with a note", "link"])
def test_what_is_not_a_bundle_is_never_overwritten(tmp_path, bundle, kind):
    out = tmp_path / "mine"
    if kind == "file":
        out.touch()
    elif kind == "link":
        out.symlink_to(bundle)
    elif kind == "folder":
        out.mkdir()
        (out / "thesis.txt").touch()
    else:
        out = bundle
        (out / "thesis.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ExportError, match="choose another --out"), stage_bundle(out):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_features_are_those_of_the_normalised_picture(bundle, tmp_path):
    """A plain picture stays plain through resize and crop, so its channel means are (colour / 255 - mean) / std."""
    files = [plain(tmp_path / "a.png", (255, 0, 128)), plain(tmp_path / "b.jpg", (10, 200, 30), (300, 41))]
    found = predict(bundle, files)
    expected = (np.array([[255, 0, 128], [10, 200, 30]]) / 255 - MEAN) / STD
    assert np.abs(found[0].features - expected[0]).max() < 1e-5
    assert np.abs(found[1].features - expected[1]).max() < 0.02  # JPEG is off by a unit or two of 255
    assert [prediction.image for prediction in found] == [str(file) for file in files]


def test_classes_come_sorted_with_probabilities(classifier, tmp_path):
    (found,) = predict(classifier, plain(tmp_path / "blue.png", (0, 0, 255)), top=2)
    logits = (np.array([0, 0, 1]) - MEAN) / STD
    shares = np.exp(logits) / np.exp(logits).sum()
    assert [name for name, _ in found.classes] == ["blue", "green"]
    assert np.allclose([share for _, share in found.classes], shares[[2, 1]], atol=1e-6)
    (found,) = predict(classifier, tmp_path / "blue.png", top=9)
    assert len(found.classes) == 3


def test_softmax_neither_overflows_nor_loses_small_shares():
    shares = compute_softmax(np.array([[1e4, 1e4 - 20, -1e4], [0, 0, 0]], np.float32))
    assert shares.dtype == np.float64
    assert np.allclose(shares[0], [1 / (1 + np.exp(-20)), np.exp(-20) / (1 + np.exp(-20)), 0], rtol=1e-12)
    assert np.allclose(shares[1], 1 / 3)


def test_folders_are_walked_in_order_and_batches_do_not_mix(classifier, tmp_path):
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    for index in range(20):
        plain(folder / ("b" if index >= 10 else "") / f"{index:02d}.PNG", colours[index % 3])
    (folder / "notes.txt").touch()
    (folder / "._05.png").touch()
    found = predict(classifier, folder, top=1)
    assert [Path(prediction.image).stem for prediction in found] == [f"{index:02d}" for index in range(20)]
    assert [prediction.classes[0][0] for prediction in found] == [["red", "green", "blue"][i % 3] for i in range(20)]


def test_an_empty_folder_is_one_sentence(classifier, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no images below this folder"):
        predict(classifier, tmp_path / "empty")
    with pytest.raises(ConfigError, match="--top 0: expected at least 1"):
        predict(classifier, plain(tmp_path / "a.png", "red"), top=0)


def test_a_broken_image_is_reported_and_the_others_go_on(classifier, tmp_path, capsys):
    good, bad, gone = plain(tmp_path / "good.png", "red"), tmp_path / "bad.png", tmp_path / "gone.png"
    bad.write_bytes(good.read_bytes()[:60])
    assert main([classifier, bad, good, gone], top=1) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == str(good)
    assert out.split() == [str(good), out.split()[1], "red"]
    assert f"{bad}: " in err
    assert f"{gone}: No such file or directory" in err
    assert "2 of 3 images could not be read" in err


def test_json_is_one_object_a_line_and_nothing_else(classifier, tmp_path, capsys):
    good, gone = plain(tmp_path / "good.png", "red"), tmp_path / "gone.png"
    assert main([classifier, good, gone], json=True, top=1) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["image"] == str(good)
    assert lines[0]["classes"][0]["label"] == "red"
    assert lines[1] == {"image": str(gone), "error": "No such file or directory"}


def test_out_gets_features_and_their_images(bundle, tmp_path, capsys):
    files = [plain(tmp_path / "a.png", "red"), tmp_path / "gone.png", plain(tmp_path / "b.png", "lime")]
    assert main([bundle, *files], out=tmp_path / "out") == 1
    features = np.load(tmp_path / "out" / "features.npy")
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [Path(line["image"]).name for line in lines if "error" not in line] == ["a.png", "b.png"]
    assert np.allclose(features, (np.array([[1, 0, 0], [0, 1, 0]]) - MEAN) / STD, atol=1e-5)
    assert "3 features, norm" in capsys.readouterr().out


def test_results_of_an_earlier_call_do_not_stay_beside_new_ones(bundle, classifier, tmp_path):
    out, image = tmp_path / "out", plain(tmp_path / "a.png", "red")
    predict(bundle, [image, image], out=out)
    np.save(out / "patches.npy", np.zeros(1))
    assert np.load(out / "features.npy").shape == (2, 3)
    (out / "notes.txt").touch()
    predict(classifier, image, out=out)
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "predictions.jsonl"]
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 1


def test_out_that_is_a_file_is_said_before_anything_runs(bundle, tmp_path):
    image = plain(tmp_path / "a.png", "red")
    with pytest.raises(ConfigError, match=r"--out .*a\.png: is no folder"):
        predict(bundle, image, out=image)


def test_the_function_prints_nothing_but_json(classifier, tmp_path, capsys):
    image = plain(tmp_path / "a.png", "red")
    predict(classifier, image)
    assert capsys.readouterr() == ("", "")
    (found,) = predict(classifier, image, json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.as_dict()))


def test_precision_chooses_the_network(tmp_path, capsys):
    """The network in int8 gives twice the features here, to be told apart."""
    with stage_bundle(tmp_path / "bundle") as folder:
        channel_means(folder / "model.onnx")
        model = onnx.load(folder / "model.onnx")
        model.graph.node[0].output[0] = "means"
        model.graph.node.append(helper.make_node("Add", ["means", "means"], ["features"]))
        onnx.save(model, folder / "model.int8.onnx")
        record = {"opset": 17, "operators": {}}
        models = {"float32": {"file": "model.onnx", **record}, "int8": {"file": "model.int8.onnx", **record}}
        Bundle.seal(folder, manifest(models=models))
    image = plain(tmp_path / "a.png", "red")
    (exact,), (small,) = (predict(folder.parent / "bundle", image, precision=kind) for kind in ("float32", "int8"))
    assert np.allclose(small.features, 2 * exact.features)
    assert main([tmp_path / "bundle", image], precision="int8") == 0
    assert "1 image with" in (said := capsys.readouterr().err)
    assert "; int8) on" in said
    with pytest.raises(ExportError, match="holds no float16 model, only float32, int8"):
        predict(tmp_path / "bundle", image, precision="float16")


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "npu", "openvino"])
def test_a_provider_that_is_not_installed_is_one_sentence(bundle, device):
    package = PROVIDERS[device.partition(":")[0]].package
    with pytest.raises(BackendError, match=f"--device {device}: ONNX Runtime here lacks .* {package} brings"):
        predict(bundle, [], device=device)


@pytest.mark.parametrize("device", ["tpu", "cpu:1", "openvino:1", "cuda:x", ""])
def test_an_unknown_device_names_the_known_ones(bundle, device):
    with pytest.raises(BackendError, match="known are auto, npu, cuda, openvino, cpu"):
        predict(bundle, [], device=device)


def test_a_provider_that_falls_back_to_the_cpu_is_an_error_unless_auto(bundle, monkeypatch):
    """ONNX Runtime gives a CPU session when CUDA's libraries are missing, and says nothing that a program can read."""
    asked = []

    class Session:
        def __init__(self, model, settings, providers, **_):
            asked.extend(providers)

        def get_providers(self):
            return ["CPUExecutionProvider"]

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(BackendError, match="CUDAExecutionProvider is installed but cannot start"):
        open_session(bundle / "model.onnx", "cuda:1")
    assert asked == [("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "1"})]
    assert open_session(bundle / "model.onnx", "auto").get_providers() == ["CPUExecutionProvider"]
    assert [name for name, _ in asked[1:]] == both


def test_openvino_computes_in_bfloat16_only_where_the_network_is_in_lower_precision(bundle, monkeypatch):
    asked = []

    class Session:
        def __init__(self, model, settings, providers, **_):
            asked.append((settings.intra_op_num_threads, dict(providers)["OpenVINOExecutionProvider"]))

        def get_providers(self):
            return ["OpenVINOExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["OpenVINOExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    open_session(bundle / "model.onnx", "openvino")
    open_session(bundle / "model.onnx", "auto", threads=3, precision="int8")
    assert asked[0] == (count_physical_cores(), {"device_type": "CPU"})
    threads, options = asked[1]
    assert (threads, options["num_of_threads"]) == (3, "3")
    assert json.loads(options["load_config"]) == {"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}


def test_auto_says_which_provider_could_not_start(bundle, monkeypatch, caplog):
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda m, s, providers, **_: real(m, s, providers=["CPUExecutionProvider"])
    )
    open_session(bundle / "model.onnx", "auto")
    assert "--device auto: CUDAExecutionProvider is installed but cannot start; trying the next" in caplog.text


def test_auto_tries_the_next_where_a_provider_cannot_load_the_network(bundle, monkeypatch, caplog, capfd):
    """ONNX Runtime's own fallback would print, and load on the CPU whatever was asked for."""
    real = onnxruntime.InferenceSession._create_inference_session

    def create(session, providers, *options):
        if providers[0][0] == "OpenVINOExecutionProvider":
            raise RuntimeError("no such\noperator")
        real(session, providers, *options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", create)
    both = ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    assert open_session(bundle / "model.onnx", "auto").get_providers() == ["CPUExecutionProvider"]
    (record,) = caplog.records
    assert record.getMessage().startswith("--device auto: OpenVINOExecutionProvider cannot load ")
    assert record.getMessage().endswith("model.onnx; trying the next: no such operator")
    with pytest.raises(ExportError, match="cannot load it: no such operator"):
        open_session(bundle / "model.onnx", "openvino")
    (bundle / "model.onnx").write_bytes(b"text")
    with pytest.raises(ExportError, match=r"ONNX Runtime .* cannot load it"):
        open_session(bundle / "model.onnx", "auto")
    assert capfd.readouterr() == ("", "")


def test_a_failing_run_is_raised_and_not_printed(tmp_path, capfd):
    """Standard error belongs to the log, whose lines may have to be JSON."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, None)
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [2, 3])
    node = helper.make_node("Reshape", ["images", "shape"], ["features"])
    graph = helper.make_graph([node], "two", [images], [features], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx")
    assert session.run(None, {"images": np.ones((2, 3), np.float32)})[0].shape == (2, 3)
    with pytest.raises(Exception, match="cannot be reshaped"):
        session.run(None, {"images": np.ones((5, 3), np.float32)})
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_model_is_one_sentence(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"text")
    with pytest.raises(ExportError, match=r"ONNX Runtime .* cannot load it"):
        open_session(tmp_path / "model.onnx")


def test_the_manifest_is_strict_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Bundle.seal(tmp_path, manifest(versions={"ehm": "0"}).model_copy(update={"parity": _nan()}))


def _nan():
    return manifests.Parity(reference="", runtime="", tolerance=1, max_abs=float("nan"), cosine=1, cases=())
