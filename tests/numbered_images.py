"""Images without files for tests of the loader, and the batches that a loader makes of them.

Data workers import this module.
"""

import os
import signal
import sys
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from PIL import Image

from ehm.data import EvalTransform, Loader
from ehm.errors import BrokenImage

FRAMEWORKS = ("torch", "timm", "torchvision", "mindspore", "tensorflow", "jax", "numba")


@dataclass
class NumberedImages:
    """Images without files: image i is red, of value i modulo 256.

    ``on_load`` is what happens in a process that loads one: it is to "die" or to "fail", to "watch" for frameworks that
    are imported, or to "sign" the image with its number.
    """

    count: int = 10
    split: str = "all"
    classes: tuple = ("even", "odd")
    broken: frozenset = frozenset()
    on_load: str = ""
    labels: np.ndarray = field(init=False)

    def __post_init__(self):
        self.labels = np.arange(self.count) % 2

    def __len__(self):
        return self.count

    def name(self, index):
        return f"image-{index}"

    def load(self, index):
        if index in self.broken:
            raise BrokenImage(f"image-{index}: torn")
        if self.on_load == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.on_load == "fail":
            raise ZeroDivisionError("a bug in the source")
        if self.on_load == "watch" and any(name in sys.modules for name in FRAMEWORKS):
            raise BrokenImage("a worker has a framework")
        reader = os.getpid() if self.on_load == "sign" else 0
        return Image.new("RGB", (8, 8), (index % 256, reader >> 8 & 255, reader & 255))


class OnePixel:
    """A transform that takes one pixel of an image."""

    shape = (1, 1, 3)

    def __call__(self, image, rng):
        return np.asarray(image)[:1, :1]


def make_loader(source, workers=0, transform=None, **options):
    defaults = {"batch_size": 4, "seed": 0, "shuffle": True, "drop_last": False}
    return Loader(source, transform or EvalTransform((4, 4)), workers=workers, **defaults | options)


def load_batches(source, start, stop, workers=0, **options):
    with make_loader(source, workers, **options) as loader:
        return list(loader.batches(start, stop))


def list_indices(batches):
    """Return the indices of the images of each batch."""
    return [batch.indices.tolist() for batch in batches]


def list_all_indices(batches):
    return list(chain(*list_indices(batches)))


def are_equal(first, second):
    """Return whether two lists of batches have the same images, pixel by pixel, in the same order."""
    if len(first) != len(second):
        return False
    return all(
        (ours.images == theirs.images).all() and (ours.indices == theirs.indices).all()
        for ours, theirs in zip(first, second, strict=True)
    )
