"""The speed of pretraining steps: evolved masks beside random ones, trees of the host beside those of the device.

Nothing here fails: speeds are for comparison, and other programs of the machine change them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from PIL import Image

from ehm.backends.base import ALONE, Backend, PreparedBatch
from ehm.config import TrainConfig
from ehm.console import console
from ehm.data import Batch
from ehm.errors import EhmError
from ehm.masking import make_masker
from ehm.training.plan import plan_run
from ehm.training.pretraining_setup import open_images
from ehm.training.steps import MaskedSteps
from ehm.verification.cases import draw_images, draw_masks

__all__ = ["Speed", "measure_speeds"]

_SMALL_BATCH = 8
_LARGE_BATCH = 64
"""Images of a step; the large one on devices that take less than ``_FAST`` seconds for a step of the small one."""
_FAST = 0.5
_PHOTOGRAPH = (256, 256)
"""Height and width of the image files that are read, cropped and resized on the way."""
_MOST_STEPS = 200
_FIRST_STEP = _MOST_STEPS
"""Number of the first step of a run of twice ``_MOST_STEPS``: masks are those of the middle of training."""
_ROWS: tuple[tuple[str, Literal["host", "device"]], ...] = (
    ("random", "host"),
    ("evolved", "host"),
    ("evolved", "device"),
)


@dataclass(frozen=True)
class Speed:
    """A row of the speed table.

    ``images_per_second`` are those of the whole loop, with reading and masks; ``data_share`` is the share of it in
    which the loop waited for images. The times of the parts are milliseconds, each by itself and waited for: of the
    attention pass, of trees and masks, and of the step with its gradients and the optimiser.
    """

    model: str
    dtype: str
    masking: str
    build: str
    batch_size: int
    images_per_second: float
    data_share: float
    attention_ms: float | None
    masks_ms: float
    step_ms: float
    memory_gib: float


def measure_speeds(backend: Backend, quick: bool) -> tuple[list[Speed], list[str]]:
    """Measure the steps of ViT-S, and of ViT-B unless ``quick``; also return why rows are missing, if any are."""
    models = ("vit_small",) if quick else ("vit_small", "vit_base")
    seconds = 5.0 if quick else 25.0
    speeds: list[Speed] = []
    problems: list[str] = []
    with TemporaryDirectory() as folder:
        batch_size = _choose_batch_size(backend)
        _write_photographs(Path(folder), batch_size)
        for model in models:
            for masking, build in _ROWS:
                name = f"{model}, {masking} masks, trees of the {build}"
                console.print(f"speed: {name}")
                config = _make_config(model, masking, build, batch_size, folder)
                try:
                    speeds.append(_measure(backend, config, build, seconds))
                except (EhmError, RuntimeError, MemoryError) as error:
                    problems.append(f"{name}: {(str(error).splitlines() or ['no reason given'])[0]}")
    return speeds, problems


def _choose_batch_size(backend: Backend) -> int:
    """Return the number of images of a step that suits the speed of the device."""
    config = _make_config("vit_small", "random", "host", _SMALL_BATCH, "")
    learner = backend.create_learner(config)
    images = draw_images(config, _SMALL_BATCH)
    mask = draw_masks(config, _SMALL_BATCH)

    def take_step() -> float:
        return float(learner.train_step(learner.prepare_batch(images), mask, 1e-4, 0.05)["loss"])

    _time(take_step)  # compiles kernels and makes room
    milliseconds, _ = _time(take_step)
    return _LARGE_BATCH if milliseconds < 1000 * _FAST else _SMALL_BATCH


def _make_config(model: str, masking: str, build: str, batch_size: int, source: str) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "encoder": model,
            "masking": masking,
            "mask": {"build": build if masking == "evolved" else "host"},
            "data": {"source": source},
            "optim": {"batch_size": batch_size, "steps": 2 * _MOST_STEPS, "warmup_epochs": 0},
        }
    )


def _measure(backend: Backend, config: TrainConfig, build: Literal["host", "device"], seconds: float) -> Speed:
    learner = backend.create_learner(config)
    masker = make_masker(config.masking, config.masks, config.units, build)
    _, loader = open_images(config, ALONE)
    steps = MaskedSteps(config, plan_run(config.optim, config.run, loader.steps_per_epoch), learner, masker)

    def take_step(batch: Batch, prepared: PreparedBatch, number: int) -> Any:
        # as in training, where the first part of a batch trains before the masks of the last are made
        masked = steps.mask_batch(number, batch, prepared)
        return steps.take_step(masked, steps.rates_at(number))["loss"]

    with loader:
        batches = steps.prepare_ahead(loader.batches(0, _MOST_STEPS))
        float(take_step(*next(batches), _FIRST_STEP))  # compiles kernels and makes room
        backend.read_peak_memory()
        waited = 0.0
        taken = 0
        start = time.perf_counter()
        while taken < _MOST_STEPS - 1:
            before = time.perf_counter()
            batch, prepared = next(batches)
            waited += time.perf_counter() - before
            taken += 1
            loss = take_step(batch, prepared, _FIRST_STEP + taken)
            # without reading the loss, so that the device is never waited for
            if time.perf_counter() - start > seconds:
                break
        float(loss)
        passed = time.perf_counter() - start
    memory = backend.read_peak_memory()
    images = batch.images
    attention, masks, step = _time_parts(learner, masker, images, config)
    return Speed(
        config.encoder,
        backend.describe_device().dtypes[0],
        config.masking,
        build if config.masking == "evolved" else "",
        len(images),
        taken * len(images) / passed,
        waited / passed,
        attention,
        masks,
        step,
        memory / 2**30,
    )


def _time_parts(learner: Any, masker: Any, images: Any, config: TrainConfig) -> tuple[float | None, float, float]:
    """Return the milliseconds of the attention pass, of trees and masks, and of a step, each waited for."""

    def run_attention() -> Any:
        return [part.sum() for part in learner.prepare_batch(images).compute_similarity()]

    def make_masks() -> Any:
        batch = learner.prepare_batch(images)
        mask, figures = masker(batch, 0.5, (0, 0))
        # of masks on the device, the figures wait for the same work
        for figure in figures.values():
            float(figure)
        return batch, mask

    looks_at_images = config.masking == "evolved"
    attention = _time(run_attention)[0] if looks_at_images else None
    masks, (batch, mask) = _time(make_masks)
    step, _ = _time(lambda: float(learner.train_step(batch, mask, 1e-4, 0.05)["loss"]))
    return attention, max(masks - (attention or 0.0), 0.0), step


def _time(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return 1000 * (time.perf_counter() - start), result


def _write_photographs(folder: Path, batch_size: int) -> None:
    """Write image files for four batches."""
    config = TrainConfig(encoder="vit_small", image_size=_PHOTOGRAPH)
    for number in range(4 * batch_size):
        (image,) = draw_images(config, 1, seed=number)
        Image.fromarray(image).save(folder / f"{number}.jpg", quality=90)
