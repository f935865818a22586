"""Image files in forms, as browsers, curl and HTTP libraries send them."""

from io import BytesIO

import numpy as np
import pytest
import requests
from PIL import Image
from serving import means_bundle, running


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    with running([means_bundle(tmp_path_factory.mktemp("bundles") / "both")]) as (address, _):
        yield f"http://{address}/v1/classify"


@pytest.fixture(scope="module")
def photo():
    content = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("fields", "others"),
    [
        ({}, []),
        ({"comment": "of the roof", "user": "7"}, []),
        ({"submit": "Send"}, [("thumbnail", ("small.png", b"not an image"))]),
        ({f"field{number}": "x" for number in range(50)}, []),
    ],
)
def test_other_fields_of_a_form_change_nothing(classify, photo, fields, others):
    alone = requests.post(classify, data=photo, timeout=30).json()
    answer = requests.post(classify, data=fields, files=[("image", ("roof.png", photo)), *others], timeout=30)
    assert answer.status_code == 200
    assert answer.json() == {**alone, "image": "roof.png"}


@pytest.mark.parametrize("name", ["top", "model"])
def test_a_parameter_in_a_form_is_refused_and_not_ignored(classify, photo, name):
    answer = requests.post(classify, data={name: "1"}, files={"image": photo}, timeout=30)
    sentence = f"the form field {name}: parameters go into the address, as ?{name}=VALUE"
    assert (answer.status_code, answer.json()) == (400, {"error": sentence})


def test_two_images_are_refused(classify, photo):
    answer = requests.post(classify, files=[("image", ("a.png", photo)), ("image", ("b.png", photo))], timeout=30)
    sentence = "the form has 2 fields named image; send one image a request"
    assert (answer.status_code, answer.json()) == (400, {"error": sentence})


def test_a_form_needs_the_field_image(classify, photo):
    assert requests.post(classify, files={"image": photo}, timeout=30).status_code == 200
    answer = requests.post(classify, files={"photo": photo}, timeout=30)
    assert (answer.status_code, answer.json()) == (400, {"error": "the form has no file in the field image"})


@pytest.mark.parametrize("fields", [{"image": "text"}, {"photo": "text"}])
def test_an_image_is_a_file(classify, fields):
    answer = requests.post(classify, data=fields, files={"other": b"x"}, timeout=30)
    assert (answer.status_code, answer.json()) == (400, {"error": "the form has no file in the field image"})


def test_a_form_of_too_many_fields_is_refused(classify, photo):
    fields = {f"field{number}": "x" for number in range(101)}
    answer = requests.post(classify, data=fields, files={"image": photo}, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("the form cannot be read: Too many fields")
