"""The protocol between the shared loops and a framework, and nothing else.

A :class:`Backend` says what a machine offers and makes learners. A learner holds parameters on its device; the loops of
:mod:`ehm.training` and :mod:`ehm.tasks` know it only through the methods of its protocol, exchange NumPy arrays with it
and run unchanged on every backend. A method is added only when a shared loop calls it.

The protocols of learners stand in :mod:`ehm.backends.protocol`, by what they are about; their names are given here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ehm.backends.protocol.batches import MasksOnDevice, PreparedBatch, TakesMaskPieces
from ehm.backends.protocol.encoders import Encoder, TokenizerLearner
from ehm.backends.protocol.language import Answerer, Piece, TextLearner
from ehm.backends.protocol.pretraining import Learner, Reconstruction, StepExamination
from ehm.backends.protocol.processes import ALONE, OneProcess, Processes
from ehm.backends.protocol.tasks import Classifier, Detector, Embedder, Segmenter, TaskLearner

if TYPE_CHECKING:
    from ehm.config import (
        LanguageTrainingConfig,
        ModelSource,
        SourceConfig,
        TaskConfig,
        TokenizerConfig,
        TrainConfig,
    )
    from ehm.models.weights import Pool, Weights

__all__ = [
    "ALONE",
    "Answerer",
    "Backend",
    "Classifier",
    "Detector",
    "DeviceInfo",
    "Embedder",
    "Encoder",
    "Learner",
    "MasksOnDevice",
    "OneProcess",
    "Piece",
    "PreparedBatch",
    "Processes",
    "Reconstruction",
    "Segmenter",
    "StepExamination",
    "TakesMaskPieces",
    "TaskLearner",
    "TextLearner",
    "TokenizerLearner",
]


@dataclass(frozen=True)
class DeviceInfo:
    """A device and what it offers.

    ``dtypes`` are the arithmetic types of a training step, the one that ``dtype: auto`` takes first; ``hierarchy`` says
    on which side ``mask.build: auto`` builds trees.
    """

    name: str
    description: str
    count: int
    memory_bytes: int | None
    dtypes: tuple[str, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    hierarchy: Literal["host", "device"] = "host"


class Backend(Protocol):
    """A framework on one kind of device; ``processes`` are all that train one model together.

    ``weights`` of a learner are what ``config.model.init`` names, if that was opened already.
    """

    name: str
    processes: Processes

    def describe_device(self) -> DeviceInfo:
        """Describe the device and what it offers."""
        ...

    def is_busy(self) -> bool:
        """Return whether the device still works on what it was given, without waiting for it.

        A device that computes while the host waits, such as a CPU, never does.
        """
        ...

    def read_peak_memory(self) -> int:
        """Return the most bytes of the device's memory that were in use since this was last called.

        On a CPU these are the bytes of the machine's memory that the process occupies now.
        """
        ...

    def open_weights(self, source: ModelSource) -> Weights:
        """Open what ``source.init`` names, in all forms that the framework reads.

        Raises CheckpointError if there is nothing, or no encoder.
        """
        ...

    def create_learner(self, config: TrainConfig, weights: Weights | None = None) -> Learner:
        """Create a model in pretraining, initialised from ``config.run.seed`` and from ``config.model.init``.

        The encoder of ``config`` is known (:attr:`ehm.config.TrainConfig.awaits_encoder` is false).
        """
        ...

    def create_task_learner(self, config: TaskConfig, classes: int, weights: Weights | None = None) -> Any:
        """Create the learner of the task ``config.task``: an encoder from ``config.model`` under fresh heads.

        It has the task's protocol, for example :class:`Classifier`. ``classes`` is the number of classes to tell apart;
        retrieval takes 0 without training, and ``config.dim`` should be null then. Raises BackendError if the backend
        has no such learner.
        """
        ...

    def create_encoder(
        self, source: ModelSource, data: SourceConfig | None = None, pool: Pool | None = None
    ) -> Encoder:
        """Open a trained encoder in evaluation mode; what ``data`` sets about images overrides what its weights say.

        Features are pooled as ``pool`` says. None is the mean of the patch tokens, and the own way of a network of
        timm's. Raises ConfigError if the encoder cannot be pooled so.
        """
        ...

    def create_tokenizer(self, config: TokenizerConfig) -> TokenizerLearner:
        """Create a discrete VAE in training, initialised from ``config.run.seed``."""
        ...

    def create_text_learner(self, config: LanguageTrainingConfig, texts: Sequence[str]) -> TextLearner:
        """Create a tiny language model in training that knows the words of ``texts``, initialised from the seed."""
        ...
