"""The handlers of the kinds of bundles: each task has one, and it says what differs."""

from typing import get_args

import numpy as np
import pytest
from dense_bundles import DETECTED, detector_bundle, segmenter_bundle
from made_bundles import make_bundle
from PIL import Image

from ehm.deploy.bundle.manifest import Task
from ehm.deploy.predict.command import predict
from ehm.deploy.predict.detection import DetectionHandler
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.predict.registry import create_handler
from ehm.deploy.predict.segmentation import SegmentationHandler


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    """A predictor of each kind of bundle, by its task."""
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "classification": Predictor(make_bundle(folder / "classes", outputs=("logits", "features"))),
        "multi_label": Predictor(make_bundle(folder / "labels", task="multi_label")),
        "features": Predictor(make_bundle(folder / "features", outputs=("features", "patches"))),
        "segmentation": Predictor(segmenter_bundle(folder / "masks")),
        "detection": Predictor(detector_bundle(folder / "objects")),
        "visual_tokens": Predictor(make_bundle(folder / "tokens", outputs=("visual_tokens",))),
    }


def test_every_task_of_a_manifest_has_a_handler(predictors):
    assert set(predictors) == set(get_args(Task))
    handlers = {type(create_handler(predictor.manifest)) for predictor in predictors.values()}
    assert len(handlers) == len(predictors)
    for task, predictor in predictors.items():
        assert predictor.manifest.task == task
        assert type(predictor.handler) in handlers


def test_outputs_are_described_for_one_image(predictors):
    described = predictors["detection"].handler.describe_outputs()
    assert described == "boxes 4 x 4, labels 4, scores 4, masks 4 x 28 x 28"
    assert predictors["segmentation"].handler.describe_outputs() == "scores 3 x 16 x 24"
    names = [part.split()[0] for part in predictors["classification"].handler.describe_outputs().split(", ")]
    assert names == ["logits", "features"]


def test_visual_tokens_are_rows_for_a_language_model(predictors, tmp_path):
    predictor = predictors["visual_tokens"]
    Image.new("RGB", (50, 40), (200, 100, 0)).save(tmp_path / "a.png")
    (prediction,) = predict(predictor.bundle, tmp_path / "a.png", out=tmp_path / "out")
    assert prediction.visual_tokens.shape == (3, 5)
    assert "3 visual tokens of 5 features" in str(prediction)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "visual_tokens.npy"), prediction.visual_tokens[None])
    said = predictor.handler.describe_input()
    assert "The tokens are for tiny alone (llama, 5 features, weights 111111111111)" in said
    assert "It reads '<Img> ', the tokens, '</Img>' and 'Question: {question} Answer:'." in said


@pytest.mark.parametrize("task", get_args(Task))
def test_a_batch_has_a_row_for_each_image(predictors, task):
    predictor = predictors[task]
    shape = [1 if isinstance(size, str) else size for size in predictor.manifest.input.shape]
    outputs = predictor.run_batch(np.zeros(shape, predictor.manifest.input.dtype))
    assert {len(values) for values in outputs.values()} == {1}


def test_only_a_detector_takes_no_batches(predictors):
    assert [task for task, predictor in predictors.items() if not predictor.handler.takes_batches] == ["detection"]


@pytest.mark.parametrize("task", get_args(Task))
def test_a_network_agrees_with_itself_and_not_with_another(predictors, task):
    predictor = predictors[task]
    handler = predictor.handler
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 90, 3), np.uint8))
    inputs = handler.prepare_sample(predictor, picture)[np.newaxis]
    outputs = predictor.run(inputs, handler.measured_outputs)
    same = handler.compare(outputs, outputs)
    np.testing.assert_allclose(same.cosines, 1)
    assert same.agreements is None or same.agreements.tolist() == [1]
    turned = {name: -values if values.dtype == np.float32 else values for name, values in outputs.items()}
    assert handler.compare(outputs, turned).cosines.max() <= 0
    if same.agreements is not None:
        assert handler.compare(outputs, turned).agreements.max() < 0.5


def test_objects_agree_by_class_and_place(predictors):
    """One of the three objects above the threshold is moved by half its width, and one has another class."""
    predictor = predictors["detection"]
    outputs = predictor.run(np.zeros((1, 3, 60, 80), np.float32))
    moved = outputs | {"boxes": outputs["boxes"].copy(), "labels": outputs["labels"].copy()}
    moved["boxes"][0] += [15, 0, 15, 0]
    assert predictor.handler.compare(outputs, moved).agreements.tolist() == [2 / 3]
    moved["labels"][1] = 0
    found = predictor.handler.compare(outputs, moved)
    assert (found.agreements.tolist(), found.cosines.tolist()) == ([1 / 3], [pytest.approx(1)])
    nothing = outputs | {"scores": np.zeros_like(outputs["scores"])}
    assert predictor.handler.compare(outputs, nothing).cosines.tolist() == [0]
    assert predictor.handler.compare(nothing, nothing).agreements.tolist() == [1]


def test_networks_of_whole_images_crop_nothing(predictors):
    for task in ("segmentation", "detection"):
        assert predictors[task].handler.find_seen_region(300, 200) == (0, 0, 300, 200)
    left, top, width, height = predictors["features"].handler.find_seen_region(300, 200)
    assert 0 < left < left + width < 300
    assert 0 < top < top + height < 200


def test_a_card_shows_code_where_a_few_lines_are_enough(predictors):
    for task, predictor in predictors.items():
        code = "\n".join(predictor.handler.write_example_code())
        compile(code, "card", "exec")
        assert ("onnxruntime" in code) == (task != "detection")
    assert "longer one 80, at most 60 x 80" in predictors["detection"].handler.describe_input()


def test_a_threshold_leaves_out_objects(predictors):
    predictor = predictors["detection"]
    assert isinstance(predictor.handler, DetectionHandler)
    placed, inputs = predictor.handler.place(Image.new("RGB", (160, 120)))
    outputs = predictor.run(inputs)
    assert len(predictor.handler.find_objects(outputs, placed)) == len(DETECTED)
    (likeliest,) = predictor.handler.find_objects(outputs, placed, 0.7)
    np.testing.assert_allclose(likeliest.box, DETECTED[0]["box"], atol=1e-4)


def test_the_shares_of_a_mask_are_those_of_its_pixels(predictors):
    predictor = predictors["segmentation"]
    assert isinstance(predictor.handler, SegmentationHandler)
    pixels = np.zeros((40, 50, 3), np.uint8)
    pixels[:, :10, 2] = 255
    pixels[:, 10:, 0] = 255
    labels = predictor.handler.segment(predictor, Image.fromarray(pixels))
    assert predictor.handler.measure_shares(labels) == [("red", 0.8), ("blue", 0.2)]
