"""The registry of downstream tasks: an entry for each, with all that commands need to know before they import it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ehm.config import (
    DetectionConfig,
    FinetuneConfig,
    RetrievalConfig,
    SegmentationConfig,
    TaskConfig,
    VisionLanguageConfig,
)

if TYPE_CHECKING:
    from ehm.tasks.base import Task

__all__ = ["TASKS", "TaskEntry", "find_task_by_kind"]


@dataclass(frozen=True)
class TaskEntry:
    """A downstream task.

    ``name`` is its name in ``--task`` and in the key ``task``, ``config`` the class of its configuration, ``recipe``
    the shipped configuration that is taken by default, ``module`` and ``task_class`` are the names of its code, and
    ``kind`` is the kind of its checkpoints. ``measures_untrained`` is true if an encoder can be measured without
    training.
    """

    name: str
    config: type[TaskConfig]
    recipe: str
    module: str
    task_class: str
    kind: str
    measures_untrained: bool = False

    def load_class(self) -> type[Task[Any, Any]]:
        """Import the task and return its class."""
        # imported by name, so that no task needs the packages of another
        task_class: type[Task[Any, Any]] = getattr(import_module(self.module), self.task_class)
        return task_class


_ENTRIES = (
    TaskEntry(
        name="classification",
        config=FinetuneConfig,
        recipe="elpv/finetune",
        module="ehm.tasks.classification.task",
        task_class="Classification",
        kind="classifier",
    ),
    TaskEntry(
        name="detection",
        config=DetectionConfig,
        recipe="detection/coco_vit_base_1x",
        module="ehm.tasks.detection.task",
        task_class="Detection",
        kind="detector",
    ),
    TaskEntry(
        name="segmentation",
        config=SegmentationConfig,
        recipe="segmentation/ade20k_vit_base_mae",
        module="ehm.tasks.segmentation.task",
        task_class="Segmentation",
        kind="segmenter",
    ),
    TaskEntry(
        name="retrieval",
        config=RetrievalConfig,
        recipe="retrieval/gldv2_vit_base",
        module="ehm.tasks.retrieval.task",
        task_class="Retrieval",
        kind="embedder",
        measures_untrained=True,
    ),
    TaskEntry(
        name="vision_language",
        config=VisionLanguageConfig,
        recipe="easy_vqa/vision_language",
        module="ehm.tasks.vision_language.task",
        task_class="VisionLanguage",
        kind="answerer",
    ),
)
TASKS: Mapping[str, TaskEntry] = {entry.name: entry for entry in _ENTRIES}
"""The tasks by name."""


def find_task_by_kind(kind: str) -> TaskEntry | None:
    """Return the task whose checkpoints are of ``kind``, or None if there is no such task."""
    return next((entry for entry in _ENTRIES if entry.kind == kind), None)
