"""Encoders under heads, in training for a task.

Shapes: B images of H x W pixels, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from ehm.storage.arrays import LearnerState

if TYPE_CHECKING:
    from ehm.config.inputs import InputSpec
    from ehm.data.instances import Detections, Instances

__all__ = ["Classifier", "Detector", "Embedder", "Segmenter", "TaskLearner"]


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

    def update_average(self, decay: float) -> None:
        """Move the average of the weights towards them after a step; called only with ``optim.ema_decay``.

        The average is what is measured then, and what :meth:`state` has as the parameters.
        """
        ...


class Classifier(TaskLearner, Protocol):
    """An encoder with a linear head, in fine-tuning or, with a frozen encoder, in linear probing."""

    def train_step(
        self,
        images: NDArray[np.uint8],
        targets: NDArray[np.float32],
        lr: float,
        weight_decay: float,
        positive_weights: NDArray[np.float32] | None = None,
    ) -> Mapping[str, SupportsFloat]:
        """Take one optimiser step on (B, H, W, 3) images and (B, C) targets; metrics include ``loss``.

        Targets are distributions over the classes, or with the loss ``binary_cross_entropy`` the shares to which each
        label is present. Only that loss takes ``positive_weights`` (C,), factors of what present labels contribute.
        """
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
