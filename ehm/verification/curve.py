"""The losses of twenty steps beside stored ones, which a CPU gave in float32.

``python -m ehm.verification.curve`` computes the stored ones again, into ``curve.json`` beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ehm import backends
from ehm.backends.base import Backend
from ehm.masking import make_masker
from ehm.storage.reading import read_json
from ehm.storage.writing import write_json
from ehm.verification.cases import Case, create_learner, draw_images, load_weights
from ehm.verification.check import Measurement

__all__ = ["check_curve", "compute_curve"]

CURVE = Path(__file__).with_name("curve.json")
STEPS = 20
MASKINGS = ("random", "evolved")
_IMAGES = 8
_LR = 1e-3
_BOUNDS = {
    ("random", "float32"): 2e-3,
    ("random", "bfloat16"): 0.03,
    ("random", "float16"): 0.01,
    ("evolved", "float32"): 0.02,
    ("evolved", "bfloat16"): 0.1,
    ("evolved", "float16"): 0.05,
}
"""Largest relative difference of a loss. Evolved masks follow the weights, so that a rounding may change a mask."""


def compute_curve(backend: Backend, masking: str, dtype: str = "float32") -> list[float]:
    """Take the steps of a small MAE on drawn images and return their losses."""
    config = Case("plain ViT, MAE", 65, 32, dtype).make_config(optim={"batch_size": _IMAGES})
    learner = create_learner(backend, config)
    load_weights(learner)
    masker = make_masker(masking, config.masks, config.units)
    losses = []
    for step in range(STEPS):
        batch = learner.prepare_batch(draw_images(config, _IMAGES, seed=step))
        mask, _ = masker(batch, step / STEPS, (1, step))
        losses.append(float(learner.train_step(batch, mask, _LR, 0.05)["loss"]))
    return losses


def check_curve(backend: Backend, masking: str, dtype: str) -> Iterator[Measurement]:
    """Compare the losses of all steps with the stored ones."""
    expected = np.array(read_json(CURVE)[masking])
    losses = np.array(compute_curve(backend, masking, dtype))
    error = float(np.max(np.abs(losses - expected) / expected))
    detail = f"the last loss is {losses[-1]:.4f}, stored is {expected[-1]:.4f}"
    yield Measurement("", error, _BOUNDS[masking, dtype], detail)


def _store_curves() -> None:
    cpu = backends.get("cpu")
    write_json(CURVE, {masking: [round(loss, 6) for loss in compute_curve(cpu, masking)] for masking in MASKINGS})


if __name__ == "__main__":
    _store_curves()
