"""Detection through the public functions: what it learns, what it leaves behind, and that it can be stopped."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import onnxruntime
import pytest
import torch
import tritonclient.http as triton
from made_bundles import model_config
from PIL import Image
from safetensors.numpy import load_file
from scenes import CLASSES, annotate, write_scenes
from serving import running
from tritonclient.utils import InferenceServerException

from ehm.backends.torch.export.detector_module import load_detector
from ehm.backends.torch.learners.classification import TorchClassifier
from ehm.backends.torch.learners.detection import TorchDetector
from ehm.cli import main
from ehm.config import DetectionConfig, FinetuneConfig, ModelSource
from ehm.data.sources.coco import read_coco
from ehm.deploy.bench import bench_export
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export import export
from ehm.deploy.export.detector import compare_detector
from ehm.deploy.predict.command import predict
from ehm.errors import CheckpointError, ConfigError, DataError, ExportError
from ehm.models.opening import open_model
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import open_checkpoint
from ehm.tasks.evaluate import evaluate
from ehm.tasks.finetune import finetune

SIDE = 64


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Photographed cats and cups on solar cells: 80 pictures to learn from, 16 to measure on."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 80, 0, "train", SIDE)
    write_scenes(root, 16, 1, "val", SIDE)
    return root


@pytest.fixture(scope="module")
def config(scenes):
    """Make a tiny run on the scenes, with sections as keywords."""

    def make(**sections):
        values = {
            "model": {
                "encoder": "vit_tiny",
                "width": 48,
                "depth": 4,
                "heads": 3,
                "image_size": SIDE,
                "patch_size": 8,
                "drop_path": 0.1,
            },
            "data": {"source": str(scenes), "workers": 0},
            "min_size": SIDE,
            "max_size": 96,
            "anchor_sizes": [8, 16, 24, 32, 48],
            "width": 32,
            "proposals": 32,
            "optim": {
                "epochs": 6,
                "batch_size": 4,
                "base_lr": 0.2,
                "clip_grad": 1,
                "warmup_steps": 10,
                "schedule": "cosine",
                "dtype": "float32",
            },
            "run": {"trackers": [], "measure_every": 100, "checkpoint_every": 100},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        return DetectionConfig.model_validate(values)

    return make


@pytest.fixture(scope="module")
def few(scenes, tmp_path_factory):
    """Eight of the pictures, one file beside a folder: what has no parts of its own."""
    root = tmp_path_factory.mktemp("few")
    content = json.loads((scenes / "annotations" / "instances_train.json").read_text())
    kept = {image["id"] for image in content["images"][:8]}
    content["images"] = content["images"][:8]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]
    (root / "images").mkdir()
    for image in content["images"]:
        shutil.copy(scenes / "train" / image["file_name"], root / "images")
    (root / "instances.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def learned(config, tmp_path_factory):
    return finetune(config(), device="cpu", out=tmp_path_factory.mktemp("run") / "run")


def test_it_finds_the_objects_and_an_untrained_one_does_not(config, learned, tmp_path):
    # Under ATEN_CPU_CAPABILITY=default and avx2, ONEDNN_MAX_CPU_ISA=SSE41 and with one thread and two, AP50 of boxes
    # and of masks ends at 0.93 at least, AP of boxes at 0.7, and that of each class at 0.7.
    figures = learned.metrics
    assert figures["box_ap50"] > 0.7
    assert figures["mask_ap50"] > 0.7
    assert figures["box_ap"] > 0.4
    assert min(learned.report.boxes.per_class) > 0.2
    assert learned.report.classes == CLASSES
    untrained = finetune(config(run={"max_steps": 1}, score_threshold=0), device="cpu", out=tmp_path / "run").metrics
    assert untrained["box_ap50"] < 0.05
    assert untrained["mask_ap50"] < 0.05


def test_what_it_leaves_behind(learned):
    meta = open_checkpoint(learned.out).metadata
    assert (meta["kind"], tuple(meta["classes"]), meta["image_size"]) == ("detector", CLASSES, [SIDE, 96])
    assert meta["encoder"]["depth"] == 4
    written = json.loads((learned.out / "metrics.json").read_text())
    assert written["boxes"]["ap"] == learned.report.boxes.ap
    assert written["best"]["box_ap"] == learned.report.score
    last = json.loads((learned.out / "metrics.jsonl").read_text().splitlines()[-1])
    terms = [value for name, value in last.items() if name.startswith("loss_")]
    assert len(terms) == 5
    assert last["mask_ap50"] == learned.report.masks.ap50


def test_evaluate_measures_it_again_and_draws(learned, tmp_path, capsys):
    report = evaluate(learned.out, device="cpu", out=tmp_path)
    assert report == learned.report
    pictures = sorted((tmp_path / "pictures").glob("*.png"))
    assert len(pictures) == 16
    assert pictures[1].name.startswith("01_")
    original = learned.out / "config.yaml"
    source = read_coco(
        DetectionConfig.model_validate(open_checkpoint(learned.out).metadata["config"]).data.source, "val"
    )
    assert original.is_file()
    drawn, photograph = np.asarray(Image.open(pictures[0])), source.load(0)[0]
    assert drawn.shape == photograph.shape
    assert 0.02 < (drawn != photograph).any(axis=2).mean() < 0.9
    assert "Pictures: " in capsys.readouterr().out
    for override in ("detections=1", "score_threshold=0.99", "min_size=32"):
        assert evaluate(learned.out, device="cpu", overrides=[override]).score < report.score


def test_other_images_are_measured_by_the_names_of_their_classes(learned, tmp_path):
    root = tmp_path / "other"
    write_scenes(root, 8, 5, "train", SIDE)
    annotations = root / "annotations" / "instances_train.json"
    content = json.loads(annotations.read_text())
    content["categories"] = [{"id": 1, "name": CLASSES[1]}, {"id": 2, "name": CLASSES[0]}]
    for each in content["annotations"]:
        each["category_id"] = 2 if each["category_id"] == 3 else 1
    annotations.write_text(json.dumps(content))
    report = evaluate(learned.out, device="cpu", overrides=[f"data.source={root}"])
    assert report.images == 8  # all of them: it has no parts
    assert report.boxes.ap50 > 0.7  # a mix-up of the classes gives less than 0.1
    content["categories"][0]["name"] = "spoon"
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match="class spoon is not among the detector's 2"):
        evaluate(learned.out, device="cpu", overrides=[f"data.source={root}"])


def test_a_stopped_run_ends_like_one_that_was_not(config, few, tmp_path):
    settings = {
        "data": {"source": str(few), "workers": 1},
        "min_size": [48, 56, 64],
        "optim": {"epochs": 2},
        "folds": 4,
    }
    settings["optim"] |= {"batch_size": 2, "clip_grad": 1, "accumulate": 2, "warmup_steps": 2}
    whole = finetune(config(**settings), device="cpu", out=tmp_path / "whole")
    run = {"max_steps": 4, "checkpoint_every": 0.5}  # of 6
    finetune(config(**settings, run=run), device="cpu", out=tmp_path / "stopped")
    again = config(**settings, run={"checkpoint_every": 0.5})
    resumed = finetune(again, device="cpu", out=tmp_path / "stopped", resume=True)
    assert resumed.report == whole.report
    assert resumed.checkpoint.name == whole.checkpoint.name == "step-00000006"
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = load_file(resumed.checkpoint / name), load_file(whole.checkpoint / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def test_its_encoder_begins_with_weights_and_gives_its_own_on(config, learned, few, tmp_path):
    arrays = open_checkpoint(learned.checkpoint).model
    model = {"init": str(learned.out), "encoder": "vit_small", "width": None, "depth": None, "heads": None}
    model |= {"patch_size": None, "image_size": None}
    detector = TorchDetector(config(model=model, layer_decay=0.8), 5, torch.device("cpu"))
    state = detector.state().model
    inner = [name for name in arrays if ".encoder." in name]
    assert len(inner) > 50
    for name in inner:
        np.testing.assert_array_equal(state[name], arrays[name], err_msg=name)
    scales = {group["lr_scale"] for group in detector._training.optimizer.param_groups}
    assert min(scales) == pytest.approx(0.8**5)
    classifier = FinetuneConfig.model_validate({"model": {"init": str(learned.out)}})
    theirs = TorchClassifier(classifier, 2, torch.device("cpu")).state().model
    np.testing.assert_array_equal(
        theirs["blocks.3.attn.qkv.weight"], arrays["backbone.pyramid.encoder.blocks.3.attn.qkv.weight"]
    )


@pytest.fixture(scope="module")
def bundle(learned, tmp_path_factory):
    settings = [f"model.image_size={SIDE}", "float16=true", "calibration.images=2"]
    return export(learned.out, out=tmp_path_factory.mktemp("bundle") / "b", overrides=settings)


def test_its_bundle_finds_what_it_finds(config, learned, bundle, scenes, tmp_path):
    manifest = Bundle.open(bundle).manifest
    assert (manifest.task, manifest.labels, manifest.preprocessing.image_size) == ("detection", CLASSES, (SIDE, SIDE))
    assert manifest.parity.max_abs < 1e-3
    assert (manifest.fit.shorter, manifest.fit.longer) == (SIDE, 96)  # as in training, whatever the encoder began with
    source = read_coco(str(scenes), "val")
    square = [index for index in range(len(source)) if source.images[index]["width"] == SIDE]  # nothing is padded
    predictions = predict(bundle, [source.name(index) for index in square], out=tmp_path)
    arrays = open_checkpoint(learned.checkpoint).model
    detector = TorchDetector(config(), 2, torch.device("cpu"))
    detector.load(LearnerState(arrays, {}))
    assert len(square) >= 2
    for index, prediction in zip(square, predictions, strict=True):
        (expected,) = detector.detect_objects([source.load(index)[0]])
        assert [each.label for each in prediction.objects] == [CLASSES[label] for label in expected.labels]
        np.testing.assert_allclose([each.box for each in prediction.objects], expected.boxes, atol=0.02)
        np.testing.assert_allclose([each.score for each in prediction.objects], expected.scores, atol=1e-3)
        assert np.mean([each.mask for each in prediction.objects] != expected.masks) < 0.001
    written = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [len(each["objects"]) for each in written] == [len(each.objects) for each in predictions]
    assert written[0]["objects"][0]["mask"]["size"] == [SIDE, SIDE]
    assert "# Object detector" in (bundle / "README.md").read_text()


def test_it_is_served_as_objects_of_an_image(bundle, scenes):
    source = read_coco(str(scenes), "val")
    (expected,) = predict(bundle, [source.name(0)])
    expected = [each.as_dict() for each in expected.objects]
    assert len(expected) >= 2
    with running([bundle], max_delay=0) as (address, _):

        def ask(route, query=""):
            image = Path(source.name(0)).read_bytes()
            with urlopen(Request(f"http://{address}/v1/{route}{query}", image)) as reply:
                return json.load(reply)

        assert ask("detect") == {"model": "b", "version": ask("detect")["version"], "objects": expected}
        likely = [each for each in expected if each["score"] > expected[1]["score"]]
        bare = [{key: value for key, value in each.items() if key != "mask"} for each in likely]
        assert ask("detect", f"?masks=false&score={expected[1]['score']}")["objects"] == bare
        with ThreadPoolExecutor(4) as pool:  # one image runs at a time, whatever waits
            assert [each["objects"] for each in pool.map(ask, ["detect"] * 8)] == [expected] * 8
        for route, said in (("classify", "gives no logits"), ("segment", "gives no masks")):
            with pytest.raises(HTTPError) as refused:
                ask(route)
            with refused.value as reply:
                assert said in json.load(reply)["error"]
        pixels = np.zeros((1, 3, SIDE, SIDE), np.float32)
        given = triton.InferInput("images", pixels.shape, "FP32")
        given.set_data_from_numpy(pixels)
        refusal = pytest.raises(InferenceServerException, match="send an image file to /v1/detect")
        with triton.InferenceServerClient(address) as client:
            outputs = {each["name"]: each for each in client.get_model_metadata("b")["outputs"]}
            assert {name: each["datatype"] for name, each in outputs.items()} == {
                **dict.fromkeys(("boxes", "scores", "masks"), "FP32"),
                "labels": "INT64",
            }
            # the graph has constant shapes: as many rows as objects that are kept at most
            assert {name: each["shape"][0] for name, each in outputs.items()} == dict.fromkeys(outputs, 100)
            with refusal:
                client.infer("b", [given])


def test_float16_finds_the_same_objects(bundle, scenes):
    opened = Bundle.open(bundle)
    quality = opened.manifest.models["float16"].quality
    assert quality.source == f"{scenes} (val)"
    assert quality.cosine > 0.999
    # of all objects, unsure ones too, whose order changes with the processor: 0.83 to 0.95 were seen
    assert quality.agreement > 0.6
    source = read_coco(str(scenes), "val")
    files = [source.name(index) for index in range(4)]
    for one, two in zip(predict(bundle, files), predict(bundle, files, precision="float16"), strict=True):
        for sure in [each for each in one.objects if each.score > 0.5]:
            same = [each for each in two.objects if each.label == sure.label and abs(each.score - sure.score) < 0.05]
            # the arithmetic of coordinates stays in float32
            assert min(np.abs(np.subtract(each.box, sure.box)).max() for each in same) < 0.5
    halves = opened.model("float16").stat().st_size / opened.model().stat().st_size
    assert 0.5 < halves < 0.6


def test_it_is_timed_and_handed_to_triton(bundle, tmp_path):
    timings = bench_export(bundle, device="cpu", rounds=1)
    assert [(timing.name, timing.batch) for timing in timings] == [("CPU float32", 1), ("CPU float16", 1)]
    assert timings[0].cosine == pytest.approx(1)
    with pytest.raises(ConfigError, match=r"--batch 8: .* takes one image at a time; leave it out"):
        bench_export(bundle, device="cpu", batch=[1, 8])
    export(bundle, triton=tmp_path / "models")
    for name, precision in {"b": "float32", "b_float16": "float16"}.items():
        config = model_config(tmp_path / "models" / name / "config.pbtxt")
        session = onnxruntime.InferenceSession(Bundle.open(bundle).model(precision), providers=["CPUExecutionProvider"])
        assert (config.max_batch_size, config.HasField("dynamic_batching")) == (0, False)
        real = {each.name: each.shape for each in (*session.get_inputs(), *session.get_outputs())}
        assert {tensor.name: list(tensor.dims) for tensor in (*config.input, *config.output)} == real
        (warm_up,) = config.model_warmup
        assert (warm_up.batch_size, list(warm_up.inputs["images"].dims)) == (1, [1, 3, SIDE, SIDE])


def test_what_a_bundle_cannot_do_yet_is_said(learned, bundle, tmp_path):
    for refused in ({"int8": True}, {"target": "ascend"}, {"overrides": ["preprocessing=true"]}):
        with pytest.raises(ConfigError, match="a detector is written in floats for one size"):
            export(learned.out, out=tmp_path / "other", **refused)
    with pytest.raises(ConfigError, match=r"model.image_size \[50, 64\]: of this detector it should be two multiples"):
        export(learned.out, out=tmp_path / "other", overrides=["model.image_size=[50, 64]"])
    assert not (tmp_path / "other").exists()


class Runtime:
    """Stand in for ONNX Runtime with the right results, except for ``change``."""

    def __init__(self, graph, change):
        self.graph, self.change = graph, change

    def run(self, names, given):
        with torch.inference_mode():
            values = self.graph(torch.from_numpy(given["images"]))
        return [self.change(name, value.numpy()) for name, value in zip(names, values, strict=True)]

    def get_providers(self):
        return ["Other"]


def test_a_graph_is_torchvisions_and_one_that_is_not_is_refused(learned):
    graph, _ = load_detector(open_model(ModelSource(init=str(learned.checkpoint))))
    assert graph.image_size == (SIDE, 96)  # for images that are wider than high
    assert compare_detector(graph, Runtime(graph, lambda name, value: value)).max_abs < 1e-6
    with pytest.raises(ExportError, match="parity: the exported model differs"):
        compare_detector(graph, Runtime(graph, lambda name, value: value + 0.1 * (name == "masks")))
    with pytest.raises(ExportError, match="parity: of 100 objects that torchvision finds"):
        compare_detector(graph, Runtime(graph, lambda name, value: value + (name == "boxes")))


def test_its_encoder_is_exported_by_itself(learned, tmp_path):
    with pytest.raises(CheckpointError, match="a detector has no classifier of images; --head auto"):
        export(learned.out, out=tmp_path / "bundle", head="classifier")
    bundle = export(learned.out, head="features", out=tmp_path / "bundle")
    picture = Image.fromarray(np.full((SIDE, SIDE, 3), 90, np.uint8))
    picture.save(tmp_path / "grey.png")
    (prediction,) = predict(bundle, tmp_path / "grey.png")
    assert prediction.features.shape == (48,)
    assert "Trained as Mask R-CNN to find 2 classes of objects" in (bundle / "README.md").read_text()


def test_boxes_alone_train_too(config, few, tmp_path):
    content = json.loads((few / "instances.json").read_text())
    for each in content["annotations"]:
        del each["segmentation"]
    root = tmp_path / "boxes"
    shutil.copytree(few, root)
    (root / "instances.json").write_text(json.dumps(content))
    settings = {"data": {"source": str(root)}, "run": {"max_steps": 2}, "optim": {"batch_size": 2}}
    with pytest.raises(DataError, match="masks=false trains on boxes alone"):
        finetune(config(**settings), device="cpu", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    result = finetune(config(**settings, masks=False), device="cpu", out=tmp_path / "run")
    assert list(result.metrics) == ["box_ap", "box_ap50", "box_ap75"]
    assert result.report.masks is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_encoder_of_one_size_gets_padded_squares_and_boxes_come_back_in_pixels(config, scenes, dtype):
    model = {"init": "timm:swin_tiny_patch4_window7_224?pretrained=false", "image_size": 64}
    model |= dict.fromkeys(("width", "depth", "heads", "patch_size"))
    detector = TorchDetector(config(model=model, optim={"dtype": dtype}, score_threshold=0), 2, torch.device("cpu"))
    assert detector.image_size == (64, 64)
    source = read_coco(str(scenes), "val")
    images, targets = zip(*(source.load(index) for index in (0, 1)), strict=True)
    wide = np.zeros((40, 150, 3), np.uint8)
    tensors, _ = detector.model.transform.eval()([torch.zeros(3, 40, 150), torch.zeros(3, 64, 56)])
    assert tensors.tensors.shape[2:] == (64, 64)
    assert tensors.image_sizes == [(17, 64), (64, 56)]
    assert np.isfinite(float(detector.train_step(images, targets, 1e-4, 0.05)["loss"]))
    (found,) = detector.detect_objects([wide])
    assert found.masks.shape[1:] == (40, 150)
    assert len(found.boxes)
    assert (found.boxes >= 0).all()
    assert 64 < found.boxes[:, 2].max() <= 150
    assert found.boxes[:, 3].max() <= 40
    assert detector.detect_objects([]) == []


def test_what_does_not_fit_is_said(config, learned, few, tmp_path):
    cpu = torch.device("cpu")
    bare = dict.fromkeys(("width", "depth", "heads", "patch_size"))
    swin = {"init": "timm:swin_tiny_patch4_window7_224?pretrained=false", "image_size": [64, 96], **bare}
    with pytest.raises(ConfigError, match="should be a square of a multiple of 32 pixels"):
        TorchDetector(config(model=swin), 2, cpu)
    with pytest.raises(ValueError, match="min_size 100 is more than max_size 96"):
        config(min_size=100)
    with pytest.raises(ValueError, match="crop_scale"):
        config(data={"crop_scale": (0.5, 1)})  # which does not crop
    with pytest.raises(CheckpointError, match="nothing"):
        finetune(config(model={"init": str(tmp_path / "nothing")}), device="cpu", out=tmp_path / "run")


def test_useless_objects_are_named_before_training(config, few, tmp_path, capsys):
    root = tmp_path / "bad"
    shutil.copytree(few, root)
    content = json.loads((root / "instances.json").read_text())
    first = content["images"][0]
    mask = np.zeros((first["height"], first["width"]), bool)
    mask[:5, :5] = True
    content["annotations"].append(annotate(999, first["id"], 0, mask) | {"bbox": [200, 0, 5, 5]})
    (root / "instances.json").write_text(json.dumps(content))
    (root / "images" / content["images"][3]["file_name"]).unlink()
    overrides = [f"data.source={root}", "run.max_steps=2", "optim.batch_size=4", "optim.warmup_steps=0"]
    arguments = ["finetune", "--device", "cpu", "--out", str(tmp_path / "run"), "--config", str(tmp_path / "c.json")]
    (tmp_path / "c.json").write_text(json.dumps(config().model_dump(mode="json")))
    assert main([*arguments, *(f"--set={override}" for override in overrides)]) == 0
    said = capsys.readouterr().out
    assert said.index("annotation 999 of 000.jpg: its box [200, 0, 5, 5] has no area") < said.index("finetune 2/2")
    assert "003.jpg: No such file or directory" in said.replace("\n", "")


def test_two_processes_are_one_run(config, few, tmp_path, pair):
    settings = config(
        data={"source": str(few)},
        model={"drop_path": 0},
        optim={"epochs": 1, "batch_size": 2, "warmup_steps": 0},
        folds=4,
        proposals=4096,  # all of them: nothing is drawn at random
        run={"log_every": 1},
    )
    (tmp_path / "c.json").write_text(json.dumps(settings.model_dump(mode="json")))
    one = finetune(settings, device="cpu", out=tmp_path / "one")
    pair.run("finetune", "--device", "cpu", "--config", str(tmp_path / "c.json"), "--out", str(tmp_path / "two"))
    report = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert report["images"] == one.report.images == 2
    assert report["objects"] == list(one.report.objects)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(losses[0]) == len(losses[1]) == 3
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.1)  # batch norm and the sampling of anchors see halves
