"""Vision-language: a frozen language model answers questions about images, which an encoder and a resampler give it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, cast

from ehm.backends.base import Answerer, Backend
from ehm.config import VisionLanguageConfig
from ehm.data import Batch, Source, Split, TrainTransform
from ehm.data.questions import draw_answer
from ehm.data.sources.questions.mixture import open_data_questions
from ehm.data.subset import Subset
from ehm.errors import DataError
from ehm.models.language_folder import check_same_language_model
from ehm.models.opening import take_weights
from ehm.storage.checkpoint import Checkpoint
from ehm.tasks.base import Task, load_learner, merge_config
from ehm.tasks.held_out import leave_out_trained
from ehm.tasks.vision_language.benchmarks import Benchmarks, open_benchmarks
from ehm.tasks.vision_language.evaluation import AnswererEvaluation
from ehm.tasks.vision_language.metrics import VisionLanguageReport
from ehm.training.loaders import make_train_loader

__all__ = ["VisionLanguage"]


class VisionLanguage(Task[VisionLanguageConfig, VisionLanguageReport]):
    """Training of a resampler, and unless ``config.frozen`` also of the encoder, on questions and answers."""

    measured_keys = ("blank", "benchmarks", "language")
    unit = "questions"
    labels = "words or answers"

    learner: Answerer

    def __init__(self, config: VisionLanguageConfig, backend: Backend, start: Checkpoint | None = None) -> None:
        source, selected = open_data_questions(config.data, "train")
        self._questions = source
        train = Subset(cast(Source, source), selected, source.split)
        benchmarks = open_benchmarks(config)
        _require_other_questions(config, benchmarks)
        val = benchmarks.select_all()
        super().__init__(config, backend, train, val, start, classes=(), val_name=benchmarks.name)
        self.learner = backend.create_task_learner(self.learner_config, 0, self.take_first_weights())
        if start is not None:
            check_same_language_model(start.metadata["language"], self.learner.language, start.folder)
        trained = "a resampler on the frozen encoder" if config.frozen else "a resampler and the encoder"
        self.headline = f"Training {trained} {config.model.init} as the eyes of {config.language.source}"
        transform = TrainTransform(
            self.learner.image_size,
            config.data.crop_scale,
            config.data.flip,
            mean=self.learner.inputs.mean,
            std=self.learner.inputs.std,
            interpolation=self.learner.inputs.interpolation,
        )
        self.loader = make_train_loader(train.source, transform, config, self.processes, subset=selected)
        self.evaluation = AnswererEvaluation(self.learner, benchmarks, self.val, config, backend)

    @property
    def more_metadata(self) -> dict[str, Any]:
        """The description of the language model, which checkpoints do not contain, to recognise it later."""
        return {"language": dict(self.learner.language)}

    def prepare_folder(self, folder: Path) -> tuple[str, ...]:
        """Let the learner keep the tokens of the encoder in ``folder``, unless they change from step to step."""
        if self.config.cache_features == "off" or not self.config.sees_same_images:
            return ()
        # images to measure on count separately, even if they are the same files, because their preparation differs
        trained = set(map(self.train.source.name, self.train.indices.tolist()))
        measured = set(map(self.val.source.name, self.val.indices.tolist()))
        blank = 1
        return (self.learner.keep_features(folder, len(trained) + len(measured) + blank),)

    def train_step(self, batch: Batch, step: int, lr: float) -> Mapping[str, SupportsFloat]:
        """Take an optimiser step on questions about images, each with one of its answers, drawn at random."""
        config = self.config
        epoch = step // self.loader.steps_per_epoch
        prompts = []
        answers = []
        for index in batch.indices.tolist():
            question = self._questions.question(index)
            prompts.append(config.language.format_prompt(question.text))
            answers.append(draw_answer(question.answers, config.run.seed, epoch, index))
        return self.learner.train_step(batch.images, prompts, answers, lr, config.optim.weight_decay)

    def close(self) -> None:
        """Stop the workers that read images, and remove the tokens that were kept."""
        super().close()
        self.learner.forget_features()

    @classmethod
    def open_source(cls, config: VisionLanguageConfig, split: Split) -> Source:
        """Open the questions to train on, or those of the benchmarks as one source."""
        if split == "val":
            return open_benchmarks(config).select_all().source
        return cast(Source, open_data_questions(config.data, "train")[0])

    @classmethod
    def divide_source(cls, config: VisionLanguageConfig, source: Source) -> tuple[Subset[Source], Subset[Source]]:
        """Return the questions to train on, and those of the benchmarks."""
        train, selected = open_data_questions(config.data, "train")
        return Subset(cast(Source, train), selected, train.split), open_benchmarks(config).select_all()

    @classmethod
    def open_evaluation(
        cls, checkpoint: Checkpoint, backend: Backend, config: str | Path | None, overrides: Sequence[str]
    ) -> AnswererEvaluation:
        """Prepare to ask the model of a checkpoint the questions of the benchmarks.

        Raises CheckpointError if ``language.source`` is not the language model that it was trained with.
        """
        settings = merge_config(VisionLanguageConfig, checkpoint, config, overrides, cls.measured_keys)
        benchmarks = open_benchmarks(settings)
        answerer: Answerer = backend.create_task_learner(settings, 0, take_weights(checkpoint))
        check_same_language_model(checkpoint.metadata["language"], answerer.language, checkpoint.folder)
        load_learner(answerer, checkpoint)
        subset = leave_out_trained(
            benchmarks.select_all(), checkpoint, benchmarks.name, settings.data.workers, backend.processes
        )
        return AnswererEvaluation(answerer, benchmarks, subset, settings, backend)


def _require_other_questions(config: VisionLanguageConfig, benchmarks: Benchmarks) -> None:
    """Raise DataError if the questions to measure on would be those to train on, because the set has no parts."""
    if not config.benchmarks and benchmarks.source.split == "all":
        raise DataError(
            f"data.source {config.data.source}: has no validation part of its own; name other questions as benchmarks"
        )
