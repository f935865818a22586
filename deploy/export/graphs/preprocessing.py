"""Preprocessing as the first nodes of a graph: bytes of any size in, as :class:`ehm.data.eval_transform.EvalTransform`.

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

_TYPES = {8: TensorProto.UINT8, 16: TensorProto.UINT16, "float": TensorProto.FLOAT}
"""Types of pixels by their depth."""
_FILTERS = {"bicubic": BICUBIC, "bilinear": BILINEAR}


def take_bytes(model: ModelProto, preprocessing: Preprocessing) -> None:
    """Let ``model``, of normalised (B, C, H, W), take pixels (B, H, W, C) of any size; operator set 18 or later.

    They are uint8, or of the depth of images that are no photographs, from 0 to its largest value.

    ONNX Runtime resizes bytes as Pillow does, along the width first and with 8 bits between the two passes; its
    kernel's weights are float32, so that one value in some thousands is rounded to the next grey level. Of tall images
    Pillow 13 takes the height first, which rounds and clips other values: 2 grey levels in smooth ones.
    """
    (images,) = model.graph.input
    graph = _PixelGraph(preprocessing)
    normalised = graph.write(images.name)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == images.name:
                node.input[index] = normalised
    later = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*graph.nodes.values(), *later])
    graph.store_constants(model)
    shape: list[str | int] = [BATCH, "height", "width", preprocessing.channels]
    images.CopyFrom(helper.make_tensor_value_info(images.name, _TYPES[preprocessing.depth], shape))


class _PixelGraph(Nodes):
    """The nodes from bytes of any size to normalised pixels."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.rule = preprocessing

    def write(self, images: str) -> str:
        """Add pixels (B, H, W, C) -> normalised (B, C, *image_size)."""
        resized, size = self._resize(images)
        return self._normalise(self._crop_centre(resized, size))

    def _resize(self, images: str) -> tuple[str, str]:
        """Add the resized bytes (B, 3, h, w); return them and (h, w)."""
        if self.rule.resize == "cover":
            images = self._cut_long_images(images)
        planes = self.add_node("Transpose", [images], "pixels/planes", perm=[0, 3, 1, 2])
        if self.rule.resize == "squash":
            wanted = self.add_integers("pixels.cover", *self.rule.cover)
        elif self.rule.rounding == "down":
            wanted = self._add_covering_size(planes)
        else:
            wanted = self._add_nearest_size(planes)
        # sizes of all four axes: ONNX Runtime 1.32 fails to load a linear Resize behind a Transpose that names its axes
        first = self.add_node("Shape", [planes], "pixels/first_axes", end=2)
        sizes = self.add_node("Concat", [first, wanted], "pixels/sizes", axis=0)
        options = _FILTERS[self.rule.interpolation]
        if self.rule.depth != 8:
            planes = self.add_node("Cast", [planes], "pixels/deep", to=TensorProto.FLOAT)
        resized = self.add_node("Resize", [planes, "", "", sizes], "pixels/resized", **options)
        if self.rule.depth != 8:
            resized = self._round_deep(resized)
        return resized, wanted

    def _round_deep(self, resized: str) -> str:
        """Add what :func:`ehm.data.channel_images.round_to_type` does to float32, which filters let overshoot."""
        if self.rule.depth == 16:
            resized = self.add_node("Round", [resized], "pixels/whole_values")
        limits = [self.add_number("pixels.black", 0.0), self.add_number("pixels.white", self.rule.pixels.white)]
        return self.add_node("Clip", [resized, *limits], "pixels/clipped")

    def _add_covering_size(self, planes: str) -> str:
        """Add (h, w) that just covers, proportions kept; the side that does not decide is rounded down.

        h = max(cover h, H * cover w // W), and w alike.
        """
        cover_h, cover_w = self.rule.cover
        size = self.add_node("Shape", [planes], "pixels/size", start=2)
        swapped = self.add_node("Gather", [size, self.add_integers("pixels.swap", 1, 0)], "pixels/swapped")
        scaled = self.add_node("Mul", [size, self.add_integers("pixels.across", cover_w, cover_h)], "pixels/scaled")
        other = self.add_node("Div", [scaled, swapped], "pixels/other")
        return self.add_node("Max", [other, self.add_integers("pixels.cover", cover_h, cover_w)], "pixels/covering")

    def _add_nearest_size(self, planes: str) -> str:
        """Add (h, w) that just covers or fits, proportions kept, rounded to the nearest number of pixels, at least one.

        In float64, by the operations of :class:`ehm.data.eval_transform.EvalTransform`: halves are rounded alike.
        """
        size = self.add_node("Shape", [planes], "pixels/size", start=2)
        sides = self.add_node("Cast", [size], "pixels/sides", to=TensorProto.DOUBLE)
        cover = self.add_constant("pixels.cover", np.array(self.rule.cover, np.float64))
        ratios = self.add_node("Div", [sides, cover], "pixels/ratios")
        # to fit inside, the larger ratio decides about the scale; to cover, the smaller one
        reduce = "ReduceMax" if self.rule.resize == "fit" else "ReduceMin"
        ratio = self.add_node(reduce, [ratios], "pixels/ratio", keepdims=0)
        exact = self.add_node("Div", [sides, ratio], "pixels/exact")
        rounded = self.add_node("Round", [exact], "pixels/rounded")
        whole = self.add_node("Cast", [rounded], "pixels/whole", to=TensorProto.INT64)
        return self.add_node("Max", [whole, self.add_integers("pixels.one", 1)], "pixels/nearest")

    def _cut_long_images(self, images: str) -> str:
        """Add bytes (B, H, W, 3) -> (B, h, w, 3): what :func:`ehm.data.long_images.find_central_part` keeps."""
        cover_h, cover_w = self.rule.cover
        most_h, most_w = limit_sides(self.rule.cover)
        size = self.add_node("Shape", [images], "pixels/full_size", start=1, end=3)
        swapped = self.add_node("Gather", [size, self.add_integers("pixels.swap", 1, 0)], "pixels/turned")
        # the longest that each side may be beside the other one
        scaled = self.add_node("Mul", [swapped, self.add_integers("pixels.most", most_h, most_w)], "pixels/long")
        most = self.add_node("Div", [scaled, self.add_integers("pixels.short", cover_w, cover_h)], "pixels/longest")
        over = self.add_node("Sub", [size, most], "pixels/over")
        over = self.add_node("Max", [over, self.add_integers("pixels.none", 0, 0)], "pixels/cut")
        start = self.add_node("Div", [over, self.add_integers("pixels.ends", 2, 2)], "pixels/first")
        end = self.add_node("Sub", [size, start], "pixels/last")
        return self.add_node("Slice", [images, start, end, self.add_integers("pixels.sides", 1, 2)], "pixels/part")

    def _crop_centre(self, resized: str, size: str) -> str:
        """Add the centre (B, 3, *image_size) of resized bytes."""
        covers = self.rule.cover[0] >= self.rule.image_size[0] and self.rule.cover[1] >= self.rule.image_size[1]
        if self.rule.resize == "fit" or not covers:
            resized, size = self._pad(resized, size)
        wanted = self.add_integers("pixels.image_size", *self.rule.image_size)
        surplus = self.add_node("Sub", [size, wanted], "pixels/rest")
        rest = self.add_node("Cast", [surplus], "pixels/float", to=TensorProto.FLOAT)
        half = self.add_node("Mul", [rest, self.add_number("pixels.half", 0.5)], "pixels/half")
        # half a pixel is rounded to the even one, as Python does
        rounded = self.add_node("Round", [half], "pixels/round")
        start = self.add_node("Cast", [rounded], "pixels/start", to=TensorProto.INT64)
        end = self.add_node("Add", [start, wanted], "pixels/end")
        cut = self.add_node("Slice", [resized, start, end, self.add_integers("pixels.axes", 2, 3)], "pixels/centre")
        # the sizes are known here, and constant shapes let a runtime plan what follows
        shape = self.add_integers("pixels.shape", 0, self.rule.channels, *self.rule.image_size)
        return self.add_node("Reshape", [cut, shape], "pixels/crop")

    def _pad(self, resized: str, size: str) -> tuple[str, str]:
        """Fill up what lacks to ``image_size`` around the resized bytes; return float32 (B, 3, h, w) and (h, w)."""
        wanted = self.add_integers("pixels.padded_size", *self.rule.image_size)
        lacking = self.add_node("Sub", [wanted, size], "pixels/lacking")
        padding = self.add_node("Max", [lacking, self.add_integers("pixels.zero", 0)], "pixels/padding")
        before = self.add_node("Div", [padding, self.add_integers("pixels.two", 2)], "pixels/before")
        behind = self.add_node("Sub", [padding, before], "pixels/behind")
        both = self.add_node("Concat", [before, behind], "pixels/both", axis=0)
        # Pad knows one value for all channels: 0, around the differences to the colour
        colour = self.add_constant("pixels.fill", np.array(self.rule.fill, np.float32).reshape(-1, 1, 1))
        values = self.add_node("Cast", [resized], "pixels/bytes", to=TensorProto.FLOAT)
        differences = self.add_node("Sub", [values, colour], "pixels/differences")
        inputs = [differences, both, "", self.add_integers("pixels.pad_axes", 2, 3)]
        padded = self.add_node("Pad", inputs, "pixels/padded")
        filled = self.add_node("Add", [padded, colour], "pixels/filled")
        return filled, self.add_node("Max", [size, wanted], "pixels/filled_size")

    def _normalise(self, crop: str) -> str:
        """Add pixels -> (pixels - white mean) / (white std), with white 255 for bytes."""
        white = self.rule.pixels.white
        mean = self.add_constant("pixels.mean", np.asarray(self.rule.mean, np.float32).reshape(-1, 1, 1) * white)
        std = self.add_constant("pixels.std", np.asarray(self.rule.std, np.float32).reshape(-1, 1, 1) * white)
        values = self.add_node("Cast", [crop], "pixels/values", to=TensorProto.FLOAT)
        centred = self.add_node("Sub", [values, mean], "pixels/centred")
        return self.add_node("Div", [centred, std], "pixels/normalised")
