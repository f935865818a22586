"""Operators that leave the device: those that fall back to the CPU in the middle of a step."""

from __future__ import annotations

from collections.abc import Iterator

from ehm import backends
from ehm.backends.base import Backend
from ehm.masking import make_masker
from ehm.masking.base import PreparedOnDevice
from ehm.verification.cases import Case, draw_images
from ehm.verification.check import Measurement, SkipError
from ehm.verification.child import ask_in_child

__all__ = ["check_fallbacks", "take_recorded_steps"]

_KINDS = (
    "plain ViT, MAE",
    "relative positions, SimMIM",
    "Swin, SimMIM",
    "plain ViT, features by smooth L1",
    "rotary positions, SwiGLU and registers (DINOv3), MAE",
)
_ASK = """
import json, sys
from functools import partial
from ehm import backends
from ehm.backends.torch.diagnosis.fallbacks import find_fallbacks
from ehm.verification.operators import take_recorded_steps
backends.get(sys.argv[1])
print(json.dumps(find_fallbacks(partial(take_recorded_steps, sys.argv[1]))))
"""


def check_fallbacks(device: str) -> Iterator[Measurement]:
    """Count the operators that fell back to the CPU in steps of several models, in each type of the device."""
    kind = device.partition(":")[0]
    if kind == "cpu":
        raise SkipError("a CPU has nothing to fall back to")
    if kind in backends.DEVICES and backends.find_framework(kind) != "torch":
        raise SkipError("MindSpore raises an error for an operator that its target lacks, and never falls back")
    names = ask_in_child(_ASK, device)
    yield Measurement("", len(names), 0, f"fell back: {', '.join(names)}" if names else "none fell back")


def take_recorded_steps(device: str) -> None:
    """Take two steps of each model in the device's own type, and of the first one in the others.

    Masks are made on the host and on the device.
    """
    backend = backends.get(device)
    own_dtype, *others = backend.describe_device().dtypes
    for kind in _KINDS:
        _take_steps(backend, Case(kind, 50, 32, own_dtype))
    for dtype in others:
        _take_steps(backend, Case(_KINDS[0], 50, 32, dtype))


def _take_steps(backend: Backend, case: Case) -> None:
    config = case.make_config()
    learner = backend.create_learner(config)
    images = draw_images(config)
    for build in ("host", "device"):
        batch = learner.prepare_batch(images)
        if build == "device" and not isinstance(batch, PreparedOnDevice):
            continue
        mask, _ = make_masker("evolved", config.masks, config.units, build)(batch, 0.5, (1,))
        float(learner.train_step(batch, mask, 1e-3, 0.05)["loss"])
