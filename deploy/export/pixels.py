"""Preprocessing as the first nodes of a graph: bytes of any size in, as :class:`ehm.data.transforms.EvalTransform`.

Shapes: B images; H x W pixels before, (cover) h x w after the resize, ``image_size`` behind the crop.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper

from ehm.deploy.bundle import Preprocessing
from ehm.deploy.export.nodes import BICUBIC, Nodes
from ehm.deploy.export.saving import BATCH

__all__ = ["take_bytes"]


def take_bytes(model: ModelProto, preprocessing: Preprocessing) -> None:
    """Let ``model``, of normalised (B, 3, H, W), take uint8 (B, H, W, 3) of any size; operator set 18 or later.

    ONNX Runtime resizes bytes as Pillow does, along the width first and with 8 bits between the two passes; its
    kernel's weights are float32, so that one value in some thousands is rounded to the next grey level. Of tall images
    Pillow 13 takes the height first, which rounds and clips other values: 2 grey levels in smooth ones.
    """
    (images,) = model.graph.input
    graph = Nodes()
    resized, size = _resize(graph, images.name, preprocessing)
    normalised = _normalise(graph, _crop(graph, resized, size, preprocessing), preprocessing)
    for node in model.graph.node:
        node.input[:] = [normalised if name == images.name else name for name in node.input]
    later = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*graph.nodes.values(), *later])
    graph.store_constants(model)
    images.CopyFrom(helper.make_tensor_value_info(images.name, TensorProto.UINT8, [BATCH, "height", "width", 3]))


def _resize(graph: Nodes, images: str, preprocessing: Preprocessing) -> tuple[str, str]:
    """Bytes (B, 3, h, w), proportions kept, that just cover; and (h, w).

    The side that does not decide is rounded down: h = max(cover h, H * cover w // W), and w alike.
    """
    cover_h, cover_w = preprocessing.cover
    planes = graph.node("Transpose", [images], "pixels/planes", perm=[0, 3, 1, 2])
    size = graph.node("Shape", [planes], "pixels/size", start=2)
    swapped = graph.node("Gather", [size, graph.integers("pixels.swap", 1, 0)], "pixels/swapped")
    scaled = graph.node("Mul", [size, graph.integers("pixels.across", cover_w, cover_h)], "pixels/scaled")
    other = graph.node("Div", [scaled, swapped], "pixels/other")
    covering = graph.node("Max", [other, graph.integers("pixels.cover", cover_h, cover_w)], "pixels/covering")
    return graph.node("Resize", [planes, "", "", covering], "pixels/resized", axes=[2, 3], **BICUBIC), covering


def _crop(graph: Nodes, resized: str, size: str, preprocessing: Preprocessing) -> str:
    """The centre (B, 3, *image_size); half a pixel is rounded to the even one, as Python does."""
    wanted = graph.integers("pixels.image_size", *preprocessing.image_size)
    rest = graph.node("Cast", [graph.node("Sub", [size, wanted], "pixels/rest")], "pixels/float", to=TensorProto.FLOAT)
    half = graph.node("Mul", [rest, graph.number("pixels.half", 0.5)], "pixels/half")
    start = graph.node("Cast", [graph.node("Round", [half], "pixels/round")], "pixels/start", to=TensorProto.INT64)
    end = graph.node("Add", [start, wanted], "pixels/end")
    cut = graph.node("Slice", [resized, start, end, graph.integers("pixels.axes", 2, 3)], "pixels/cut")
    return graph.node("Reshape", [cut, graph.integers("pixels.shape", 0, 3, *preprocessing.image_size)], "pixels/crop")


def _normalise(graph: Nodes, crop: str, preprocessing: Preprocessing) -> str:
    """Bytes -> (bytes - 255 mean) / (255 std)."""
    mean, std = (
        graph.constant(f"pixels.{name}", np.asarray(values, np.float32).reshape(3, 1, 1) * 255)
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std))
    )
    values = graph.node("Cast", [crop], "pixels/values", to=TensorProto.FLOAT)
    return graph.node("Div", [graph.node("Sub", [values, mean], "pixels/centred"), std], "pixels/normalised")
