"""The largest image that is unpacked: Pillow's own limit, for files that other libraries read."""

from __future__ import annotations

from PIL import Image

__all__ = ["refuse_bomb"]


def refuse_bomb(width: int, height: int) -> None:
    """Raise Pillow's DecompressionBombError for an image of more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise Image.DecompressionBombError
