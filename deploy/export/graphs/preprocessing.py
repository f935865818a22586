"""Preprocessing as the first nodes of a graph: bytes of any size in, as :class:`ehm.data.transforms.EvalTransform`.

Shapes: B images; H x W pixels before, h x w after the resize, ``image_size`` behind the crop.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper

from ehm.data.long_images import limit_sides
from ehm.deploy.bundle.manifest import Preprocessing
from ehm.deploy.export.graphs.nodes import BICUBIC, BILINEAR, Nodes
from ehm.deploy.export.graphs.saving import BATCH

__all__ = ["take_bytes"]

_FILTERS = {"bicubic": BICUBIC, "bilinear": BILINEAR}


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
    """Return the resized bytes (B, 3, h, w), and (h, w)."""
    if preprocessing.resize == "cover":
        images = _shorten(graph, images, preprocessing)
    planes = graph.node("Transpose", [images], "pixels/planes", perm=[0, 3, 1, 2])
    if preprocessing.resize == "squash":
        wanted = graph.integers("pixels.cover", *preprocessing.cover)
    elif preprocessing.rounding == "down":
        wanted = _covering_size(graph, planes, preprocessing)
    else:
        wanted = _nearest_size(graph, planes, preprocessing)
    # sizes of all four axes: ONNX Runtime 1.32 fails to load a linear Resize behind a Transpose that names its axes
    first = graph.node("Shape", [planes], "pixels/first_axes", end=2)
    sizes = graph.node("Concat", [first, wanted], "pixels/sizes", axis=0)
    resized = graph.node("Resize", [planes, "", "", sizes], "pixels/resized", **_FILTERS[preprocessing.interpolation])
    return resized, wanted


def _covering_size(graph: Nodes, planes: str, preprocessing: Preprocessing) -> str:
    """(h, w) that just covers, proportions kept; the side that does not decide is rounded down.

    h = max(cover h, H * cover w // W), and w alike.
    """
    cover_h, cover_w = preprocessing.cover
    size = graph.node("Shape", [planes], "pixels/size", start=2)
    swapped = graph.node("Gather", [size, graph.integers("pixels.swap", 1, 0)], "pixels/swapped")
    scaled = graph.node("Mul", [size, graph.integers("pixels.across", cover_w, cover_h)], "pixels/scaled")
    other = graph.node("Div", [scaled, swapped], "pixels/other")
    return graph.node("Max", [other, graph.integers("pixels.cover", cover_h, cover_w)], "pixels/covering")


def _nearest_size(graph: Nodes, planes: str, preprocessing: Preprocessing) -> str:
    """(h, w) that just covers or fits, proportions kept, rounded to the nearest number of pixels, one at least.

    In float64, by the operations of :class:`ehm.data.transforms.EvalTransform`, so that halves are rounded alike.
    """
    size = graph.node("Shape", [planes], "pixels/size", start=2)
    sides = graph.node("Cast", [size], "pixels/sides", to=TensorProto.DOUBLE)
    cover = graph.constant("pixels.cover", np.array(preprocessing.cover, np.float64))
    ratios = graph.node("Div", [sides, cover], "pixels/ratios")
    reduce = "ReduceMax" if preprocessing.resize == "fit" else "ReduceMin"
    ratio = graph.node(reduce, [ratios], "pixels/ratio", keepdims=0)
    rounded = graph.node("Round", [graph.node("Div", [sides, ratio], "pixels/exact")], "pixels/rounded")
    whole = graph.node("Cast", [rounded], "pixels/whole", to=TensorProto.INT64)
    return graph.node("Max", [whole, graph.integers("pixels.one", 1)], "pixels/nearest")


def _pad(graph: Nodes, resized: str, size: str, preprocessing: Preprocessing) -> tuple[str, str]:
    """Fill up what lacks to ``image_size`` around the resized bytes; return float32 (B, 3, h, w) and (h, w)."""
    wanted = graph.integers("pixels.padded_size", *preprocessing.image_size)
    lacking = graph.node("Sub", [wanted, size], "pixels/lacking")
    padding = graph.node("Max", [lacking, graph.integers("pixels.zero", 0)], "pixels/padding")
    before = graph.node("Div", [padding, graph.integers("pixels.two", 2)], "pixels/before")
    behind = graph.node("Sub", [padding, before], "pixels/behind")
    both = graph.node("Concat", [before, behind], "pixels/both", axis=0)
    # Pad knows one value for all channels: 0, around the differences to the colour
    colour = graph.constant("pixels.fill", np.array(preprocessing.fill, np.float32).reshape(3, 1, 1))
    values = graph.node("Cast", [resized], "pixels/bytes", to=TensorProto.FLOAT)
    differences = graph.node("Sub", [values, colour], "pixels/differences")
    inputs = [differences, both, "", graph.integers("pixels.pad_axes", 2, 3)]
    padded = graph.node("Add", [graph.node("Pad", inputs, "pixels/padded"), colour], "pixels/filled")
    return padded, graph.node("Max", [size, wanted], "pixels/filled_size")


def _shorten(graph: Nodes, images: str, preprocessing: Preprocessing) -> str:
    """Bytes (B, H, W, 3) -> (B, h, w, 3), the part that :func:`ehm.data.long_images.find_central_part` keeps."""
    cover_h, cover_w = preprocessing.cover
    most_h, most_w = limit_sides(preprocessing.cover)
    size = graph.node("Shape", [images], "pixels/full_size", start=1, end=3)
    swapped = graph.node("Gather", [size, graph.integers("pixels.swap", 1, 0)], "pixels/turned")
    scaled = graph.node("Mul", [swapped, graph.integers("pixels.most", most_h, most_w)], "pixels/long")
    most = graph.node("Div", [scaled, graph.integers("pixels.short", cover_w, cover_h)], "pixels/longest")
    over = graph.node("Sub", [size, most], "pixels/over")
    over = graph.node("Max", [over, graph.integers("pixels.none", 0, 0)], "pixels/cut")
    start = graph.node("Div", [over, graph.integers("pixels.ends", 2, 2)], "pixels/first")
    end = graph.node("Sub", [size, start], "pixels/last")
    return graph.node("Slice", [images, start, end, graph.integers("pixels.sides", 1, 2)], "pixels/part")


def _crop(graph: Nodes, resized: str, size: str, preprocessing: Preprocessing) -> str:
    """The centre (B, 3, *image_size); half a pixel is rounded to the even one, as Python does."""
    covers = all(cover >= side for cover, side in zip(preprocessing.cover, preprocessing.image_size, strict=True))
    if preprocessing.resize == "fit" or not covers:
        resized, size = _pad(graph, resized, size, preprocessing)
    wanted = graph.integers("pixels.image_size", *preprocessing.image_size)
    rest = graph.node("Cast", [graph.node("Sub", [size, wanted], "pixels/rest")], "pixels/float", to=TensorProto.FLOAT)
    half = graph.node("Mul", [rest, graph.number("pixels.half", 0.5)], "pixels/half")
    start = graph.node("Cast", [graph.node("Round", [half], "pixels/round")], "pixels/start", to=TensorProto.INT64)
    end = graph.node("Add", [start, wanted], "pixels/end")
    cut = graph.node("Slice", [resized, start, end, graph.integers("pixels.axes", 2, 3)], "pixels/centre")
    return graph.node("Reshape", [cut, graph.integers("pixels.shape", 0, 3, *preprocessing.image_size)], "pixels/crop")


def _normalise(graph: Nodes, crop: str, preprocessing: Preprocessing) -> str:
    """Bytes -> (bytes - 255 mean) / (255 std)."""
    mean, std = (
        graph.constant(f"pixels.{name}", np.asarray(values, np.float32).reshape(3, 1, 1) * 255)
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std))
    )
    values = graph.node("Cast", [crop], "pixels/values", to=TensorProto.FLOAT)
    return graph.node("Div", [graph.node("Sub", [values, mean], "pixels/centred"), std], "pixels/normalised")
