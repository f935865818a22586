"""Does the exported file compute what a framework computes? Compared at several batch sizes, on two kinds of image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.deploy.bundle.manifest import Parity, ParityCase, Preprocessing
from ehm.deploy.bundle.preprocessing import eval_transform, normalise_pixels
from ehm.errors import ExportError
from ehm.models.trained import Reference

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["BATCHES", "TOLERANCE", "compare"]

BATCHES = (1, 2, 5, 8)
TOLERANCE = 1e-4
"""Largest difference that is accepted, relative to the size of an output: the root mean square of its values."""
_Kind = Literal["random", "natural"]


def compare(
    reference: Reference, session: InferenceSession, preprocessing: Preprocessing, tolerance: float = TOLERANCE
) -> Parity:
    """Run both on the same images in float32.

    Raises ExportError if an output differs by more than ``tolerance``, relative to its size.
    """
    import onnxruntime

    forward, name = reference
    cases = []
    for kind, fed, normalised in _inputs(preprocessing):
        expected = forward(normalised)
        found = session.run(list(expected), {session.get_inputs()[0].name: fed})
        pairs = zip(expected.values(), found, strict=True)
        cases.append(_case(kind, [(np.asarray(one, np.float64), np.asarray(two, np.float64)) for one, two in pairs]))
    worst = max(cases, key=lambda case: case.max_relative or 0.0)
    largest = worst.max_relative or 0.0
    if not largest <= tolerance:
        raise ExportError(
            f"parity: the exported model differs from {name.partition(' ')[0]} by {largest:.2g} of an output's size on "
            f"{worst.images} images in a batch of {worst.batch}, and at most {tolerance:g} of it is allowed; "
            "nothing was written"
        )
    return Parity(
        reference=name,
        runtime=f"onnxruntime {onnxruntime.__version__}, {session.get_providers()[0]}",
        tolerance=tolerance,
        max_abs=max(case.max_abs for case in cases),
        max_relative=largest,
        cosine=min(case.cosine for case in cases),
        cases=tuple(cases),
    )


def _inputs(preprocessing: Preprocessing) -> Iterator[tuple[_Kind, NDArray[Any], NDArray[np.float32]]]:
    """What the session is given and the framework is: white noise, and pictures with the 1/f spectrum of photographs.

    The framework, and in most bundles the session, gets normalised (B, 3, H, W). A graph that takes bytes gets them in
    the size that it resizes to, so that it cuts and normalises them: what it makes of other sizes is Pillow's within a
    grey level, not within the tolerance.
    """
    rng = np.random.default_rng(0)
    height, width = preprocessing.cover if preprocessing.in_graph else preprocessing.image_size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    for batch in BATCHES:
        noise = rng.standard_normal((batch, 3, height, width))
        smooth = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(height, width))
        smooth /= smooth.std(axis=(1, 2, 3), keepdims=True)
        if preprocessing.in_graph:
            yield "random", *_cut(_bytes(noise), preprocessing)
            yield "natural", *_cut(_bytes(smooth), preprocessing)
        else:
            yield "random", noise.astype(np.float32), noise.astype(np.float32)
            yield (
                "natural",
                normalise_pixels(_bytes(smooth), preprocessing),
                normalise_pixels(_bytes(smooth), preprocessing),
            )


def _cut(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Bytes (B, H, W, 3), and what a framework gets of them."""
    transform = eval_transform(preprocessing)
    cut = np.stack([transform(Image.fromarray(image)) for image in pixels])
    return pixels, normalise_pixels(cut, preprocessing)


def _bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(B, 3, H, W) of standard deviation 1 -> (B, H, W, 3) around the middle grey."""
    return np.clip(np.rint(128 + 55 * np.moveaxis(values, 1, -1)), 0, 255).astype(np.uint8)


def _case(kind: _Kind, pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> ParityCase:
    """Return the worst of all outputs, which are given in pairs as they were expected and as they were found."""
    differences, relatives, cosines = [], [], []
    for expected, found in pairs:
        if expected.shape != found.shape:
            raise ExportError(
                f"parity: the exported model gives {found.shape} where the framework gives {expected.shape}"
            )
        if not (np.isfinite(expected).all() and np.isfinite(found).all()):
            raise ExportError(f"parity: an output is not finite on {kind} images; the weights may be damaged")
        norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        cosine = np.sum(expected * found, axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
        difference = np.abs(expected - found).max()
        size = np.sqrt(np.mean(expected**2))
        differences.append(difference)
        # outputs that are all 0, those of a head that begins with zeros, must be 0 in both
        relatives.append(difference / max(size, np.finfo(np.float32).tiny))
        cosines.append(cosine.min())
    return ParityCase(
        images=kind,
        batch=len(expected),
        max_abs=float(max(differences)),
        max_relative=float(max(relatives)),
        cosine=float(min(cosines)),
    )
