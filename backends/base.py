"""The protocol between the shared loops and a framework, and nothing else.

A :class:`Backend` says what a machine offers and makes learners. A learner holds parameters on its device; the loops of
:mod:`ehm.training` and :mod:`ehm.tasks` know it only through the methods below, exchange NumPy arrays with it and run
unchanged on every backend. A method is added here only when a shared loop calls it.

Shapes: B images, H x W pixels, N patches, D features, C classes, L = 1 + N tokens (the class token first).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, SupportsFloat, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ehm.storage.arrays import LearnerState

if TYPE_CHECKING:
    from ehm.config import (
        LanguageTrainingConfig,
        ModelSource,
        SourceConfig,
        TaskConfig,
        TokenizerConfig,
        TrainConfig,
    )
    from ehm.config.inputs import InputSpec
    from ehm.data.instances import Detections, Instances
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


class Processes(Protocol):
    """The processes that train one model together, each on its own device and its own part of every batch."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0; number 0 writes the files and prints."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    @property
    def local_size(self) -> int:
        """Number of processes that share this machine's processors."""
        ...

    def gather_values(self, value: Any) -> list[Any]:
        """Return ``value`` of every process in the order of ranks; all call this, and wait for each other."""
        ...


@dataclass(frozen=True)
class OneProcess:
    """A process that trains alone."""

    rank: int = 0
    size: int = 1
    local_size: int = 1

    def gather_values(self, value: Any) -> list[Any]:
        """See :meth:`Processes.gather_values`."""
        return [value]


ALONE = OneProcess()


class PreparedBatch(Protocol):
    """This process's images of one step, from which similarities or saliencies and then the step itself are computed.

    A batch is prepared for one step. What :meth:`similarity` or :meth:`saliency` has already computed, such as the
    patch embedding, is used again by :meth:`Learner.train_step`.
    """

    @property
    def images(self) -> NDArray[np.uint8]:
        """The images (B, H, W, 3)."""
        ...

    def compute_similarity(self) -> Iterable[NDArray[np.float32]]:
        """Compute the symmetrised mean attention of the first blocks (Eq. 6), without gradient: (B, N, N).

        In pieces (b, N, N), in order, so that trees of one piece are built while the device works on the next.
        """
        ...

    def compute_saliency(self) -> Iterable[NDArray[np.float32]]:
        """Compute the class token's attention to each patch in the last block, mean over heads: (B, N).

        With all patches visible, without gradient, of the model that ``mask.source`` says. Rows sum to less than 1, as
        the class token attends to itself too. In pieces (b, N), in order.
        """
        ...


class MasksOnDevice(Protocol):
    """A prepared batch whose hierarchies can be built on its device (``mask.build: device``)."""

    def evolved_mask(self, depth: float, ranks: NDArray[np.int32]) -> tuple[Any, Mapping[str, SupportsFloat]]:
        """Compute similarity, hierarchy and masks of the images at ``depth`` in [0, 1], all on the device.

        ``ranks`` (B, views, 2N - 1) come from :func:`ehm.masking.draw_ranks`. Returns masks (B * views, N), those of
        one image together, that stay on the device, and the figures that a :class:`ehm.masking.Masker` logs. Both equal
        those that are computed on the host.
        """
        ...


@dataclass(frozen=True)
class Reconstruction:
    """The predictions of a masked image model for images, each under one mask, as pictures show them.

    ``pixels`` (B, H, W, 3) float32 are the prediction everywhere, in hidden and in visible places: 0 is black and 1
    white, and values beyond are possible. They are None if there are none. ``best_pixels`` are those of a perfect
    prediction, None if that would be the image itself. ``agreement`` (B, N) float32 in [-1, 1] says how well each
    output token's prediction agrees with its target, as ``agreement_name`` explains, if the model predicts no pixels.
    ``note`` says in a sentence how the pixels came to be, or why there are none.
    """

    pixels: NDArray[np.float32] | None = None
    best_pixels: NDArray[np.float32] | None = None
    agreement: NDArray[np.float32] | None = None
    agreement_name: str = ""
    note: str = ""


@dataclass(frozen=True)
class StepExamination:
    """The numbers of a step, as :meth:`Learner.examine_step` saw them.

    ``metrics`` are those of :meth:`Learner.train_step`. ``first_output`` is the name of the module whose output was the
    first that is not finite, "" the whole model, whose output is the loss, and None if all are finite;
    ``has_finite_inputs`` says whether that module's inputs were finite. ``first_gradient`` is the parameter whose
    gradient was the first that is not finite on the way back. ``largest_outputs`` are the modules with the largest
    finite outputs and their size, largest first. ``operator`` is where a search for gradients that are no numbers
    ended, in words; None if it found nothing, or if the framework has no such search.
    """

    metrics: Mapping[str, float]
    first_output: str | None
    has_finite_inputs: bool
    first_gradient: str | None
    largest_outputs: tuple[tuple[str, float], ...]
    operator: str | None


@runtime_checkable
class TakesMaskPieces(Protocol):
    """A learner whose ``train_step`` also takes :class:`ehm.masking.BatchMasks`.

    It asks for the masks of a part of the batch only when it comes to that part.
    """

    takes_mask_pieces: Literal[True]


class Learner(Protocol):
    """A masked image model in pretraining.

    ``notes`` say which weights it began with, if ``config.model.init`` names some.
    """

    notes: tuple[str, ...]

    def prepare_batch(self, images: NDArray[np.uint8]) -> PreparedBatch:
        """Begin a step on this process's images (B, H, W, 3) of a batch."""
        ...

    def train_step(
        self, batch: Any, mask: Any, lr: float, weight_decay: float, ema_decay: float | None = None
    ) -> Mapping[str, SupportsFloat]:
        """Take one optimiser step with masks (B * views, N), True = masked, equally many in each.

        ``ema_decay`` is the decay of the moving average in this step, None the last one of ``config.optim.ema_decay``.

        ``batch`` comes from :meth:`prepare_batch`; ``mask`` is a NumPy array, or comes from :class:`MasksOnDevice`, or
        is a :class:`ehm.masking.BatchMasks` if the learner is one that :class:`TakesMaskPieces`. The values returned
        are means over all processes and stay on the device until ``float()`` reads them; ``loss`` and ``grad_norm``,
        the length of the gradient before it is clipped, are always among them.
        """
        ...

    def examine_step(
        self, batch: Any, mask: Any, lr: float, weight_decay: float, ema_decay: float | None = None
    ) -> StepExamination:
        """Take the step of :meth:`train_step`, slowly, and return where its numbers stop being finite.

        One process takes it alone. The state afterwards is of no use.
        """
        ...

    def reconstruct_images(self, images: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Reconstruction:
        """Predict what masks (B, N of the mask units), True = masked, hide of images (B, H, W, 3).

        In evaluation mode, without gradient, and in the type of the run. Nothing that a later step depends on changes.
        Every process calls this, as several may share the parameters; each may have images of its own.
        """
        ...

    def compute_features(self, images: NDArray[np.uint8], average: bool = False) -> NDArray[np.float32]:
        """Pool the patch tokens of whole images behind the last norm: (B, H, W, 3) -> (B, D); changes no training.

        They are those of the trained encoder, or with ``average`` of its moving average, in evaluation mode and in the
        type of ``optim.dtype``: in float32 what :meth:`Encoder.compute_features` gives for a checkpoint of this moment.
        All processes call this equally often, each with its own images.
        """
        ...

    def state(self) -> LearnerState:
        """Return copies of all that :meth:`load` needs to continue bit for bit; called in every process."""
        ...

    def load(self, state: LearnerState) -> None:
        """Continue from ``state``; raises CheckpointError naming what is missing, surplus or of another shape."""
        ...


class TaskLearner(Protocol):
    """An encoder under a head, in training for any task.

    It takes images of ``image_size`` = (H, W) pixels, prepared as ``inputs`` says: as the encoder's weights were
    trained, except for what ``config.data`` sets. ``architecture`` (plain JSON) describes the encoder, so that a
    checkpoint can be opened without the weights that it started from; ``notes`` say what was loaded and what was not.
    """

    image_size: tuple[int, int]
    inputs: InputSpec
    architecture: Mapping[str, Any]
    notes: tuple[str, ...]

    def state(self) -> LearnerState:
        """See :meth:`Learner.state`."""
        ...

    def load(self, state: LearnerState) -> None:
        """See :meth:`Learner.load`."""
        ...


class Classifier(TaskLearner, Protocol):
    """An encoder with a linear head, in fine-tuning or, with a frozen encoder, in linear probing."""

    def train_step(
        self, images: NDArray[np.uint8], targets: NDArray[np.float32], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """Take one optimiser step on (B, H, W, 3) images and (B, C) target distributions; metrics include ``loss``."""
        ...

    def compute_logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute logits in evaluation mode: (B, H, W, 3) -> (B, C)."""
        ...

    def measure_gradients(self, images: NDArray[np.uint8], targets: NDArray[np.float32]) -> NDArray[np.float64]:
        """Measure the gradients of each layer below the head at the present weights: (B, H, W, 3), (B, C) -> (K, 2).

        The embedding's come first, then the blocks': the mean magnitude of their entries, and their length. The loss is
        that of :meth:`train_step` in evaluation mode, in float32, on pixels that are normalised as those that the
        encoder's weights were trained on. Meanwhile the head has normal weights (standard deviation 0.02, always the
        same ones) and no bias: the weights of a fresh head differ in size between libraries, and gradients below are in
        proportion to them.
        """
        ...


class Embedder(TaskLearner, Protocol):
    """An encoder that describes an image by one vector of its patch tokens, trained by ArcFace."""

    def train_step(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """Take one optimiser step on (B, H, W, 3) images and their class numbers (B,); metrics include ``loss``."""
        ...

    def compute_descriptors(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute descriptors in evaluation mode: (B, H, W, 3) -> (B, D), rows of length 1.

        H and W are ``image_size`` times the largest of ``config.scales``, or any size with ``config.longest``.
        """
        ...


class Detector(TaskLearner, Protocol):
    """An encoder under the heads of Mask R-CNN, or of Faster R-CNN if objects have only boxes.

    Its images, (H, W, 3) uint8, may have any size, each its own: they are resized inside, to ``image_size`` at most.
    """

    def train_step(
        self, images: Sequence[NDArray[np.uint8]], targets: Sequence[Instances], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """Take one optimiser step; the metrics are ``loss`` and its terms, each with a name of its own."""
        ...

    def detect_objects(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Find the objects in each image, in pixels of the image as it was given; in evaluation mode."""
        ...


class Segmenter(TaskLearner, Protocol):
    """An encoder under a head that predicts the class of each pixel, trained on images of ``image_size``."""

    def train_step(
        self, images: NDArray[np.uint8], labels: NDArray[np.uint8], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """Take one optimiser step on (B, H, W, 3) images and (B, H, W) classes, 255 for pixels that do not count.

        The metrics include ``loss``.
        """
        ...

    def segment_image(self, image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Predict the classes of an image (h, w, 3) of any size, resized to ``size`` = (H, W); in evaluation mode."""
        ...


class Answerer(TaskLearner, Protocol):
    """An encoder and a resampler as the eyes of a frozen language model, which answers questions about images.

    Text crosses this protocol as text, as its tokens are the language model's. ``language`` (plain JSON) describes
    that model, which is no part of the state.
    """

    language: Mapping[str, Any]

    def train_step(
        self,
        images: NDArray[np.uint8],
        prompts: Sequence[str],
        answers: Sequence[str],
        lr: float,
        weight_decay: float,
    ) -> Mapping[str, SupportsFloat]:
        """Take one optimiser step on (B, H, W, 3) images, a prompt about each and what is to be said behind it.

        The metrics include ``loss``: the mean over all tokens of the batch's answers and the tokens that end them.
        """
        ...

    def answer(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> list[str]:
        """Return the likeliest text behind each prompt: (B, H, W, 3) -> B texts."""
        ...

    def locate_latents(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what each latent takes of each patch in the resampler's last layer: (B, H, W, 3) -> (B, K, h, w).

        Mean over heads; the rest, up to 1 in all, it takes of other tokens.
        """
        ...


@dataclass(frozen=True)
class Piece:
    """A piece of a document: its text, and whether that is an answer, which ends with the token that ends a text."""

    text: str
    is_answer: bool = False


class TextLearner(Protocol):
    """A tiny language model in training on text alone, of so many ``parameters`` that knows so many ``words``."""

    parameters: int
    words: int

    def train_step(
        self, documents: Sequence[Sequence[Piece]], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """Take one optimiser step on documents; the metrics include ``loss``, a weighted mean over their tokens."""
        ...

    def answer(self, prompts: Sequence[str], most: int) -> list[str]:
        """Return the likeliest text behind each prompt, ``most`` tokens at most."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model and its tokenizer into a folder in Hugging Face's layout."""
        ...


class TokenizerLearner(Protocol):
    """A discrete VAE in training; its codes become BEiT's visual tokens."""

    def train_step(
        self, images: NDArray[np.uint8], temperature: float, lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """Take one optimiser step on (B, H, W, 3) images, with codes relaxed at ``temperature``.

        The metrics are ``loss``, its two terms ``mse`` and ``kl``, and two figures on the codes of the latest
        ``run.log_every`` batches: ``codes_used`` in [0, 1] is the share of the vocabulary that occurs, ``perplexity``
        the exponential of their distribution's entropy, which is the vocabulary's size if all occur equally often.
        """
        ...

    def reconstruct_images(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Reconstruct (B, H, W, 3) images from their tokens: (B, H, W, 3) in [0, 1], and the tokens (B, h * w)."""
        ...

    def state(self) -> LearnerState:
        """See :meth:`Learner.state`."""
        ...

    def load(self, state: LearnerState) -> None:
        """See :meth:`Learner.load`."""
        ...


class Encoder(Protocol):
    """A trained encoder in evaluation mode, without gradient, for measurement and pictures.

    It takes images of ``image_size`` = (H, W) pixels, prepared as ``inputs`` says, and cuts them into ``grid`` = (down,
    across) patches; ``notes`` say what was loaded and what was not. Of the L tokens of a ViT the last N are patches,
    and the first is the class token if ``has_class_token``.
    """

    image_size: tuple[int, int]
    inputs: InputSpec
    grid: tuple[int, int]
    notes: tuple[str, ...]

    @property
    def has_class_token(self) -> bool:
        """True if the first token is the class token."""
        ...

    def compute_features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pool the tokens after the last norm: (B, H, W, 3) -> (B, D), as the encoder was created to."""
        ...

    def compute_similarity(self, images: NDArray[np.uint8], blocks: int) -> NDArray[np.float32]:
        """Compute the symmetrised mean attention of the first ``blocks`` blocks: (B, H, W, 3) -> (B, N, N)."""
        ...

    def compute_tokens(self, images: NDArray[np.uint8], blocks: int) -> NDArray[np.float32]:
        """Compute the patch tokens behind the first ``blocks`` blocks: (B, H, W, 3) -> (B, N, D)."""
        ...

    def compute_attention(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the softmax attention of the last block: (B, H, W, 3) -> (B, heads, L, L)."""
        ...

    def iterate_attention(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        """Yield the softmax attention of every block, one after the other: (B, heads, L, L) each."""
        ...


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
