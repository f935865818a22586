"""Does the exported file compute what a framework computes? Compared at several batch sizes, on two kinds of image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.bundle import Parity, ParityCase, Preprocessing
from ehm.errors import ExportError
from ehm.trained import Reference

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["BATCHES", "TOLERANCE", "compare"]

BATCHES = (1, 2, 5, 8)
TOLERANCE = 1e-4


def compare(
    reference: Reference, session: InferenceSession, preprocessing: Preprocessing, tolerance: float = TOLERANCE
) -> Parity:
    """Run both on the same images in float32; raises ExportError where an output differs by more than ``tolerance``."""
    import onnxruntime

    forward, name = reference
    cases = []
    for kind, images in _inputs(preprocessing):
        expected = forward(images)
        found = session.run(list(expected), {session.get_inputs()[0].name: images})
        pairs = zip(expected.values(), found, strict=True)
        cases.append(_case(kind, [(np.asarray(one, np.float64), np.asarray(two, np.float64)) for one, two in pairs]))
    worst = max(cases, key=lambda case: case.max_abs)
    if not worst.max_abs <= tolerance:
        raise ExportError(
            f"parity: the exported model differs from {name.partition(' ')[0]} by {worst.max_abs:.2g} on "
            f"{worst.images} images in a batch of {worst.batch}, and at most {tolerance:g} is allowed; "
            "nothing was written"
        )
    return Parity(
        reference=name,
        runtime=f"onnxruntime {onnxruntime.__version__}, {session.get_providers()[0]}",
        tolerance=tolerance,
        max_abs=worst.max_abs,
        cosine=min(case.cosine for case in cases),
        cases=tuple(cases),
    )


def _inputs(preprocessing: Preprocessing) -> Iterator[tuple[Literal["random", "natural"], NDArray[np.float32]]]:
    """Normalised (B, 3, H, W): white noise, and pictures with the 1/f spectrum of photographs, after their 8 bits."""
    rng = np.random.default_rng(0)
    height, width = preprocessing.image_size
    mean, std = (np.asarray(values).reshape(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    for batch in BATCHES:
        noise = rng.standard_normal((batch, 3, height, width))
        yield "random", noise.astype(np.float32)
        smooth = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(height, width))
        smooth /= smooth.std(axis=(1, 2, 3), keepdims=True)
        pixels = np.clip(np.rint(128 + 55 * smooth), 0, 255) / 255
        yield "natural", ((pixels - mean) / std).astype(np.float32)


def _case(
    kind: Literal["random", "natural"], pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> ParityCase:
    """The worst of each output, as it was expected and as it was found."""
    differences, cosines = [], []
    for expected, found in pairs:
        if expected.shape != found.shape:
            raise ExportError(
                f"parity: the exported model gives {found.shape} where the framework gives {expected.shape}"
            )
        if not (np.isfinite(expected).all() and np.isfinite(found).all()):
            raise ExportError(f"parity: an output is not finite on {kind} images; the weights may be damaged")
        norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        cosine = np.sum(expected * found, axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
        differences.append(np.abs(expected - found).max())
        cosines.append(cosine.min())
    return ParityCase(images=kind, batch=len(expected), max_abs=float(max(differences)), cosine=float(min(cosines)))
