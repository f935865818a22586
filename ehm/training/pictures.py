"""Pages of reconstructions while a run pretrains: the same images every time, in RUN/pictures.

They do not change the training: their masks have a seed of their own, and the model is used in evaluation mode.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ehm.analysis.masked_images import reconstruct_images
from ehm.analysis.reconstruction import draw_reconstruction_page
from ehm.backends.base import Learner
from ehm.config import TrainConfig
from ehm.data import EvalTransform, Source
from ehm.data.samples import SampleReader
from ehm.storage.writing import replace_file
from ehm.training.plan import RunPlan
from ehm.training.run import Run

__all__ = ["PICTURES_FOLDER", "PicturePages", "open_pictures"]

PICTURES_FOLDER = "pictures"
"""The folder for the pages in the folder of a run."""
SEED = 0
"""The seed of the masks, the same in all runs, so that their pages can be compared."""
_IMAGES = 8
_PAGES = 10
"""Pages of a run, at most, if ``watch.pictures`` is not set."""
_SHARE_OF_TIME = 0.015
"""Share of the time that drawing may then take, apart from the first and the last page."""
_COMPRESSION = 3
"""PNG compression level: a page takes half the time of Pillow's default, and has a tenth more bytes."""


@dataclass(frozen=True)
class ShownImages:
    """The images of every page (B, H, W, 3), their names, and a description of their ``origin``."""

    images: NDArray[np.uint8]
    names: Sequence[str]
    origin: str


class PicturePages:
    """Draws the pages of one run; all processes call the methods, and the main one writes the files."""

    def __init__(self, run: Run[TrainConfig], learner: Learner, plan: RunPlan, shown: ShownImages | None) -> None:
        self._run = run
        self._learner = learner
        self._plan = plan
        self._shown = shown
        pictures = run.config.watch.pictures
        self._is_limited_by_time = pictures is None
        if pictures is None:
            self._every = math.ceil(plan.total / _PAGES)
        else:
            self._every = max(1, round(pictures * plan.steps_per_epoch))
        self._start = time.perf_counter()
        self._drawing_seconds = 0.0
        self._last_page_seconds = 0.0

    def is_due(self, done: int) -> bool:
        """Return whether a page is drawn once ``done`` steps are done; called after every step."""
        if self._shown is None:
            return False
        if done == self._plan.last:
            return True
        if done % self._every:
            return False
        return not self._is_limited_by_time or self._is_affordable()

    def draw(self, done: int) -> Path:
        """Draw a page after ``done`` steps, write it and return its path."""
        assert self._shown is not None
        start = time.perf_counter()
        config = self._run.config
        masked = reconstruct_images(self._learner, config, self._shown.images, done / self._plan.total, SEED)
        path = page_path(self._run.folder, done)
        if self._run.is_main_process:
            epoch = done / self._plan.steps_per_epoch
            title = f"Reconstructions after step {done:,} of {self._plan.total:,} (epoch {epoch:.4g})"
            model = f"{config.encoder} pretrained with {config.objective}"
            notes = [f"Model: {model}, run {self._run.folder}. Images: {self._shown.origin}."]
            page = draw_reconstruction_page(masked, config, self._shown.names, title, notes)
            with replace_file(path) as temporary:
                page.save(temporary, format="PNG", compress_level=_COMPRESSION)
        self._last_page_seconds = time.perf_counter() - start
        self._drawing_seconds += self._last_page_seconds
        return path

    def _is_affordable(self) -> bool:
        """Return whether one more page keeps within the share of the time, by the clock of the first process."""
        elapsed = time.perf_counter() - self._start
        answer = self._drawing_seconds + self._last_page_seconds <= _SHARE_OF_TIME * elapsed
        answer_of_first: bool = self._run.processes.gather_values(answer)[0]
        return answer_of_first


def open_pictures(
    run: Run[TrainConfig], learner: Learner, plan: RunPlan, training: Source, held_out: Source | None
) -> PicturePages:
    """Prepare the pages of ``run``, and read their images: from ``held_out``, or if that is None from ``training``."""
    shown = None
    if run.config.watch.pictures != 0:
        shown = _read_images(run.config, training, held_out)
    return PicturePages(run, learner, plan, shown)


def page_path(folder: Path, done: int) -> Path:
    """Return the file of the page after ``done`` steps in the run's ``folder``."""
    return folder / PICTURES_FOLDER / f"reconstruction-{done:08d}.png"


def _read_images(config: TrainConfig, training: Source, held_out: Source | None) -> ShownImages:
    """Read the images of every page."""
    data = config.data
    chosen = training if held_out is None else held_out
    # spread evenly, as a source may be sorted by class
    indices = np.unique(np.linspace(0, len(chosen) - 1, min(len(chosen), _IMAGES)).astype(np.int64))
    transform = EvalTransform.from_spec(config.image_size, data.inputs)
    reader = SampleReader(chosen, transform, np.arange(len(chosen)), SEED, data.strict)
    samples = [reader.read_sample(index, epoch=0) for index in indices.tolist()]
    names = [Path(chosen.name(sample.index)).name for sample in samples]
    if held_out is None:
        origin = f"{len(samples)} of the training images, as {data.source} has no validation part"
    else:
        origin = f"{len(samples)} of the validation part of {data.source}, which is not trained on"
    return ShownImages(np.stack([sample.value for sample in samples]), names, origin)
