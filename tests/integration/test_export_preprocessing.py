"""A graph that takes bytes of any size: its resize, crop and normalisation against Pillow's and torchvision's."""

import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoints import LABELS, MEAN, STD, classifier
from onnx import TensorProto, helper
from PIL import Image
from torchvision import transforms

from ehm.data.eval_transform import EvalTransform
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Preprocessing
from ehm.deploy.export import export
from ehm.deploy.export.graphs.preprocessing import take_bytes
from ehm.deploy.predict.command import predict
from ehm.deploy.predict.predictor import Predictor

SIZES = [(54, 73), (60, 80), (61, 81), (30, 40), (9, 7), (300, 300), (480, 640), (320, 240), (47, 63), (40, 300)]
SIZES += [(333, 50), (257, 191), (1000, 37), (1, 1), (2, 90), (540, 960)]
"""Heights and widths: the cover itself, smaller and larger, odd, tall, wide, and nearly nothing."""
WANTED = [(48, 64), (64, 48), (33, 33), (96, 96), (224, 224), (240, 256)]


def pictures(height, width):
    """Noise, which shows every rounding, and a smooth picture."""
    rng = np.random.default_rng(height * 10_000 + width)
    yield Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    yield Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((width, height), 3)


def pixels_of(size):
    """A session that gives back, in grey levels, what the network would be given."""
    identity = helper.make_node("Identity", ["images"], ["pixels"])
    shape = ["batch", 3, *size]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("images", "pixels")]
    graph = helper.make_graph([identity], "pixels", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    rule = Preprocessing(image_size=size, cover=EvalTransform(size).cover, mean=(0, 0, 0), std=(1 / 255,) * 3)
    take_bytes(model, rule)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def along_the_width_first(image, wanted):
    """Resize by Pillow in two steps; in one it takes the height of tall images first, which rounds otherwise."""
    (height, width), (cover_h, cover_w) = wanted, EvalTransform(wanted).cover
    size = max(cover_w, image.width * cover_h // image.height), max(cover_h, image.height * cover_w // image.width)
    image = image.resize((size[0], image.height), 3).resize(size, 3)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return np.asarray(image.crop((left, top, left + width, top + height))).astype(int)


@pytest.mark.parametrize("wanted", WANTED)
def test_pixels_are_pillows_within_the_documented_bound(wanted):
    session = pixels_of(wanted)
    different = count = 0
    for height, width in SIZES:
        for image, tall in zip(pictures(height, width), (32, 2), strict=True):
            (found,) = session.run(None, {"images": np.asarray(image)[None]})
            assert found.shape == (1, 3, *wanted)
            found = found[0].transpose(1, 2, 0)
            assert np.abs(found - EvalTransform(wanted)(image)).max() <= (tall if height > 1.5 * width else 1)
            difference = np.abs(found - along_the_width_first(image, wanted))
            assert difference.max() <= 1, (height, width)
            different += (difference > 0).sum()
            count += difference.size
    assert different / count < 1e-3


@pytest.mark.parametrize(("height", "width"), [(2, 30_000), (30_001, 3), (1, 5_000)])
def test_of_a_very_long_image_the_same_part_is_taken_before_it_is_enlarged(height, width):
    session = pixels_of((33, 33))
    for image in pictures(height, width):
        (found,) = session.run(None, {"images": np.asarray(image)[None]})
        difference = np.abs(found[0].transpose(1, 2, 0) - EvalTransform((33, 33))(image))
        assert difference.max() <= 32  # the order of the two passes, as above
        assert difference.mean() < 0.1  # of noise that is moved by one pixel it is 2.6 and more


@pytest.mark.parametrize("side", [96, 224])
def test_pixels_are_torchvisions(side):
    cover = int(side / 0.875)
    prepare = transforms.Compose([transforms.Resize(cover, 3), transforms.CenterCrop(side), transforms.PILToTensor()])
    session = pixels_of((side, side))
    for height, width in ((300, 411), (123, 100)):
        for image in pictures(height, width):
            (found,) = session.run(None, {"images": np.asarray(image)[None]})
            assert np.abs(found[0] - prepare(image).numpy().astype(int)).max() <= 1


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The same classifier with and without preprocessing in the graph."""
    folder = tmp_path_factory.mktemp("bundles")
    path = classifier(folder, (48, 64))
    plain = export(path, head="multi", out=folder / "plain")
    return plain, export(path, head="multi", out=folder / "bytes", overrides=["preprocessing=true"])


def test_the_manifest_says_what_goes_in(bundles):
    manifest = Bundle.open(bundles[1]).manifest
    assert (manifest.input.dtype, manifest.input.layout) == ("uint8", "NHWC")
    assert manifest.input.shape == ("batch", "height", "width", 3)
    assert manifest.preprocessing.in_graph
    assert manifest.models["float32"].opset == 18
    assert (manifest.preprocessing.mean, manifest.preprocessing.std) == (MEAN, STD)
    assert 0 < manifest.parity.max_abs < 1e-4
    assert not Bundle.open(bundles[0]).manifest.preprocessing.in_graph


def test_outputs_are_those_of_pillow_within_the_documented_bound(bundles, tmp_path):
    """Files of several sizes, of which those of one size are a batch."""
    files = []
    for index, (height, width) in enumerate([*SIZES, SIZES[1], SIZES[2]]):
        for name, image in zip(("noise", "smooth"), pictures(height, width), strict=True):
            files.append(tmp_path / f"{index:02}-{name}.png")
            image.save(files[-1])
    expected, found = (predict(bundle, [*files, tmp_path / "missing.png"], top=3) for bundle in bundles)
    assert [prediction.image for prediction in found] == [prediction.image for prediction in expected]
    assert found[-1].error is not None
    for one, two in zip(expected[:-1], found[:-1], strict=True):
        assert two.features is not None
        cosine = one.features @ two.features / np.linalg.norm(one.features) / np.linalg.norm(two.features)
        assert cosine > 0.9999
        shares = [dict(prediction.classes) for prediction in (one, two)]
        assert max(abs(shares[0][label] - shares[1][label]) for label in LABELS) < 0.005


def test_bytes_go_in_as_they_are(bundles):
    predictor = Predictor(bundles[1])
    (image, _) = pictures(70, 90)
    assert np.array_equal(predictor.prepare(image), np.asarray(image))
