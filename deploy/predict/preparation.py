"""The preparation of an image before the network, in words and as lines of Python, for model cards."""

from __future__ import annotations

from ehm.deploy.bundle.manifest import Preprocessing

__all__ = ["describe_preparation", "write_preparation_code"]

_RESIZES = {
    "cover": "resize ({}, proportions kept) to just cover {} x {}",
    "squash": "resize ({}, proportions changed) to {} x {}",
    "fit": "resize ({}, proportions kept) to just fit into {} x {}",
}
"""The effect of each resize of a manifest; the interpolation, the height and the width are filled in."""


def describe_preparation(rule: Preprocessing) -> str:
    """Say in words how an image is resized and cropped."""
    resize = _RESIZES[rule.resize].format(rule.interpolation, *rule.cover)
    height, width = rule.image_size
    return f"{resize}, cut {height} x {width} from the centre{_describe_filling(rule)}"


def write_preparation_code(rule: Preprocessing) -> list[str]:
    """Return lines of Python that make ``inputs`` of ``image``, with Pillow and NumPy alone."""
    if rule.in_graph:
        return ["inputs = numpy.asarray(image)[None]"]
    height, width = rule.image_size
    lines = _write_resizing_code(rule)
    if _describe_filling(rule):
        lines += [
            f"padding = max(0, {width} - image.width), max(0, {height} - image.height)",
            "canvas_size = image.width + padding[0], image.height + padding[1]",
            f'canvas = Image.new("RGB", canvas_size, {rule.fill})',
            "canvas.paste(image, (padding[0] // 2, padding[1] // 2))",
            "image = canvas",
        ]
    return [
        *lines,
        f"left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)",
        f"pixels = numpy.asarray(image.crop((left, top, left + {width}, top + {height}))) / 255",
        f"inputs = ((pixels - {list(rule.mean)}) / {list(rule.std)}).transpose(2, 0, 1)[None].astype('float32')",
    ]


def _write_resizing_code(rule: Preprocessing) -> list[str]:
    height, width = rule.cover
    resampling = f"Image.Resampling.{rule.interpolation.upper()}"
    if rule.resize == "squash":
        return [f"image = image.resize(({width}, {height}), {resampling})"]
    if rule.rounding == "down":
        return [
            f"scaled = image.width * {height} // image.height, image.height * {width} // image.width",
            f"image = image.resize((max({width}, scaled[0]), max({height}, scaled[1])), {resampling})",
        ]
    # to fit inside, the larger ratio decides about the scale; to cover, the smaller one
    choose = "max" if rule.resize == "fit" else "min"
    return [
        f"ratio = {choose}(image.height / {height}, image.width / {width})",
        "size = max(1, round(image.width / ratio)), max(1, round(image.height / ratio))",
        f"image = image.resize(size, {resampling})",
    ]


def _describe_filling(rule: Preprocessing) -> str:
    """Say how the image is filled up if it can be smaller than the crop, else nothing."""
    covers = rule.cover[0] >= rule.image_size[0] and rule.cover[1] >= rule.image_size[1]
    if rule.resize != "fit" and covers:
        return ""
    return f" (what lacks is filled with {'RGB ' * rule.pixels.is_rgb}{list(rule.fill)})"
