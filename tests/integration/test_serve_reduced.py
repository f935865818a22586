"""Large photographs are decoded at a reduced size by the server and by predict alike, close to what all pixels give."""

import numpy as np
import pytest
from PIL import Image
from server_requests import send_request
from serving import means_bundle, running
from sklearn.datasets import load_sample_images

from ehm.data.decoding.decode import decode_image
from ehm.deploy.predict.command import predict
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.serve.inference import images as serving_images


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    file = tmp_path_factory.mktemp("photographs") / "china.jpg"
    Image.fromarray(load_sample_images().images[0]).crop((0, 0, 640, 424)).save(file, quality=90)
    return file


@pytest.fixture
def sizes(monkeypatch):
    """Sizes of the images that were decoded, as (width, height)."""
    sizes = []

    def decode_and_note(*arguments, **options):
        image = decode_image(*arguments, **options)
        sizes.append(image.size)
        return image

    monkeypatch.setattr(serving_images, "decode_image", decode_and_note)
    monkeypatch.setattr("ehm.deploy.predict.predictor.decode_image", decode_and_note)
    return sizes


def embed_file(address, file):
    return send_request(address, "POST", "/v1/embed", file.read_bytes()).body["features"]


def test_the_server_and_predict_agree_and_are_close_to_all_pixels(tmp_path, photograph, sizes):
    bundle = means_bundle(tmp_path / "both")
    with running([bundle]) as (address, _):
        served = embed_file(address, photograph)
    (predicted,) = predict(bundle, photograph)
    assert sizes == [(80, 53)] * 2
    assert served == predicted.features.tolist()
    predictor = Predictor(bundle)
    every = predictor.run(predictor.prepare(decode_image(photograph))[None], ["features"])["features"][0]
    assert np.abs(np.subtract(served, every)).max() < 0.75
    assert not np.array_equal(served, every)


def test_a_network_that_resizes_by_itself_gets_every_pixel(tmp_path, photograph, sizes):
    bundle = means_bundle(tmp_path / "bytes", ["features"], in_graph=True)
    with running([bundle]) as (address, _):
        served = embed_file(address, photograph)
    assert sizes == [(640, 424)]
    assert np.allclose(served, np.asarray(Image.open(photograph)).mean((0, 1)), atol=0.1)
