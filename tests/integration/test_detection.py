"""A trained detector: what it finds, its evaluation, its encoder, and its bundle, served and handed to Triton."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import tritonclient.http as triton
from detection_configs import SIDE, make_detection_config
from made_bundles import model_config
from PIL import Image
from scenes import CLASSES, write_scenes
from server_requests import send_request
from serving import running
from tritonclient.utils import InferenceServerException

from ehm.backends.torch.export.detector_module import load_detector
from ehm.backends.torch.learners.classification import TorchClassifier
from ehm.backends.torch.learners.detection import TorchDetector
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


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Photographed cats and cups on solar cells: 80 pictures to learn from, 16 to measure on."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 80, 0, "train", SIDE)
    write_scenes(root, 16, 1, "val", SIDE)
    return root


@pytest.fixture(scope="module")
def learned(scenes, tmp_path_factory):
    return finetune(make_detection_config(scenes), device="cpu", out=tmp_path_factory.mktemp("run") / "run")


def test_it_finds_the_objects_and_an_untrained_one_does_not(scenes, learned, tmp_path):
    # Under ATEN_CPU_CAPABILITY=default and avx2, ONEDNN_MAX_CPU_ISA=SSE41 and with one thread and two, AP50 of boxes
    # and of masks ends at 0.93 at least, AP of boxes at 0.7, and that of each class at 0.7.
    figures = learned.metrics
    assert figures["box_ap50"] > 0.7
    assert figures["mask_ap50"] > 0.7
    assert figures["box_ap"] > 0.4
    assert min(learned.report.boxes.per_class) > 0.2
    assert learned.report.classes == CLASSES
    one_step = make_detection_config(scenes, run={"max_steps": 1}, score_threshold=0)
    untrained = finetune(one_step, device="cpu", out=tmp_path / "run").metrics
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
    assert (learned.out / "config.yaml").is_file()
    config = DetectionConfig.model_validate(open_checkpoint(learned.out).metadata["config"])
    photograph = read_coco(config.data.source, "val").load(0)[0]
    drawn = np.asarray(Image.open(pictures[0]))
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


def test_its_encoder_begins_with_weights_and_gives_its_own_on(scenes, learned, tmp_path):
    arrays = open_checkpoint(learned.checkpoint).model
    model = {"init": str(learned.out), "encoder": "vit_small", "width": None, "depth": None, "heads": None}
    model |= {"patch_size": None, "image_size": None}
    detector = TorchDetector(make_detection_config(scenes, model=model, layer_decay=0.8), 5, torch.device("cpu"))
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


def test_its_bundle_finds_what_it_finds(scenes, learned, bundle, tmp_path):
    manifest = Bundle.open(bundle).manifest
    assert (manifest.task, manifest.labels, manifest.preprocessing.image_size) == ("detection", CLASSES, (SIDE, SIDE))
    assert manifest.parity.max_abs < 1e-3
    assert (manifest.fit.shorter, manifest.fit.longer) == (SIDE, 96)  # as in training, whatever the encoder began with
    source = read_coco(str(scenes), "val")
    square = [index for index in range(len(source)) if source.images[index]["width"] == SIDE]  # nothing is padded
    predictions = predict(bundle, [source.name(index) for index in square], out=tmp_path)
    arrays = open_checkpoint(learned.checkpoint).model
    detector = TorchDetector(make_detection_config(scenes), 2, torch.device("cpu"))
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
    image = Path(source.name(0)).read_bytes()
    with running([bundle], max_delay=0) as (address, _):
        detected = send_request(address, "POST", "/v1/detect", image).body
        assert detected == {"model": "b", "version": Bundle.open(bundle).version(), "objects": expected}
        likely = [each for each in expected if each["score"] > expected[1]["score"]]
        bare = [{key: value for key, value in each.items() if key != "mask"} for each in likely]
        path = f"/v1/detect?masks=false&score={expected[1]['score']}"
        assert send_request(address, "POST", path, image).body["objects"] == bare
        with ThreadPoolExecutor(4) as pool:  # one image runs at a time, whatever waits
            asked = [pool.submit(send_request, address, "POST", "/v1/detect", image) for _ in range(8)]
            assert [each.result().body["objects"] for each in asked] == [expected] * 8
        for route, sentence in (("classify", "gives no logits"), ("segment", "gives no masks")):
            refused = send_request(address, "POST", f"/v1/{route}", image)
            assert refused.status >= 400
            assert sentence in refused.body["error"]
        pixels = np.zeros((1, 3, SIDE, SIDE), np.float32)
        tensor = triton.InferInput("images", pixels.shape, "FP32")
        tensor.set_data_from_numpy(pixels)
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
                client.infer("b", [tensor])


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


class AlteredRuntime:
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
    assert compare_detector(graph, AlteredRuntime(graph, lambda name, value: value)).max_abs < 1e-6
    with pytest.raises(ExportError, match="parity: the exported model differs"):
        compare_detector(graph, AlteredRuntime(graph, lambda name, value: value + 0.1 * (name == "masks")))
    with pytest.raises(ExportError, match="parity: of 100 objects that torchvision finds"):
        compare_detector(graph, AlteredRuntime(graph, lambda name, value: value + (name == "boxes")))


def test_its_encoder_is_exported_by_itself(learned, tmp_path):
    with pytest.raises(CheckpointError, match="a detector has no classifier of images; --head auto"):
        export(learned.out, out=tmp_path / "bundle", head="classifier")
    bundle = export(learned.out, head="features", out=tmp_path / "bundle")
    picture = Image.fromarray(np.full((SIDE, SIDE, 3), 90, np.uint8))
    picture.save(tmp_path / "grey.png")
    (prediction,) = predict(bundle, tmp_path / "grey.png")
    assert prediction.features.shape == (48,)
    assert "Trained as Mask R-CNN to find 2 classes of objects" in (bundle / "README.md").read_text()
