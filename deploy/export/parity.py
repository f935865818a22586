"""Comparison of an exported file with a framework: at several batch sizes, on two kinds of image.

Shapes: B images of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ehm.deploy.bundle.manifest import Parity, ParityCase, Preprocessing
from ehm.deploy.bundle.preprocessing import eval_transform, normalise_pixels
from ehm.errors import ExportError
from ehm.models.heads import Reference

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["BATCHES", "TOLERANCE", "ImageKind", "compare_outputs", "draw_images", "record_parity"]

BATCHES = (1, 2, 5, 8)
TOLERANCE = 1e-4
"""Largest difference that is accepted, relative to the size of an output: the root mean square of its values."""
ImageKind = Literal["random", "natural"]


def compare_outputs(
    reference: Reference, session: InferenceSession, preprocessing: Preprocessing, tolerance: float = TOLERANCE
) -> Parity:
    """Run both on the same images in float32.

    Raises ExportError if an output differs by more than ``tolerance``, relative to its size.
    """
    forward, name = reference
    cases = []
    for kind, inputs, normalised in _make_inputs(preprocessing):
        expected = forward(normalised)
        found = session.run(list(expected), {session.get_inputs()[0].name: inputs})
        pairs = []
        for one, two in zip(expected.values(), found, strict=True):
            # in float64, so that the comparison itself rounds nothing
            pairs.append((np.asarray(one, np.float64), np.asarray(two, np.float64)))
        cases.append(_compare_case(kind, pairs))
    worst = max(cases, key=lambda case: case.max_relative or 0.0)
    largest = worst.max_relative or 0.0
    if not largest <= tolerance:  # not a number is refused too
        raise ExportError(
            f"parity: the exported model differs from {name.partition(' ')[0]} by {largest:.2g} of an output's size on "
            f"{worst.images} images in a batch of {worst.batch}, and at most {tolerance:g} of it is allowed; "
            "nothing was written"
        )
    return record_parity(cases, name, session, tolerance).model_copy(update={"max_relative": largest})


def record_parity(cases: Sequence[ParityCase], reference: str, session: InferenceSession, tolerance: float) -> Parity:
    """Return the manifest's record of a comparison that went well."""
    import onnxruntime

    return Parity(
        reference=reference,
        runtime=f"onnxruntime {onnxruntime.__version__}, {session.get_providers()[0]}",
        tolerance=tolerance,
        max_abs=max(case.max_abs for case in cases),
        cosine=min(case.cosine for case in cases),
        cases=tuple(cases),
    )


def draw_images(
    rng: np.random.Generator, batch: int, size: tuple[int, int]
) -> Iterator[tuple[ImageKind, NDArray[np.float64]]]:
    """Yield white noise and pictures with the 1/f spectrum of photographs: (B, 3, H, W), of standard deviation 1.

    Noise reaches every feature of a network, and smooth pictures those that photographs reach.
    """
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # no mean, instead of a division by zero
    noise = rng.standard_normal((batch, 3, height, width))
    smooth = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=size)
    yield "random", noise
    yield "natural", smooth / smooth.std(axis=(1, 2, 3), keepdims=True)


def _make_inputs(preprocessing: Preprocessing) -> Iterator[tuple[ImageKind, NDArray[Any], NDArray[np.float32]]]:
    """Yield the kind of image, the inputs of the session and those of the framework.

    The framework, and in most bundles the session, gets normalised (B, 3, H, W). A graph that takes bytes gets them in
    the size that it resizes to, so that it cuts and normalises them: what it makes of other sizes is Pillow's within a
    grey level, not within the tolerance.
    """
    rng = np.random.default_rng(0)
    size = preprocessing.cover if preprocessing.in_graph else preprocessing.image_size
    for batch in BATCHES:
        for kind, values in draw_images(rng, batch, size):
            if preprocessing.in_graph:
                pixels = _to_bytes(values)
                yield kind, pixels, _crop_and_normalise(pixels, preprocessing)
            elif kind == "random":
                noise = values.astype(np.float32)
                yield kind, noise, noise
            else:
                normalised = normalise_pixels(_to_bytes(values), preprocessing)
                yield kind, normalised, normalised


def _crop_and_normalise(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Turn bytes (B, H, W, 3) into what a framework gets of them: normalised (B, 3, *image_size)."""
    transform = eval_transform(preprocessing)
    cropped = np.stack([transform(Image.fromarray(image)) for image in pixels])
    return normalise_pixels(cropped, preprocessing)


def _to_bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Turn (B, 3, H, W) of standard deviation 1 into bytes (B, H, W, 3) around the middle grey."""
    # 55 grey levels a standard deviation: few values are clipped, and the whole range is used
    return np.clip(np.rint(128 + 55 * np.moveaxis(values, 1, -1)), 0, 255).astype(np.uint8)


def _compare_case(kind: ImageKind, pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> ParityCase:
    """Return the worst of all outputs, which are given in pairs as they were expected and as they were found."""
    differences = []
    relatives = []
    cosines = []
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
