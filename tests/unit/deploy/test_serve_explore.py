"""The page's requests, on a hand-made network whose outputs are means of pixels: everything can be computed here."""

import base64
import io
import json
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from dense_bundles import detector_bundle, segmenter_bundle
from fastapi.testclient import TestClient
from mean_colours import OUTPUTS, index_of, multi_head
from PIL import Image

from ehm import masking
from ehm.deploy.bundle.preprocessing import find_seen_region
from ehm.deploy.predict.predictor import Predictor
from ehm.deploy.serve.http.app import create_app
from ehm.deploy.serve.inference.service import Service
from ehm.deploy.serve.routes import page
from ehm.deploy.serve.routes.neighbours import Index
from ehm.deploy.serve.routes.parts import take_apart, warm_up
from ehm.deploy.serve.settings import Settings
from ehm.errors import DataError

STATIC = Path(page.__file__).parents[1] / "static"


@pytest.fixture(scope="module")
def multi(tmp_path_factory):
    return multi_head(tmp_path_factory.mktemp("bundles") / "multi", *OUTPUTS)


@pytest.fixture(scope="module")
def folder(multi, tmp_path_factory):
    return index_of(multi, tmp_path_factory.mktemp("index"))


@contextmanager
def serving(bundle, index=None, key=None):
    service = Service({bundle.name: bundle}, Settings(), key)
    images = Index(index) if index is not None else None
    with TestClient(create_app(service, images)) as client:
        client.portal.call(service.models.load_all)
        page.make_ready(service, images)
        yield client


@pytest.fixture(scope="module")
def client(multi, folder):
    with serving(multi, folder) as made:
        yield made


def halves(width=60, height=40):
    """An image whose left and right halves differ in colour and a little within."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 20, (height, width, 3)).astype(np.uint8)
    pixels[:, : width // 2, 0] += 200
    pixels[:, width // 2 :, 2] += 200
    return Image.fromarray(pixels)


def png(image, **options):
    content = io.BytesIO()
    image.save(content, "PNG", **options)
    return content.getvalue()


def test_neighbours_are_those_of_largest_cosine(client, multi, folder):
    predictor = Predictor(multi)
    sought = predictor.run(predictor.prepare(halves())[None])["features"][0].astype(float)
    rows = np.load(folder / "features.npy").astype(float)
    cosines = [float(row @ sought) / float(np.sqrt((row @ row) * (sought @ sought))) for row in rows]
    expected = sorted(range(len(rows)), key=lambda number: -cosines[number])[:4]
    reply = client.post("/v1/neighbours?top=4", content=png(halves()))
    assert reply.status_code == 200
    found = reply.json()["neighbours"]
    assert [entry["number"] for entry in found] == expected
    assert [entry["similarity"] for entry in found] == pytest.approx([cosines[number] for number in expected], abs=1e-5)


def test_images_of_the_index_go_by_number_and_without_their_common_folder(client, folder):
    index = Index(folder)
    found = client.post("/v1/neighbours?top=100", content=png(halves())).json()["neighbours"]
    assert len(found) == len(index) == 10
    for entry in found:
        file = index.files[entry["number"]]
        assert entry["name"] == f"{file.parent.name}/{file.name}"
        reply = client.get(f"/v1/index/{entry['number']}")
        assert reply.headers["content-type"] == "image/jpeg"
        small = np.asarray(Image.open(io.BytesIO(reply.content)), float)
        assert abs(small - np.asarray(Image.open(file), float)).mean() < 6


@pytest.mark.parametrize(
    "path",
    [
        "/v1/index/-1",
        "/v1/index/10",
        "/v1/index/99999999999999999999999",
        "/v1/index/..%2f..%2fetc%2fpasswd",
        "/v1/index/%2fetc%2fpasswd",
        "/v1/index/0%00",
        "/static/..%2fexplore.py",
        "/static/../explore.py",
        "/static/%2e%2e/explore.py",
        "/static/explore.py",
        "/static/",
    ],
)
def test_nothing_but_the_index_and_the_page_is_given_out(client, path):
    assert client.get(path).status_code in (400, 404, 422)


def test_a_file_that_has_gone_is_said(multi, folder, tmp_path, caplog):
    (tmp_path / "features.npy").write_bytes((folder / "features.npy").read_bytes())
    lines = [json.dumps({"image": f"gone/{number}.png"}) + "\n" for number in range(10)]
    (tmp_path / "predictions.jsonl").write_text("".join(lines))
    with serving(multi, tmp_path) as client:
        reply = client.get("/v1/index/3")
    (said,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert "10 of its 10 images cannot be found" in said
    assert (reply.status_code, reply.json()) == (404, {"error": "image 3 of the index cannot be read any more"})


def test_parts_are_those_of_the_hierarchy(client, multi):
    reply = client.post("/v1/parts", content=png(halves())).json()
    assert reply["grid"] == [4, 6]
    predictor = Predictor(multi)
    patches = predictor.run(predictor.prepare(halves())[None])["patches"]
    rows = patches.reshape(1, 3, 24).swapaxes(1, 2)
    tree = masking.build_hierarchy(masking.cosine_similarity(rows))
    assert reply["height"] == tree.height[0]
    assert [level["level"] for level in reply["levels"]][:: len(reply["levels"]) - 1] == [1, reply["height"]]
    for level in reply["levels"]:
        ids = np.array(level["ids"])
        assert (ids == tree.cut(level["level"])[0]).all()
        assert level["parts"] == len(set(level["ids"]))
        if level["level"] < reply["height"]:  # no part holds patches of both halves, but for columns on the seam
            grid = ids.reshape(4, 6)
            assert not set(grid[:, :3].ravel()) & set(grid[:, 3:].ravel())
    assert [level["parts"] for level in reply["levels"]][:: len(reply["levels"]) - 1] == [24, 1]
    assert len(reply["colours"]) == 2 * 24 - 1
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in reply["colours"])


def test_a_chain_is_given_in_a_few_levels():
    number = np.arange(64)
    cosine = np.linspace(0.9, 0.1, 64)[np.maximum(number[:, None], number)]  # each patch is less like all before it
    np.fill_diagonal(cosine, 1)
    found = take_apart(np.linalg.cholesky(cosine).T.reshape(64, 8, 8).astype(np.float32))
    assert found.height > 40
    assert len(found.levels) == 16
    assert (found.levels[0].parts, found.levels[-1].parts) == (64, 1)


@pytest.mark.parametrize("patches", [np.ones((3, 1, 1)), np.full((3, 2, 2), np.nan)])
def test_features_that_make_no_parts_are_said(patches):
    with pytest.raises(DataError, match="make no parts"):
        take_apart(patches.astype(np.float32))


def test_warming_up_compiles_what_requests_run():
    from ehm.masking import _chain, _draw

    warm_up()
    before = len(_chain.build_trees.signatures), len(_draw.cut_trees.signatures)
    take_apart(np.random.default_rng(0).random((5, 6, 7), np.float32))
    assert (len(_chain.build_trees.signatures), len(_draw.cut_trees.signatures)) == before


@pytest.mark.parametrize(("width", "height"), [(60, 40), (300, 300), (500, 100), (100, 500), (24, 16), (3, 7)])
def test_the_region_is_what_the_model_sees(multi, width, height):
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    image = Image.fromarray(ramp)
    predictor = Predictor(multi)
    left, top, wide, high = find_seen_region(width, height, predictor.manifest.preprocessing)
    assert left >= 0
    assert top >= 0
    assert left + wide <= width + 1e-6
    assert top + high <= height + 1e-6
    cut = image.resize((24, 16), Image.Resampling.BICUBIC, box=(left, top, left + wide, min(top + high, height)))
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.5])
    seen = (predictor.prepare(image).transpose(1, 2, 0) * std + mean) * 255
    assert abs(seen - np.asarray(cut, float)).mean() < 2


def test_the_view_is_upright_and_of_the_size_that_the_image_has(client):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    reply = client.post("/v1/view", content=png(halves(2000, 100), exif=exif)).json()
    assert reply["size"] == [100, 2000]
    head, _, code = reply["preview"].partition(",")
    assert head == "data:image/jpeg;base64"
    preview = Image.open(io.BytesIO(base64.b64decode(code)))
    # the region is 100 / 27 * 24 pixels wide, and thrice as much is shown, in the middle
    assert reply["shown"] == [0, 1000 - 267 // 2 - 1, 100, 267]
    assert preview.size == (100, 267)
    assert np.asarray(preview)[:120, :, 0].mean() > 150  # what was left is above
    assert np.asarray(preview)[147:, :, 0].mean() < 50
    assert client.post("/v1/view", content=png(halves(90, 60))).json()["shown"] == [0, 0, 90, 60]


@pytest.mark.parametrize("path", ["/v1/view", "/v1/parts", "/v1/neighbours"])
def test_bad_requests_get_a_sentence(client, path):
    reply = client.post(path, content=b"not an image")
    assert 400 <= reply.status_code < 500
    assert "not an image" in reply.json()["error"]
    reply = client.post(f"{path}?model=none", content=png(halves()))
    assert reply.status_code == 404
    assert "none" in reply.json()["error"]


def test_what_a_bundle_does_not_give_is_said(folder, tmp_path):
    plain = multi_head(tmp_path / "plain", "logits")
    with serving(plain) as client:
        assert client.get("/").status_code == 200
        facts = {"name": "plain", "task": "classification", "image_size": [16, 24], "outputs": ["logits"], "labels": 3}
        assert client.get("/v1/about").json() == {"models": [{**facts, "neighbours": False}], "index": 0}
        for path, advice in (("/v1/neighbours", "--index"), ("/v1/parts", "--head multi")):
            reply = client.post(path, content=png(halves()))
            assert reply.status_code in (400, 404)
            assert advice in reply.json()["error"]


@pytest.mark.parametrize("make", [detector_bundle, segmenter_bundle])
@pytest.mark.parametrize("size", [(160, 120), (90, 300)])
def test_detectors_and_segmenters_see_all_of_an_image(tmp_path, make, size):
    with serving(make(tmp_path / "dense")) as client:
        seen = client.post("/v1/view", content=png(halves(*size))).json()
    assert seen["region"] == [0, 0, *size]
    assert seen["shown"] == [0, 0, *size]


def test_the_page_allows_nothing_from_elsewhere(client):
    names = set()
    for path in ("/", *page.STATIC):
        reply = client.get(path)
        assert reply.status_code == 200
        policy = dict(rule.split(" ", 1) for rule in reply.headers["content-security-policy"].split("; "))
        assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
        assert reply.headers["x-content-type-options"] == "nosniff"
        names.add(reply.headers["content-type"].partition(";")[0])
        assert "https:" not in reply.text
        assert not re.search(r"http:(?!//www\.w3\.org/2000/svg)", reply.text)
    assert names == {"text/html", "text/css", "text/javascript", "image/svg+xml"}
    assert {f"/static/{file.name}" for file in STATIC.iterdir()} - {"/static/index.html"} == set(page.STATIC)
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    script = "".join(file.read_text(encoding="utf-8") for file in STATIC.glob("*.js"))
    assert not re.search(r"<style|<script(?! type=\"module\" src)|\son\w+=|\sstyle=", html)
    assert not re.search("innerHTML|outerHTML|insertAdjacentHTML|document.write|eval|localStorage|cookie", script)
    used = set(re.findall(r'\bat\("([\w-]+)"\)', script))
    assert used <= set(re.findall(r'\bid="([\w-]+)"', html))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("features.npy", None, "missing"),
        ("predictions.jsonl", None, "missing"),
        ("features.npy", b"", "not an array"),
        ("features.npy", np.ones(10, np.float32), "images, features"),
        ("features.npy", np.ones((10, 3)), "float32"),
        ("features.npy", np.full((10, 3), np.nan, np.float32), "not finite"),
        ("features.npy", np.array([["text"]], object), "not an array"),
        ("features.npy", np.ones((9, 3), np.float32), "9 rows, predictions.jsonl 10 images"),
        ("predictions.jsonl", b'{"image": "a.png"}\n[]\n', "line 2"),
        ("predictions.jsonl", b'{"name": "a.png"}\n', "line 1"),
        ("predictions.jsonl", b"\xff\n", "line 1"),
    ],
)
def test_what_is_not_an_index_is_one_sentence(folder, tmp_path, name, content, reason):
    for file in ("features.npy", "predictions.jsonl"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    if content is None:
        (tmp_path / name).unlink()
    elif isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.save(tmp_path / name, content, allow_pickle=True)
    with pytest.raises(DataError, match=reason) as caught:
        Index(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_index_of_another_model_is_refused(multi, folder, tmp_path):
    (tmp_path / "predictions.jsonl").write_bytes((folder / "predictions.jsonl").read_bytes())
    np.save(tmp_path / "features.npy", np.ones((10, 4), np.float32))
    with pytest.raises(DataError, match="--index: its features have 4 numbers"), serving(multi, tmp_path):
        pass


def test_with_an_api_key_the_page_is_open_and_what_it_asks_is_not(multi, folder):
    with serving(multi, folder, "secret") as client:
        assert {client.get(path).status_code for path in ("/", *page.STATIC)} == {200}
        assert {client.get(path).status_code for path in ("/v1/about", "/v1/index/0")} == {401}
        assert client.post("/v1/parts", content=png(halves())).status_code == 401
        allowed = {"Authorization": "Bearer secret"}
        assert {client.get(path, headers=allowed).status_code for path in ("/v1/about", "/v1/index/0")} == {200}
