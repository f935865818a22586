"""``ehm finetune --task segmentation`` from the first step to the report, on photographs with others pasted in."""

import base64
import io
import json
import os
import shutil
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import tritonclient.http as triton
from composited import CLASSES, write_pairs
from PIL import Image
from serving import running
from sklearn.metrics import jaccard_score

from ehm import backends
from ehm.backends.torch.export.module import load_module, make_network
from ehm.backends.torch.learners.segmentation import TorchSegmenter
from ehm.cli import main
from ehm.config import FinetuneConfig, ModelSource, SegmentationConfig
from ehm.data.segmentation import resize_to_scale
from ehm.deploy.bench import bench_export
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export import export
from ehm.deploy.export.graphs.convolutions import write_convolutions_out
from ehm.deploy.export.parity import FLOAT16_TOLERANCE, TOLERANCE
from ehm.deploy.predict.command import predict
from ehm.deploy.predict.predictor import Predictor
from ehm.errors import CheckpointError, ConfigError, DataError
from ehm.storage.checkpoint import open_checkpoint
from ehm.tasks.evaluate import evaluate
from ehm.tasks.finetune import finetune

INFERENCE = ("inference.mode=slide", "inference.stride=16", "inference.mode=whole")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """48 pairs to train on, 16 to measure on."""
    root = tmp_path_factory.mktemp("pairs")
    write_pairs(root / "train", 48, seed=0)
    write_pairs(root / "val", 16, seed=1)
    shutil.move(root / "val" / "classes.txt", root / "classes.txt")
    return root


def settings(source, **sections):
    values = {
        "model": {"encoder": "vit_tiny", "width": 48, "depth": 4, "heads": 4, "image_size": 64, "patch_size": 8},
        "data": {"source": str(source), "scale": [64, 64], "ratio": [0.8, 1.5], "workers": 0},
        "crop_size": 64,
        "head": {"channels": 32, "auxiliary_channels": 16},
        "layer_decay": 1.0,
        "optim": {"steps": 120, "batch_size": 8, "base_lr": 0.032, "warmup_steps": 12, "dtype": "float32"},
        "run": {"trackers": [], "measure_every": 10},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return SegmentationConfig.model_validate(values)


SHORT = {"optim": {"steps": 4, "warmup_steps": 1}, "model": {"width": 16, "depth": 2, "heads": 2, "patch_size": 16}}


@pytest.fixture(scope="module")
def trained(pairs, tmp_path_factory):
    """A run of 120 steps that has learned."""
    return finetune(settings(pairs), device="cpu", out=tmp_path_factory.mktemp("run"))


def test_it_learns_where_things_are(trained, pairs, tmp_path):
    untrained = finetune(settings(pairs, run={"max_steps": 1}), device="cpu", out=tmp_path / "untrained").report
    assert untrained.miou < 0.4
    # with the plain kernels of ATEN_CPU_CAPABILITY=default it ends at 0.87, and no class below 0.77
    assert trained.report.miou > 0.65
    assert min(trained.report.iou) > 0.5
    assert trained.report.classes == CLASSES
    assert trained.report.images == 16


def test_the_report_is_what_a_plain_loop_over_the_files_finds(trained, pairs):
    opened = open_checkpoint(trained.checkpoint)
    state = opened.state
    meta = opened.metadata
    assert (meta["kind"], meta["classes"], meta["image_size"]) == ("segmenter", list(CLASSES), [64, 64])
    model = TorchSegmenter(settings(pairs), 3, torch.device("cpu"))
    model.load(state)
    labels, predicted = [], []
    for file in sorted((pairs / "val" / "masks").glob("*.png")):
        mask = np.asarray(Image.open(file))
        image = resize_to_scale(Image.open(pairs / "val" / "images" / file.name), (64, 64))
        labels.append(mask[mask != 255])
        predicted.append(model.segment_image(image, mask.shape)[mask != 255])
    expected = jaccard_score(np.concatenate(labels), np.concatenate(predicted), average=None)
    np.testing.assert_allclose(trained.report.iou, expected)


def test_evaluation_gives_the_figures_of_training_and_takes_other_images(trained, pairs, tmp_path, capsys):
    assert evaluate(trained.out, device="cpu", out=tmp_path / "report") == trained.report
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["miou"] == trained.report.miou
    other = write_pairs(tmp_path / "other", 6, seed=2)
    assert evaluate(trained.out, device="cpu", overrides=[f"data.source={other}"]).miou > 0.6  # 0.84
    whole = evaluate(trained.out, device="cpu", overrides=[f"data.source={other}", "inference.mode=whole"])
    assert whole.miou > 0.6  # 0.84
    # images of 64 pixels are one window of that: larger ones are seen in windows, or at once
    larger = [f"data.source={other}", "data.scale=[128,128]"]
    ways = [evaluate(trained.out, device="cpu", overrides=[*larger, way]).iou for way in INFERENCE]
    assert ways[0] == evaluate(trained.out, device="cpu", overrides=larger).iou
    assert len(set(ways)) == 3
    with pytest.raises(ConfigError, match=r"inference.stride 96 is wider than crop_size \[64, 64\]"):
        evaluate(trained.out, device="cpu", overrides=[*larger, "inference.stride=96"])
    (other / "classes.txt").write_text("\n".join(reversed(CLASSES)))
    with pytest.raises(DataError, match=r"its 3 classes \(cat, coins, cell, …\) are not the 3 that are trained"):
        evaluate(trained.out, device="cpu", overrides=[f"data.source={other}"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stopped_run_ends_like_one_that_was_not(pairs, tmp_path, workers):
    options = {**SHORT, "model": {**SHORT["model"], "drop_path": 0.3}, "data": {"workers": workers}}
    whole = finetune(settings(pairs, **options), device="cpu", out=tmp_path / "whole")
    finetune(settings(pairs, **options, run={"max_steps": 2}), device="cpu", out=tmp_path / "parts")
    resumed = finetune(settings(pairs, **options), device="cpu", out=tmp_path / "parts", resume=True)
    first, second = open_checkpoint(whole.checkpoint).state, open_checkpoint(resumed.checkpoint).state
    for one, two in ((first.model, second.model), (first.optimizer, second.optimizer)):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    assert resumed.report == whole.report


def test_the_encoder_inside_is_where_other_runs_begin(trained, pairs, tmp_path, capsys):
    again = settings(pairs, optim={"steps": 2, "warmup_steps": 0}).model_dump() | {"model": {"init": str(trained.out)}}
    finetune(SegmentationConfig.model_validate(again), device="cpu", out=tmp_path / "again")
    assert f"encoder from {trained.out}" in capsys.readouterr().out.replace("\n", " ")
    classifier = FinetuneConfig.model_validate(
        {"model": {"init": str(trained.out)}, "data": {"workers": 0}, "optim": {"batch_size": 8, "warmup_epochs": 0}}
    )
    model = backends.get("cpu").create_task_learner(classifier, 2).state().model
    inside = open_checkpoint(trained.checkpoint).model
    np.testing.assert_array_equal(model["blocks.1.attn.qkv.weight"], inside["pyramid.encoder.blocks.1.attn.qkv.weight"])


def test_wrong_masks_are_named_before_the_first_step(pairs, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(pairs, broken)
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(broken / "val" / "masks" / "003.png")
    command = ["finetune", "--task", "segmentation", "--device", "cpu", "--out", str(tmp_path / "run"), "--set"]
    assert main([*command, f"data.source={broken}"]) == 1
    said = capsys.readouterr().err
    assert f"{broken}/val/masks/003.png: has the value 9, and the 3 classes are 0 to 2 (255 is ignored)" in said
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_files_that_cannot_be_read_are_listed_and_do_not_count(pairs, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(pairs, broken)
    for part in ("train", "val"):
        (broken / part / "images" / "001.png").write_bytes(b"no picture")
    result = finetune(settings(broken, **SHORT), device="cpu", out=tmp_path / "run")
    assert result.report.images == 15
    said = capsys.readouterr().out.replace("\n", "")
    assert "2 files were skipped because they cannot be read" in said


def test_a_folder_without_parts_is_divided_the_same_way_for_every_seed(tmp_path, capsys):
    source = write_pairs(tmp_path / "pairs", 20)
    for seed in (0, 1):
        finetune(settings(source, **SHORT, run={"seed": seed}), device="cpu", out=tmp_path / f"run{seed}")
    said = capsys.readouterr().out.replace("\n", " ")
    assert said.count("16 images (all but fold 0 of 5), measured on 4 (fold 0 of 5)") == 2


def test_two_processes_measure_what_one_does(trained, pairs, tmp_path, pair):
    """Each on half of a batch and of the images; batch norm's moments are the mean of both."""
    values = json.loads(settings(pairs, **SHORT, run={"max_steps": 2}).model_dump_json())
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    config = str(tmp_path / "config.yaml")
    pair.run("finetune", "--device", "cpu", "--config", config, "--out", str(tmp_path / "run"))
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    alone = evaluate(tmp_path / "run", device="cpu")
    assert report["images"] == alone.images == 16
    assert report["miou"] == pytest.approx(alone.miou)
    assert report["pixels"] == list(alone.pixels)


@pytest.fixture(scope="module")
def bundle(trained, tmp_path_factory):
    precisions = ["int8=true", "float16=true", "calibration.images=8"]
    return export(trained.out, out=tmp_path_factory.mktemp("export") / "bundle", overrides=precisions)


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_lower_precisions_are_measured_on_the_windows_of_held_out_images(bundle, pairs, precision):
    opened = Bundle.open(bundle)
    quality = opened.manifest.models[precision].quality
    assert (quality.source, quality.images, quality.accuracy) == (f"{pairs} (val)", 16, None)
    sessions = []
    for kind in ("float32", precision):
        sessions.append(onnxruntime.InferenceSession(opened.model(kind), providers=["CPUExecutionProvider"]))
    rule = opened.manifest.preprocessing
    cosines, shares = [], []
    for file in sorted((pairs / "val" / "images").iterdir()):
        pixels = resize_to_scale(Image.open(file).convert("RGB"), (64, 64))  # one window, in whose corner it stands
        window = np.zeros((1, 3, 64, 64), np.float32)
        normalised = ((pixels / 255 - rule.mean) / rule.std).transpose(2, 0, 1)
        window[0, :, : pixels.shape[0], : pixels.shape[1]] = normalised
        one, two = (session.run(["scores"], {"images": window})[0] for session in sessions)
        cosines.append(np.sum(one * two) / np.linalg.norm(one) / np.linalg.norm(two))
        shares.append((one.argmax(1) == two.argmax(1)).mean())
    assert (quality.cosine, quality.cosine_min) == pytest.approx((np.mean(cosines), np.min(cosines)), abs=1e-4)
    assert quality.agreement == pytest.approx(np.mean(shares), abs=2e-3)
    assert quality.cosine > 0.99


def test_a_bundle_predicts_the_masks_that_training_measured(trained, bundle, pairs, tmp_path):
    manifest = Bundle.open(bundle).manifest
    (output,) = manifest.outputs
    assert (manifest.task, manifest.labels) == ("segmentation", CLASSES)
    assert (output.name, output.shape) == ("scores", ("batch", 3, 64, 64))
    assert (manifest.windows.scale, manifest.windows.stride) == ((64, 64), (42, 42))
    assert "image-segmentation" in (bundle / "README.md").read_text()

    for folder in ("images", "more"):
        shutil.copytree(pairs / "val" / "images", tmp_path / folder)
    wide = Image.open(tmp_path / "images" / "000.png").resize((150, 90))
    wide.save(tmp_path / "images" / "wide.png")
    found = predict(bundle, [tmp_path / "images", tmp_path / "more"], out=tmp_path / "out")
    names = [os.path.basename(prediction.mask) for prediction in found]
    assert (names[0], names[16], names[17]) == ("000.png", "wide.png", "000-2.png")
    model = TorchSegmenter(settings(pairs), 3, torch.device("cpu"))
    model.load(open_checkpoint(trained.checkpoint).state)
    for prediction in found[:17]:
        image, mask = Image.open(prediction.image), Image.open(prediction.mask)
        assert (mask.mode, mask.size) == ("P", image.size)
        expected = model.segment_image(resize_to_scale(image.convert("RGB"), (64, 64)), (image.height, image.width))
        assert (np.asarray(mask) == expected).mean() > 0.999
        assert sum(share for _, share in prediction.classes) == pytest.approx(1)
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert lines[16]["mask"] == str(tmp_path / "out" / "masks" / "wide.png")
    for name in ("000.png", "wide.png"):
        predict(bundle, [tmp_path / "images" / name], out=tmp_path / "again")
    assert [file.name for file in (tmp_path / "again" / "masks").iterdir()] == ["wide.png"]  # no earlier call's
    labels = np.asarray(Image.open(lines[0]["mask"]))
    assert lines[0]["classes"][0]["share"] == np.bincount(labels.ravel()).max() / labels.size


def test_a_bundle_of_another_size_and_what_does_not_go_with_one(trained, pairs, tmp_path):
    other = load_module(ModelSource(init=str(trained.out), image_size=(96, 64)))
    network = make_network(other, "auto")
    assert (other.image_size, network.outputs) == ((96, 64), ("scores",))
    model = TorchSegmenter(settings(pairs), 3, torch.device("cpu"))
    model.load(open_checkpoint(trained.checkpoint).state)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        (found,), (expected, _) = network(images), model.model.eval()(images)
    expected = torch.nn.functional.interpolate(expected, (96, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected)
    assert Bundle.open(export(trained.out, head="features", out=tmp_path / "f")).manifest.outputs[0].name == "features"
    with pytest.raises(ConfigError, match=r"preprocessing: .* is a segmenter, which is exported without; leave it out"):
        export(trained.out, overrides=["preprocessing=true"], out=tmp_path / "x")
    with pytest.raises(ConfigError, match=r"model.image_size \[80, 64\]: a segmenter's is a multiple of 32"):
        export(trained.out, overrides=["model.image_size=[80, 64]"], out=tmp_path / "x")
    with pytest.raises(CheckpointError, match="a segmenter has no classifier of images"):
        export(trained.out, head="classifier", out=tmp_path / "x")


def test_a_chip_without_float32_convolutions_gets_them_in_float16(bundle):
    graph = onnx.load(bundle / "model.onnx")
    assert write_convolutions_out(graph)
    types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    convolutions = [node for node in graph.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert {types[node.input[1]] for node in convolutions} == {onnx.TensorProto.FLOAT16}
    images = {"images": np.random.default_rng(0).standard_normal((4, 3, 64, 64), np.float32)}
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = Predictor(bundle).run(images["images"])["scores"]
    difference = np.abs(session.run(None, images)[0] - expected).max() / np.sqrt(np.mean(expected**2))
    assert TOLERANCE < difference < FLOAT16_TOLERANCE / 2


def test_it_is_served_as_masks(bundle, pairs, tmp_path):
    file = pairs / "val" / "images" / "000.png"
    wide = Image.open(file).resize((150, 90))  # several windows
    wide.save(tmp_path / "wide.png")
    (expected,) = predict(bundle, [tmp_path / "wide.png"])
    with running([bundle], max_batch=3) as (address, _):
        url, data = f"http://{address}/v1/segment", (tmp_path / "wide.png").read_bytes()
        with urlopen(Request(url, data)) as reply:
            answer = json.load(reply)
        with urlopen(Request(f"{url}?png=true", data)) as reply:
            assert reply.headers["content-type"] == "image/png"
            alone = reply.read()
    assert base64.b64decode(answer["mask"]) == alone
    mask = Image.open(io.BytesIO(alone))
    assert (mask.mode, mask.size) == ("P", (150, 90))
    np.testing.assert_array_equal(np.asarray(mask), expected.labels)
    assert [(each["label"], each["share"]) for each in answer["classes"]] == list(expected.classes)
    assert len(answer["classes"]) > 1
    assert [answer["labels"][index] for index in np.unique(mask)] == sorted(
        (each["label"] for each in answer["classes"]), key=answer["labels"].index
    )


def test_it_is_served_as_tensors_and_not_as_classes(bundle, pairs):
    with running([bundle]) as (address, _), triton.InferenceServerClient(address) as client:
        image = Request(f"http://{address}/v1/classify", (pairs / "val" / "images" / "000.png").read_bytes())
        with pytest.raises(HTTPError) as refused:
            urlopen(image)
        assert refused.value.code == 400
        assert "the model bundle gives no logits" in refused.value.read().decode()
        refused.value.close()
        pixels = np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)
        given = triton.InferInput("images", pixels.shape, "FP32")
        given.set_data_from_numpy(pixels)
        scores = client.infer("bundle", [given]).as_numpy("scores")
    np.testing.assert_allclose(scores, Predictor(bundle).run(pixels)["scores"], atol=1e-5)


def test_its_bundle_is_timed(bundle, capsys):
    timings = bench_export(bundle, batch=[2], device="cpu", rounds=1)
    assert [timing.name for timing in timings] == ["CPU float32", "CPU int8", "CPU float16"]
    assert "torch is left out: the bundle has no logits" in capsys.readouterr().err
