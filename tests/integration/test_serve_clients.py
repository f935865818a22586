"""Clients that exist, as they are: tritonclient, waiting and asynchronous, and curl."""

import asyncio
import json
import shutil
import subprocess

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from PIL import Image
from server_requests import make_infer_body, send_request
from serving import LABELS, means_bundle, picture, running
from tritonclient.utils import InferenceServerException

from ehm.deploy.predict.command import predict


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "both": means_bundle(folder / "both"),
        "photos": means_bundle(folder / "photos", plain=False),
        "bytes": means_bundle(folder / "bytes", ["features"], in_graph=True),
    }


@pytest.fixture(scope="module")
def server(bundles):
    with running(bundles.values(), model_control=True) as (address, _):
        yield address


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server) as client:
        yield client


def tensor(images, binary=True, module=triton):
    made = module.InferInput("images", images.shape, "UINT8" if images.dtype == np.uint8 else "FP32")
    made.set_data_from_numpy(images, binary_data=binary)
    return made


def test_triton_reads_health_and_metadata(client, bundles):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("both")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata()["name"] == "ehm"
    found = client.get_model_metadata("both")
    assert found["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 8, 12]}]
    assert [output["name"] for output in found["outputs"]] == ["logits", "features"]
    sha = json.loads((bundles["both"] / "manifest.json").read_text())["files"]["model.onnx"]["sha256"]
    assert found["versions"] == [sha[:12]]
    assert client.is_model_ready("both", sha[:12])
    with pytest.raises(InferenceServerException, match="there is no model 'none'; there are both, photos, bytes"):
        client.get_model_metadata("none")


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_triton_infers_in_every_form(client, binary_in, binary_out):
    images, means = picture(0, batch=20)  # more than a batch
    outputs = None if binary_out is None else [triton.InferRequestedOutput("features", binary_data=binary_out)]
    result = client.infer(
        "both",
        [tensor(images, binary_in)],
        outputs=outputs,
        request_id="seven",
    )
    assert np.allclose(result.as_numpy("features"), means, atol=1e-5)
    assert result.get_response()["id"] == "seven"
    assert (result.as_numpy("logits") is None) == (binary_out is not None)


def test_triton_classifies(client):
    images, means = picture(1, batch=3)
    for binary in (True, False):
        outputs = [triton.InferRequestedOutput("logits", binary_data=binary, class_count=2)]
        found = client.infer("both", [tensor(images)], outputs=outputs).as_numpy("logits")
        assert found.shape == (3, 2)
        for row, expected in zip(found, means, strict=True):
            for text, index in zip(row, np.argsort(-expected), strict=False):
                value, place, label = (text.decode() if binary else text).split(":")
                assert (int(place), label) == (index, LABELS[index])
                assert abs(float(value) - expected[index]) < 1e-5


def test_triton_sends_bytes_of_any_size(client):
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    for binary in (True, False):
        found = client.infer("bytes", [tensor(images, binary)]).as_numpy("features")
        assert np.allclose(found, images.mean(axis=(1, 2)), atol=1e-3)


def test_triton_hears_what_is_wrong(client):
    with pytest.raises(InferenceServerException, match=r"expected \[-1, 3, 8, 12\]") as refused:
        client.infer("both", [tensor(np.zeros((1, 3, 4, 4), np.float32))])
    assert refused.value.status() == "400"
    with pytest.raises(InferenceServerException, match="the deadline passed") as late:
        client.infer("both", [tensor(picture(0)[0])], timeout=1)
    assert late.value.status() == "504"


def test_triton_unloads_and_loads(client):
    client.unload_model("bytes")
    assert not client.is_model_ready("bytes")
    states = {model["name"]: model["state"] for model in client.get_model_repository_index()}
    assert states == {"both": "READY", "photos": "READY", "bytes": "UNAVAILABLE"}
    assert client.is_server_ready()
    client.load_model("bytes")
    assert client.is_model_ready("bytes")
    with pytest.raises(InferenceServerException, match="expected none"):
        client.load_model("bytes", config="{}")
    with pytest.raises(InferenceServerException, match="there is no model 'none'"):
        client.load_model("none")


@pytest.mark.parametrize(
    ("path", "body"), [("index", b'{"ready": null}'), ("models/both/load", b'{"parameters": null}')]
)
def test_null_options_are_those_that_are_not_set(server, path, body):
    assert send_request(server, "POST", f"/v2/repository/{path}", body).status == 200


def test_tensors_are_answered_as_they_are_whatever_codings_the_client_takes(server):
    codings = {"accept-encoding": "gzip, deflate"}
    response = send_request(server, "POST", "/v2/models/both/infer", make_infer_body(), codings)
    assert response.headers["content-encoding"] is None
    assert response.body["model_name"] == "both"


def test_triton_asks_many_things_at_once(server):
    async def main():
        async with triton_aio.InferenceServerClient(server) as client:

            async def ask(seed):
                images, means = picture(seed, batch=1 + seed % 4)
                result = await client.infer(
                    "both",
                    [tensor(images, module=triton_aio)],
                    request_id=str(seed),
                )
                assert result.get_response()["id"] == str(seed)
                assert np.allclose(result.as_numpy("logits"), means, atol=1e-5)

            await asyncio.gather(*(ask(seed) for seed in range(60)))

    asyncio.run(main())


def curl(*arguments):
    found = shutil.which("curl")
    if found is None:
        pytest.skip("curl is not installed")
    done = subprocess.run([found, "-sS", *map(str, arguments)], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.jpg"
    corners = np.random.default_rng(3).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(corners).resize((400, 300), Image.Resampling.BICUBIC).save(path)
    return path


def test_curl_gets_what_ehm_predict_says(server, bundles, photo):
    url = f"http://{server}/v1"
    expected = predict(bundles["photos"], photo, top=2)[0].as_dict()["classes"]
    for sent in (["--data-binary", f"@{photo}"], ["-F", f"image=@{photo}"], ["-T", photo, "-X", "POST"]):
        found = curl(*sent, f"{url}/classify?model=photos&top=2")
        assert [each["label"] for each in found["classes"]] == [each["label"] for each in expected]
        shares = [[each["probability"] for each in classes] for classes in (found["classes"], expected)]
        assert np.allclose(*shares, atol=1e-6)
        assert (found["model"], found.get("image")) == ("photos", "photo.jpg" if "-F" in sent else None)
    found = curl("--data-binary", f"@{photo}", f"{url}/embed?model=photos")
    means = np.asarray(Image.open(photo).resize((13, 9), Image.Resampling.BICUBIC).crop((0, 0, 12, 8))) / 255
    normalised = (means.mean(axis=(0, 1)) - (0.5, 0.4, 0.3)) / (0.2, 0.25, 0.5)
    assert np.allclose(found["features"], normalised, atol=1e-3)
    assert "classes" not in found


def test_curl_speaks_the_protocol(server):
    images, means = picture(5)
    tensor = {"name": "images", "shape": [1, 3, 8, 12], "datatype": "FP32", "data": images.tolist()}
    found = curl("-d", json.dumps({"inputs": [tensor]}), f"http://{server}/v2/models/both/infer")
    assert np.allclose(found["outputs"][0]["data"], means[0], atol=1e-5)
    assert curl(f"http://{server}/v2/health/ready") == {"ready": True}
    assert curl("-d", "{}", f"http://{server}/v1/classify?model=none") == {
        "error": "there is no model 'none'; there are both, photos, bytes"
    }
