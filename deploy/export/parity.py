"""Comparison of an exported file with a framework: at several batch sizes, on two kinds of image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.bundle.manifest import Parity, ParityCase, Preprocessing
from ehm.deploy.predict.parity_images import ImageKind, make_inputs
from ehm.errors import ExportError
from ehm.models.heads import Reference

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["FLOAT16_TOLERANCE", "TOLERANCE", "compare_outputs", "record_parity"]

TOLERANCE = 1e-4
"""Largest difference that is accepted, relative to the size of an output: the root mean square of its values."""
FLOAT16_TOLERANCE = 0.02
"""The same for a graph that computes in float16 in part; an UperNet's convolutions lead to some 0.002."""


def compare_outputs(
    reference: Reference, session: InferenceSession, preprocessing: Preprocessing, tolerance: float = TOLERANCE
) -> Parity:
    """Run both on the same images in float32.

    Raises ExportError if an output differs by more than ``tolerance``, relative to its size.
    """
    forward, name = reference
    cases = []
    for kind, inputs, normalised in make_inputs(preprocessing):
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
