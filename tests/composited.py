"""Photographs of solar cells with pieces of other photographs in them, and masks that say where: to learn from."""

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from ehm.data.sources.folder import open_elpv

CLASSES = ("cell", "coins", "cat")
SIDE = 64


def write_pairs(folder, count, seed=0, ignored_border=2):
    """``count`` pairs below ``folder``/images and /masks, and classes.txt.

    A pair is a cell with a box of coins and, over it, an ellipse of a cat, anywhere and of any size. A thin border
    around each is ignored.
    """
    rng, source = np.random.default_rng(seed), open_elpv("elpv", "all")
    textures = [Image.fromarray(picture).convert("RGB") for picture in (skimage.data.coins(), skimage.data.chelsea())]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.array(source.load(int(rng.integers(len(source)))).resize((SIDE, SIDE)))
        labels = np.zeros((SIDE, SIDE), np.uint8)
        for label, texture in enumerate(textures, 1):
            inside, near = _shape(rng, round_=label == 2, border=ignored_border)
            left, top = (int(rng.integers(side - 128)) for side in texture.size)
            piece = np.array(texture.crop((left, top, left + 128, top + 128)).resize((SIDE, SIDE)))
            pixels[inside], labels[near], labels[inside] = piece[inside], 255, label
        Image.fromarray(pixels).save(folder / "images" / f"{number:03d}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{number:03d}.png")
    Path(folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def _shape(rng, round_, border):
    """Return the place of a piece, and its place with a border around it."""
    y, x = np.mgrid[:SIDE, :SIDE]
    (cy, cx), (ry, rx) = rng.uniform(12, SIDE - 12, 2), rng.uniform(12, 24, 2)

    def within(more):
        if round_:
            return ((y - cy) / (ry + more)) ** 2 + ((x - cx) / (rx + more)) ** 2 < 1
        return (abs(y - cy) < ry + more) & (abs(x - cx) < rx + more)

    return within(0), within(border)
