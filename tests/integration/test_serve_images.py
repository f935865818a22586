"""Images that a server takes: every format, damaged files, and how many pixels an image may have once it is resized."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from server_requests import encode_tensor, make_image_file, send_request
from serving import means_bundle, running
from slow_model import SlowModel

from ehm.deploy.serve.inference.images import FORMATS, read_image
from ehm.errors import RequestError

IMAGES = [
    make_image_file("PNG"),
    make_image_file("JPEG"),
    make_image_file("GIF"),
    make_image_file("WEBP"),
    make_image_file("TIFF"),
    make_image_file("BMP"),
    make_image_file("PNG", (9, 9), exif=b"x"),
]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind):
    read = read_image(make_image_file(kind), 40_000)
    assert (read.mode, read.size) == ("RGB", (40, 30))


def test_formats_that_start_programs_are_not_even_tried(monkeypatch):
    """Pillow gives PostScript to Ghostscript."""
    tried = []
    for kind in set(Image.OPEN) - set(FORMATS):
        monkeypatch.setitem(Image.OPEN, kind, (lambda *arguments: tried.append(arguments), lambda prefix: True))
    with pytest.raises(RequestError, match="not an image of a known format"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 40_000)
    assert tried == []


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(IMAGES),
    st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=6)), max_size=4),
    st.integers(1, 10_000),
)
def test_mutated_files_are_read_or_refused(content, changes, length):
    mutated = bytearray(content)
    for position, new in changes:
        start = position % len(mutated)
        mutated[start : start + len(new)] = new
    pixels = 0
    status = 200
    try:
        image = read_image(bytes(mutated[:length]), 40_000)
        pixels = image.width * image.height
    except RequestError as refused:
        status = refused.status
    assert status in (200, 413, 422)
    assert pixels <= 40_000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(IMAGES), st.integers(0, 2000), st.binary(max_size=9), st.sampled_from(["classify", "embed"]))
def test_no_file_is_a_failure_of_the_server(limited_server, content, start, new, route):
    mutated = content[:start] + new + content[start + len(new) :]
    response = send_request(limited_server, "POST", f"/v1/{route}", mutated)
    assert response.status in (200, 413, 422), response.body


def test_a_tensor_that_the_graph_would_blow_up_is_413(tmp_path):
    """A line of 4,000 pixels, resized to cover 9 x 13, is 36,000 wide."""
    body = encode_tensor(np.zeros((1, 1, 4000, 3), np.uint8))
    for most, expected in ((400_000, 200), (300_000, 413)):
        with running([means_bundle(tmp_path / "m", in_graph=True)], max_pixels=most) as (address, _):
            assert send_request(address, "POST", "/v2/models/m/infer", body).status == expected


def test_no_more_images_run_together_than_the_graph_may_resize(tmp_path, monkeypatch):
    """The bound holds for a run, not for each image: twice 324,000 pixels fit."""
    slow = SlowModel(monkeypatch)
    pixels = np.broadcast_to(np.array([0, 90, 0], np.uint8), (3, 1, 4000, 3))
    with running([means_bundle(tmp_path / "m", in_graph=True)], max_pixels=700_000, threads=1) as (address, _):
        slow.batches.clear()
        response = send_request(address, "POST", "/v2/models/m/infer", encode_tensor(pixels))
        assert (response.status, slow.batches) == (200, [2, 1])
        output = response.body["outputs"][0]
        assert (output["shape"], output["data"]) == ([3, 3], [0, 90, 0] * 3)


def test_an_image_for_a_network_of_any_size_has_at_most_four_times_its_own_pixels(tmp_path):
    with running([means_bundle(tmp_path / "m", size=("height", "width"))]) as (address, _):
        for width, expected in ((4 * 12, 200), (4 * 12 + 1, 413)):
            body = encode_tensor(np.zeros((1, 3, 8, width), np.float32))
            response = send_request(address, "POST", "/v2/models/m/infer", body)
            assert response.status == expected
        assert response.body == {"error": "an image of 49 x 8 has more than 4 times the pixels of 12 x 8"}
