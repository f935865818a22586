"""A range that is stated for deep images in training is repeated by the bundle, by ehm predict and by the server."""

import json
import urllib.request

import numpy as np
import pytest
import tifffile
from checkpoints import MEAN, STD, classifier
from PIL import Image
from serving import running

from ehm.config import DataConfig
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export import export
from ehm.deploy.predict.command import predict
from ehm.storage.checkpoint import find_value_range

ROWS, COLUMNS = np.mgrid[:50, :60]
BYTES = ((COLUMNS * 5 + ROWS * 3) % 256).astype(np.uint8)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """One classifier, trained with a stated range and without."""
    folder = tmp_path_factory.mktemp("range")
    plain = classifier(folder / "plain", (32, 32))
    stated = classifier(folder / "stated", (32, 32), data=DataConfig(mean=MEAN, std=STD, range=(0, 4080)))
    assert find_value_range(stated) == (0, 4080)
    assert find_value_range(plain) is None
    return export(plain, out=folder / "one"), export(stated, out=folder / "two")


@pytest.fixture
def files(tmp_path):
    """One picture in 8 bits, and in 12 bits of 16."""
    Image.fromarray(BYTES).save(tmp_path / "bytes.png")
    Image.fromarray(BYTES.astype(np.uint16) * 16).save(tmp_path / "deep.png")
    return tmp_path / "bytes.png", tmp_path / "deep.png"


def test_a_bundle_predicts_deep_images_as_the_training_saw_them(bundles, files):
    plain, stated = bundles
    assert Bundle.open(stated).manifest.preprocessing.value_range == (0, 4080)
    assert Bundle.open(plain).manifest.preprocessing.value_range is None
    shallow, deep = predict(stated, files)
    assert deep.classes == shallow.classes
    dark = predict(plain, files)
    assert dark[0].classes == shallow.classes
    assert dark[1].classes != shallow.classes


def test_a_server_does_so_too(bundles, files):
    answers = []
    with running([bundles[1]]) as (address, _):
        for file in files:
            url = f"http://{address}/v1/classify"
            request = urllib.request.Request(url, file.read_bytes(), {"Content-Type": "image/png"})
            with urllib.request.urlopen(request) as response:
                answers.append(json.load(response)["classes"])
    assert answers[0] == answers[1]


def test_missing_pixels_are_counted_for_each_file(bundles, tmp_path):
    values = (BYTES / 255).astype(np.float32) * 4080
    values[2, :7] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", values)
    (prediction,) = predict(bundles[1], tmp_path / "a.tif")
    assert prediction.as_dict()["missing_pixels"] == 7
    assert "7 pixels have no value in the file" in str(prediction)
    (refused,) = predict(bundles[0], tmp_path / "a.tif")
    assert "lie outside 0 to 1" in refused.error
    assert "data.range" in refused.error
