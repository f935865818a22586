"""How a model card says what becomes of an image before the network: in words, and as lines of Python."""

from __future__ import annotations

from ehm.deploy.bundle.manifest import Preprocessing

__all__ = ["describe_crop", "preparing_code"]

_RESIZES = {
    "cover": "resize ({}, proportions kept) to just cover {} x {}",
    "squash": "resize ({}, proportions changed) to {} x {}",
    "fit": "resize ({}, proportions kept) to just fit into {} x {}",
}
"""For each resize of a manifest what it does; the interpolation, the height and the width are filled in."""


def describe_crop(rule: Preprocessing) -> str:
    """Say in words how an image is resized and cropped."""
    resize = _RESIZES[rule.resize].format(rule.interpolation, *rule.cover)
    return f"{resize}, cut {rule.image_size[0]} x {rule.image_size[1]} from the centre{_filled(rule)}"


def preparing_code(rule: Preprocessing) -> list[str]:
    """Return lines of Python that make ``inputs`` of ``image``, with Pillow and NumPy alone."""
    if rule.in_graph:
        return ["inputs = numpy.asarray(image)[None]"]
    (height, width), (cover_h, cover_w) = rule.image_size, rule.cover
    resampling = f"Image.Resampling.{rule.interpolation.upper()}"
    if rule.resize == "squash":
        lines = [f"image = image.resize(({cover_w}, {cover_h}), {resampling})"]
    elif rule.rounding == "down":
        lines = [
            f"scaled = image.width * {cover_h} // image.height, image.height * {cover_w} // image.width",
            f"image = image.resize((max({cover_w}, scaled[0]), max({cover_h}, scaled[1])), {resampling})",
        ]
    else:
        choose = "max" if rule.resize == "fit" else "min"
        lines = [
            f"ratio = {choose}(image.height / {cover_h}, image.width / {cover_w})",
            "size = max(1, round(image.width / ratio)), max(1, round(image.height / ratio))",
            f"image = image.resize(size, {resampling})",
        ]
    if _filled(rule):
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


def _filled(rule: Preprocessing) -> str:
    """Say how the image is filled up if it can be smaller than the crop, else nothing."""
    covers = all(cover >= side for cover, side in zip(rule.cover, rule.image_size, strict=True))
    if rule.resize != "fit" and covers:
        return ""
    return f" (what lacks is filled with RGB {list(rule.fill)})"
