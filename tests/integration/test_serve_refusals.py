"""Requests that a server refuses: each gets its status and one sentence, also without the key or from another site."""

import struct
import zlib

import pytest
from server_requests import make_image_file, send_request
from serving import running

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"


def make_empty_png(width, height):
    """Return a PNG that gives a size in its header and has next to no data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "sentence"),
    [
        ("GET", "/nothing", None, {}, 404, "there is nothing at /nothing"),
        ("GET", "/v1/classify", None, {}, 405, "/v1/classify takes POST, not GET"),
        ("GET", "/v2/", None, {}, 404, "there is nothing at /v2/; try it without the / at its end"),
        ("GET", "/v2/models/both/config", None, {}, 404, "/v2/models/both has inputs and outputs"),
        ("GET", "/v2/models/both/stats", None, {}, 404, "/metrics has such figures"),
        ("GET", "/v2/models/none/stats", None, {}, 404, "there is no model 'none'"),
        ("POST", "/v1/classify?model=x", b"", {}, 404, "there is no model 'x'; there are both"),
        ("GET", "/v2/models/both/versions/9", None, {}, 404, "both has the version"),
        ("POST", "/v1/classify?top=0", make_image_file(), {}, 422, "top: "),
        ("POST", "/v1/classify", b"", {}, 422, "the image is empty"),
        ("POST", "/v1/classify", b"text", {}, 422, "not an image of a known format"),
        ("POST", "/v1/classify", POSTSCRIPT, {}, 422, "not an image of a known"),
        ("POST", "/v1/classify", make_image_file()[:-40], {}, 422, "the image"),
        ("POST", "/v1/classify", make_empty_png(60_000, 60_000), {}, 413, "more than 40000 pixels"),
        ("POST", "/v1/classify", make_empty_png(300, 200), {}, 413, "300 x 200 pixels, more than 40000"),
        ("POST", "/v1/classify", make_image_file(size=(3000, 1)), {}, 413, "more than 40000 pixels once resized"),
        ("POST", "/v1/classify", bytes(200_001), {}, 413, "200001 bytes, more than 200000"),
        ("POST", "/v1/classify", iter([bytes(150_000)] * 2), {}, 413, "more than 200000 bytes"),
        ("POST", "/v1/classify", b"{}", {"content-type": "application/json"}, 415, "expected an image file"),
        ("POST", "/v1/classify", b"x", {"content-type": "multipart/form-data"}, 400, "form cannot be read"),
        ("POST", "/v1/embed", b"x", {"content-encoding": "gzip"}, 415, "send the body as it is"),
        ("POST", "/v2/models/both/infer", b"{", {}, 400, "not JSON"),
        ("POST", "/v2/models/both/infer", b"{}", {"inference-header-content-length": "-1"}, 400, "number of bytes"),
        ("POST", "/v2/repository/index", b"[]", {}, 400, "a JSON object"),
        ("POST", "/v2/repository/models/both/load", b"", {}, 403, "--model-control"),
        ("POST", "/v2/repository/models/both/unload", b"", {}, 403, "--model-control"),
    ],
)
def test_each_limit_is_a_status_and_a_sentence(limited_server, method, path, body, headers, status, sentence):
    response = send_request(limited_server, method, path, body, headers)
    assert (response.status, list(response.body)) == (status, ["error"])
    assert sentence in response.body["error"]


def test_a_page_of_another_site_unloads_no_model(served_bundle):
    """A browser posts there without asking, from any page; it says so by Origin, and no page knows the key."""
    page = {"origin": "http://elsewhere.example"}
    path = "/v2/repository/models/both/"
    with running([served_bundle], model_control=True) as (address, service):
        for action in ("unload", "load"):
            status, _, answer = send_request(address, "POST", path + action, b"", page)
            assert (status, answer["error"][:19]) == (403, "a web page (Origin)")
        assert list(service.models) == ["both"]
        assert send_request(address, "POST", path + "unload", b"").status == 200
    with running([served_bundle], model_control=True, key="secret") as (address, _):
        assert send_request(address, "POST", path + "unload", b"", page).status == 401
        assert send_request(address, "POST", path + "unload", b"", page | {"x-api-key": "secret"}).status == 200


def test_the_api_key_guards_all_but_health_and_metrics(served_bundle):
    with running([served_bundle], key="secret") as (address, _):
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/docs", "/openapi.json"):
            assert send_request(address, "GET", path).status == 200
        for headers in ({}, {"x-api-key": "Secret"}, {"authorization": "Basic secret"}, {"x-api-key": "sécret"}):
            response = send_request(address, "POST", "/v1/classify", make_image_file(), headers)
            assert (response.status, list(response.body)) == (401, ["error"])
            assert response.headers["www-authenticate"] == "Bearer"
        for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "secret"}):
            assert send_request(address, "POST", "/v1/classify", make_image_file(), headers).status == 200
