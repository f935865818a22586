"""Requests to a server of tests, and the bodies of such requests."""

import contextlib
import http.client
import json
import socket
from email.message import Message
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from serving import picture

DATATYPES = {"float32": "FP32", "uint8": "UINT8", "uint16": "UINT16"}
"""The Open Inference Protocol's names for types of NumPy."""


class Response(NamedTuple):
    status: int
    headers: Message
    body: Any
    """Bytes; of JSON, the value that it stands for."""


def send_request(address, method, path, body=None, headers=None):
    """Make one request on a connection of its own; returns a Response."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
    if answer.headers["content-type"] == "application/json":
        content = json.loads(content)
    return Response(answer.status, answer.headers, content)


def connect(address):
    """Open a connection for what no HTTP client would send."""
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def encode_tensor(images, **request):
    """Return the body of an inference request for images as the network takes them; ``request`` are further keys."""
    datatype = DATATYPES[images.dtype.name]
    tensor = {"name": "images", "shape": images.shape, "datatype": datatype, "data": images.ravel().tolist()}
    return json.dumps({"inputs": [tensor], **request}).encode()


def make_infer_body(seed=0, batch=1, **request):
    """Return the body of an inference request for random images; ``request`` are further keys."""
    images, _ = picture(seed, batch)
    return encode_tensor(images, **request)


def make_image_file(kind="PNG", size=(40, 30), **options):
    """Return a smooth picture in a format of Pillow; ``size`` is (width, height)."""
    corners = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8))
    content = BytesIO()
    corners.resize(size).save(content, kind, **options)
    return content.getvalue()
