"""Short fine-tuning of an encoder on one split, by the machinery of ``ehm finetune``: the same recipe for all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ehm.backends.base import Backend
from ehm.comparison.answers import Answers
from ehm.comparison.images import LabelledImages, Split
from ehm.config import FinetuneConfig, MeasureConfig
from ehm.console import console
from ehm.data import Source
from ehm.data.subset import Subset
from ehm.tasks.classification.task import Classification
from ehm.tasks.predictions import collect_predictions
from ehm.training.run import open_run
from ehm.training.supervised import train_task

__all__ = ["finetune_on_split", "quote_yaml"]


class _SplitClassification(Classification):
    """Classification of the images of one split, whatever folds the configuration would make.

    A subclass for each split sets ``divided``, because a task is asked for its images before it is created.
    """

    divided: tuple[Subset[Source], Subset[Source]]

    @classmethod
    def split_images(cls, config: FinetuneConfig) -> tuple[Subset[Source], Subset[Source]]:
        """Return the training and the test images of the split."""
        return cls.divided


def finetune_on_split(
    init: str,
    images: LabelledImages,
    split: Split,
    measure: MeasureConfig,
    device: str,
    seed: int,
    folder: Path,
) -> Answers:
    """Fine-tune the encoder ``init`` on the training images of ``split`` and return its answers for the test images.

    The run is kept in ``folder`` until it has ended.
    """
    # an interruption may have left the run of another encoder or split there
    shutil.rmtree(folder, ignore_errors=True)
    task_class = type("SplitClassification", (_SplitClassification,), {"divided": _take_subsets(images, split)})
    overrides = _list_overrides(init, measure, seed)
    run = open_run(FinetuneConfig, measure.recipe, measure.recipe, overrides, device, folder)
    with run.explain_write_errors(), _silence_console():
        task: Classification = task_class(run.config, run.backend, run.start)
        train_task(task, run, title="finetune")
        answers = _collect_answers(task, run.backend)
    shutil.rmtree(folder)
    return answers


@contextmanager
def _silence_console() -> Iterator[None]:
    """Print nothing for a while: a comparison fine-tunes many times and shows a progress of its own."""
    was_quiet = console.quiet
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = was_quiet


def _take_subsets(images: LabelledImages, split: Split) -> tuple[Subset[Source], Subset[Source]]:
    """Return the training and the test images of ``split``, as subsets of their sources."""
    if images.is_divided:
        train, val = images.parts
        return train, val
    (part,) = images.parts
    train = Subset(part.source, part.indices[split.train], "the other folds")
    return train, Subset(part.source, part.indices[split.test], "the fold that is held out")


def _list_overrides(init: str, measure: MeasureConfig, seed: int) -> list[str]:
    """Return the settings that the recipe leaves open: the encoder, its images and the seed."""
    data = measure.data
    overrides = [
        f"model.init={quote_yaml(init)}",
        f"data.source={quote_yaml(data.source)}",
        f"data.layout={data.layout}",
        f"run.seed={seed}",
    ]
    if measure.image_size is not None:
        overrides.append(f"model.image_size={list(measure.image_size)}")
    if data.range is not None:
        overrides.append(f"data.range={list(data.range)}")
    if data.classes is not None:
        overrides.append(f"data.classes=[{', '.join(map(quote_yaml, data.classes))}]")
    if measure.workers is not None:
        overrides.append(f"data.workers={measure.workers}")
    return overrides


def quote_yaml(text: str) -> str:
    """Quote ``text`` so that YAML reads it as a string: a class may be called 1 or yes."""
    return "'" + text.replace("'", "''") + "'"


def _collect_answers(task: Classification, backend: Backend) -> Answers:
    """Return the answers of the trained classifier for the test images."""
    loader = task.evaluation.loader
    try:
        labels, logits = collect_predictions(task.learner.compute_logits, loader, "", backend.processes)
    finally:
        loader.close()
    return Answers.from_scores(labels, logits)
