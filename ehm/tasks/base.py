"""The base classes of all tasks: :class:`Task` trains a model, and :class:`Evaluation` measures it.

A task is a folder: ``task.py`` has a subclass of :class:`Task` and one of :class:`Evaluation`, and ``metrics.py`` a
report. An entry in :mod:`ehm.tasks.registry` makes it known to the commands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, SupportsFloat, TypeVar

from ehm.backends.base import Backend, Processes, TaskLearner
from ehm.config import LoraConfig, TaskConfig, load_config
from ehm.data import Loader, Source, Split
from ehm.data.subset import Subset
from ehm.models.opening import take_weights
from ehm.models.weights import Weights
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import Checkpoint
from ehm.tasks.held_out import leave_out_first_weights, remember_images, select_subset
from ehm.tasks.registry import TASKS
from ehm.training.supervised import Report

__all__ = ["Evaluation", "Task", "load_learner", "merge_config"]

C = TypeVar("C", bound=TaskConfig)
R = TypeVar("R", bound=Report)
R_co = TypeVar("R_co", bound=Report, covariant=True)


class Evaluation(ABC, Generic[R_co]):
    """A model and the images of ``subset`` that it is measured on, during its training or later.

    ``loader`` reads this process's share of them. ``source_name`` is the name of their source, and ``unit`` the plural
    of the word for what is measured, for messages.
    """

    unit: ClassVar[str] = "images"

    def __init__(self, source_name: str, subset: Subset[Any], loader: Loader, processes: Processes) -> None:
        self.source_name = source_name
        self.subset = subset
        self.loader = loader
        self.processes = processes

    @abstractmethod
    def measure(self, title: str = "") -> R_co:
        """Measure the model, with a progress bar if there is a ``title``; all processes call this."""

    def draw(self, folder: Path) -> None:
        """Write pictures of the results of the last measurement into ``folder``; most tasks have none."""

    def write_predictions(self, folder: Path) -> None:
        """Write the answer for each image of the last measurement into ``folder``; most tasks have no such file."""

    def close(self) -> None:
        """Stop the workers that read images."""
        self.loader.close()


class Task(ABC, Generic[C, R]):
    """A model, the images that it is trained and measured on, and the step that trains it.

    :func:`ehm.training.supervised.train_task` is the training loop. The constructor of a subclass opens its images,
    calls this constructor with them, and then sets the attributes that are declared here: ``headline`` describes the
    training in a line, and ``class_counts`` are lines on how often each class occurs in ``train``. ``val_name`` is the
    name of the images to measure on if they are not from ``data.source``. Checkpoints keep the attribute ``data``: the
    identities of all images.
    """

    measured_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of the configuration that set how the model is measured, in addition to those of all tasks."""
    unit: ClassVar[str] = "images"
    """The plural of the word for a sample, for messages."""
    labels: ClassVar[str] = "labels"
    """The plural of the word for what is learned of a sample, for messages."""

    headline: str
    learner: TaskLearner
    loader: Loader
    evaluation: Evaluation[R]
    class_counts: tuple[str, ...] = ()

    def __init__(
        self,
        config: C,
        backend: Backend,
        train: Subset[Any],
        val: Subset[Any],
        start: Checkpoint | None,
        *,
        classes: tuple[str, ...] | None = None,
        val_name: str | None = None,
    ) -> None:
        self.config = config
        self.processes = backend.processes
        self.train = train
        self.classes: tuple[str, ...] = train.source.classes if classes is None else classes
        # before the subclass creates the learner, because images that differ from the checkpoint's are an error
        self.data = remember_images(config, train, val, self.classes, start, self.processes, self.unit, self.labels)
        self.val = leave_out_first_weights(val, self.data, config, self.processes, val_name)
        self.learner_config = config
        self._start = start
        if start is not None:  # a resumed run needs only its checkpoint: the first weights may be gone
            self.learner_config = _replace_init(config, start.folder)

    def take_first_weights(self) -> Weights | None:
        """Return the weights of the checkpoint that a resumed run has opened already; None for a new run."""
        if self._start is None:
            return None
        return take_weights(self._start)

    @property
    def kind(self) -> str:
        """The kind of its checkpoints."""
        return TASKS[self.config.task].kind

    @property
    def config_to_keep(self) -> dict[str, Any]:
        """The configuration that checkpoints keep, as JSON."""
        return self.config.model_dump(mode="json")

    @property
    def more_metadata(self) -> dict[str, Any]:
        """Metadata of its checkpoints, in addition to those of all tasks."""
        return {}

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Files that could not be read, with the reasons."""
        return self.loader.unreadable | self.evaluation.loader.unreadable

    def prepare_folder(self, folder: Path) -> tuple[str, ...]:
        """Prepare what needs the folder of the run, before the first step; return lines about it to print."""
        return ()

    @abstractmethod
    def train_step(self, batch: Any, step: int, lr: float) -> Mapping[str, SupportsFloat]:
        """Take an optimiser step on a batch of ``loader``; ``loss`` is among the metrics."""

    def measure(self) -> R:
        """Measure ``learner`` on ``val``; all processes call this."""
        return self.evaluation.measure()

    def close(self) -> None:
        """Stop the workers that read images."""
        self.loader.close()
        self.evaluation.close()

    @classmethod
    @abstractmethod
    def open_source(cls, config: C, split: Split) -> Source:
        """Open the part ``split`` of the images that ``config`` names, or all of them if they have no parts."""

    @classmethod
    @abstractmethod
    def divide_source(cls, config: C, source: Source) -> tuple[Subset[Any], Subset[Any]]:
        """Return the images to train on and those to measure on, given the ``source`` that was opened for training.

        They are the training and the validation part of the source, or if it has no parts, all folds but one, and that
        one.
        """

    @classmethod
    def split_images(cls, config: C) -> tuple[Subset[Any], Subset[Any]]:
        """Open the images to train on and those to measure on."""
        return cls.divide_source(config, cls.open_source(config, "train"))

    @classmethod
    @abstractmethod
    def open_evaluation(
        cls, checkpoint: Checkpoint, backend: Backend, config: str | Path | None, overrides: Sequence[str]
    ) -> Evaluation[R]:
        """Prepare to measure the model of ``checkpoint`` on the images that ``config`` and ``overrides`` name.

        By default these are the images that the training held out. Raises DataError if images do not fit the model.
        """

    @classmethod
    def open_untrained(
        cls, init: str, backend: Backend, config: str | Path | None, overrides: Sequence[str]
    ) -> Evaluation[R]:
        """Prepare to measure the encoder ``init`` without training; only for tasks with ``measures_untrained``."""
        raise NotImplementedError

    @classmethod
    def select_subset(cls, checkpoint: Checkpoint, config: C, processes: Processes) -> Subset[Any]:
        """Return the images that the model of ``checkpoint`` is measured on, without any that it was trained on."""
        source = cls.open_source(config, "train")
        return select_subset(
            checkpoint,
            config,
            source,
            hold_out=lambda: cls.divide_source(config, source)[1],
            open_val=lambda: cls.open_source(config, "val"),
            processes=processes,
        )


def _replace_init(config: C, start: Path) -> C:
    """Return ``config`` with the checkpoint ``start`` as its first weights."""
    return config.model_copy(update={"model": config.model.model_copy(update={"init": str(start)})})


def merge_config(
    kind: type[C],
    checkpoint: Checkpoint,
    config: str | Path | None,
    overrides: Sequence[str],
    measured_keys: Sequence[str] = (),
) -> C:
    """Return the configuration for a measurement: the model of ``checkpoint``, and the images of ``config``.

    From ``config`` (the stored configuration if None) with ``overrides`` come the images and their preparation, the
    folds, the batches and ``measured_keys``, keys of the task that set how it is measured; all else comes from the
    checkpoint. Raises ConfigError if the keys do not go with the model.
    """
    stored = checkpoint.metadata["config"]
    given = load_config(kind, config or _drop_other_sources(stored, overrides), overrides)
    given_values = given.model_dump()
    changed = {key: given_values[key] for key in measured_keys}
    # validated again, so that keys which contradict each other are an error
    own = load_config(kind, {**stored, **changed})
    # checkpoints hold the weights of a plain network: a frozen part or LoRA only matters to training, and not every
    # backend has them
    plain = {"model": own.model.model_copy(update={"freeze": 0}), "lora": LoraConfig()}
    own = own.model_copy(update=plain)
    own = _replace_init(own, checkpoint.folder)
    # if there was a moving average, the parameters in the checkpoint are the average
    optim = given.optim.model_copy(update={"ema_decay": None})
    return own.model_copy(update={"data": given.data, "folds": given.folds, "fold": given.fold, "optim": optim})


def _drop_other_sources(config: Mapping[str, Any], overrides: Sequence[str]) -> Mapping[str, Any]:
    """Return ``config`` without ``data.sources`` if ``overrides`` name other images to measure, by ``data.source``."""
    overridden = {override.partition("=")[0] for override in overrides}
    if "data.source" not in overridden or "data.sources" in overridden:
        return config
    data = {key: value for key, value in config["data"].items() if key not in ("sources", "weight")}
    return {**config, "data": data}


def load_learner(learner: TaskLearner, checkpoint: Checkpoint) -> None:
    """Load the weights of ``checkpoint`` without the state of the optimiser, which a measurement does not need."""
    learner.load(LearnerState(checkpoint.model, {}))
