"""Routes of a server: what its OpenAPI description says of them, HEAD, and inference for routes that build on it."""

import asyncio
import contextlib
import http.client
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from server_requests import send_request
from serving import picture, running

from ehm.errors import RequestError


def test_schemathesis_finds_no_failure(limited_server, tmp_path):
    """From our own OpenAPI description: no 5xx, no answer that it does not describe, no wrong request accepted."""
    schema = send_request(limited_server, "GET", "/openapi.json").body
    schema["paths"] = {path: methods for path, methods in schema["paths"].items() if "{version}" not in path}
    for methods in schema["paths"].values():
        for route in methods.values():
            for parameter in route.get("parameters", ()):
                if parameter["name"] == "model":  # or it would hardly ever get past the 404
                    parameter["schema"] = {"type": "string", "enum": ["both"]}
    (tmp_path / "openapi.json").write_text(json.dumps(schema))
    command = [Path(sys.executable).parent / "schemathesis", "run", tmp_path / "openapi.json"]
    command += ["--url", f"http://{limited_server}", "--phases", "fuzzing", "--max-examples", "5", "--workers", "2"]
    command += ["--exclude-checks", "positive_data_acceptance", "--seed", "0", "--no-color"]
    command += ["--suppress-health-check", "too_slow"]  # which depends on what else the machine does
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_description_has_names_answers_and_the_key(served_bundle):
    operations = {}
    for key in (None, "secret"):
        with running([served_bundle], key=key) as (address, _):
            schema = send_request(address, "GET", "/openapi.json").body
        for path, methods in schema["paths"].items():
            for operation in methods.values():
                asked = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"}
                assert asked <= ({"model", "top", "png", "masks", "score"} if path.startswith("/v1/") else set())
                content = operation["responses"]["200"].get("content", {})
                assert all(kind["schema"] for kind in content.values())
                assert operation["operationId"] not in operations.setdefault(key, set())
                operations[key].add(operation["operationId"])
        versioned = schema["paths"]["/v2/models/{model}/versions/{version}"]["get"]
        assert [(each["name"], each["in"]) for each in versioned["parameters"]] == [
            ("model", "path"),
            ("version", "path"),
        ]
        assert schema.get("security") == (None if key is None else [{"bearer": []}, {"key": []}])
        assert schema["paths"]["/v2/health/live"]["get"].get("security") == (None if key is None else [])
    assert schema["components"]["securitySchemes"].keys() == {"bearer", "key"}
    assert {"model_infer", "model_infer_of_version", "classify"} < operations[None] == operations["secret"]


def test_the_documentation_needs_no_network(limited_server):
    page = send_request(limited_server, "GET", "/docs").body.decode()
    assert "POST /v2/models/{model}/infer" in page
    assert "://" not in page


@pytest.mark.parametrize("path", ["/", "/v2/health/live", "/v2/health/ready", "/static/page.js"])
def test_head_is_get_without_a_body_where_probes_ask(limited_server, path):
    with contextlib.closing(http.client.HTTPConnection(limited_server, timeout=30)) as connection:
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
        connection.request("GET", path)  # on the same connection, where a body would be in the way
        assert int(answer.headers["content-length"]) == len(connection.getresponse().read())


def test_infer_is_there_for_other_routes(served_bundle):
    """The page of the server builds on inference by name."""
    with running([served_bundle]) as (_, service):

        async def main():
            images, means = picture(3, batch=2)
            found = await service.infer("both", images, ["features"])
            assert list(found) == ["features"]
            assert np.allclose(found["features"], means, atol=1e-5)
            with pytest.raises(RequestError, match="no output 'x', only logits, features"):
                await service.infer("both", images, ["x"])

        assert list(service.models) == ["both"]
        asyncio.run(main())
