"""Tiny bundles, and a server around them in a thread of this process."""

import asyncio
import socket
import threading
from contextlib import contextmanager

import numpy as np
import onnx
import uvicorn
from onnx import TensorProto, helper

from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Manifest
from ehm.deploy.bundle.staging import stage_bundle
from ehm.deploy.serve.http.server import configure_server
from ehm.deploy.serve.inference.models import name_bundles
from ehm.deploy.serve.inference.service import Service
from ehm.deploy.serve.settings import Settings

LABELS = ("red", "green", "blue")
SIZE = (8, 12)


def means_bundle(path, outputs=("logits", "features"), scale=1.0, in_graph=False, plain=True, size=SIZE):
    """Make a bundle whose every output is ``scale`` times the means of the three channels.

    With ``in_graph`` the network takes bytes of any size and resizes and normalises them itself. ``plain`` images are
    not normalised. ``size`` is the height and width of the network's input; images are resized to SIZE in any case.
    """
    channels = {"axes": [1, 2] if in_graph else [2, 3], "keepdims": 0}
    shape = ["batch", "height", "width", 3] if in_graph else ["batch", 3, *size]
    nodes = [helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("ReduceMean", ["numbers"], ["means"], **channels))
    nodes += [helper.make_node("Mul", ["means", "scale"], [name]) for name in outputs]
    kind = TensorProto.UINT8 if in_graph else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in outputs],
        [helper.make_tensor("scale", TensorProto.FLOAT, [], [scale])],
    )
    values = {
        "task": "classification" if "logits" in outputs else "features",
        "models": {"float32": {"file": "model.onnx", "opset": 17, "operators": {}}},
        "input": {
            "name": "images",
            "dtype": "uint8" if in_graph else "float32",
            "layout": "NHWC" if in_graph else "NCHW",
            "shape": shape,
        },
        "outputs": [{"name": name, "dtype": "float32", "layout": "NC", "shape": ["batch", 3]} for name in outputs],
        "preprocessing": {
            "in_graph": in_graph,
            "image_size": SIZE,
            "cover": [9, 13],
            "mean": (0, 0, 0) if plain else (0.5, 0.4, 0.3),
            "std": (1 / 255, 1 / 255, 1 / 255) if plain else (0.2, 0.25, 0.5),
        },
        "labels": LABELS if "logits" in outputs else (),
        "source": {"checkpoint": "run", "kind": "pretrain", "sha256": "0" * 64},
        "versions": {"ehm": "0"},
        "parity": {"reference": "", "runtime": "", "tolerance": 1e-4, "max_abs": 0, "cosine": 1, "cases": []},
    }
    with stage_bundle(path) as folder:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / "model.onnx")
        Bundle.seal(folder, Manifest.model_validate(values))
    return path


def picture(seed, batch=1):
    """Return random images (B, 3, H, W) as the bundles take them, and the means of their channels (B, 3)."""
    images = np.random.default_rng(seed).random((batch, 3, *SIZE), np.float32)
    return images, images.mean(axis=(2, 3), dtype=np.float64)


@contextmanager
def running(bundles, key=None, **settings):
    """Run a server on a free port and give ``(host:port, service)``; at the end it stops, and nothing of it stays."""
    service = Service(name_bundles(bundles), Settings.from_arguments(**settings), key)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(configure_server(service))
    ready = threading.Event()

    async def main():
        await service.models.load_all()
        watching = asyncio.ensure_future(service.models.watch())
        asyncio.get_running_loop().call_soon(ready.set)
        await server.serve(sockets=[listener])
        watching.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert ready.wait(30)
        yield "{}:{}".format(*listener.getsockname()), service
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive()
