"""Feature prediction: hidden patches as a teacher sees them, who sees the whole image (data2vec, I-JEPA, MILAN, EVA).

Shapes: B images, N patches, V visible ones, K hidden ones, k masks an image, D width.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from ehm.backends.base import Reconstruction
from ehm.backends.common import count_averaged_blocks
from ehm.backends.mindspore.engine.tensors import load_arrays, to_arrays
from ehm.backends.mindspore.models.blocks import Dense
from ehm.backends.mindspore.models.initial import init_xavier
from ehm.backends.mindspore.models.patches import gather_tokens, index_all_patches
from ehm.backends.mindspore.models.visible_decoder import VisibleDecoder, VisibleEncoder
from ehm.backends.mindspore.objectives.base import MindsporeObjective
from ehm.backends.reconstruction import reconstruct_features
from ehm.config import ModelConfig, TrainConfig
from ehm.config.encoders import VitSpec

__all__ = ["FeaturePredictor", "MindsporeFeature", "compute_patch_features"]

_EPSILON = 1e-5
"""Epsilon of the normalisation of features, which is torch's own of a layer norm."""
_SHORTEST = 1e-12
"""Smallest length that features are divided by, as in torch."""


class FeaturePredictor(VisibleDecoder):
    """A ViT of ``spec`` under a light decoder; ``construct`` gives the loss of the features that it predicts."""

    def __init__(self, spec: VitSpec, model: ModelConfig, rng: np.random.Generator, dtype: Any = ms.float32) -> None:
        super().__init__(spec, model.decoder_width, model.decoder_depth, model.decoder_heads, dtype)
        # another name than that of MAE's last layer, which may have the same shape and predicts pixels
        self.feature_pred = Dense(model.decoder_width, spec.width, dtype)
        self.loss = model.loss
        self.beta = model.loss_beta
        init_xavier(self, rng)

    def construct(self, images: Tensor, visible: Tensor, masked: Tensor, restore: Tensor, features: Tensor) -> Tensor:
        """Compute the mean loss of hidden patches against ``features`` (B, N, D) of a teacher.

        Indices are (k * B, ...): the k masks of an image lie one after the other.
        """
        predicted = self.predict(images, visible, restore, masked).astype(ms.float32)
        target = gather_tokens(features, masked)
        if self.loss == "cosine":
            return 1 - compute_cosine(predicted, target).mean()
        return _compute_smooth_l1(predicted - target, self.beta).mean()

    def predict(self, images: Tensor, visible: Tensor, restore: Tensor, wanted: Tensor) -> Tensor:
        """Predict the features of the patches at indices ``wanted`` (k * B, K): (k * B, K, D)."""
        return self.feature_pred(self.decode(self.encode(self.embed(images), visible), restore, wanted))


class MindsporeFeature(MindsporeObjective):
    """Feature prediction on a MindSpore target."""

    has_targets = True

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self._averaged_blocks = count_averaged_blocks(config)

    def build_model(self, dtype: Any) -> FeaturePredictor:
        """See :meth:`MindsporeObjective.build_model`."""
        return FeaturePredictor(self.spec, self.config.model, self.create_generator(), dtype)

    def build_teacher(self, model: Any, average: Any | None, dtype: Any) -> Any:
        """See :meth:`MindsporeObjective.build_teacher`."""
        if self.config.model.teacher == "ema":
            return average
        teacher = VisibleEncoder(self.spec, dtype)
        weights = to_arrays(model)
        load_arrays(teacher, {name: weights[name] for name, _ in teacher.parameters_and_names()})
        teacher.update_parameters_name("teacher.")  # names are unique within a graph
        return teacher

    def compute_targets(self, images: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`MindsporeObjective.compute_targets`."""
        # in the type of the run: the teacher sees all patches, which takes longer than encoding the visible ones
        return (compute_patch_features(self.teacher, images, self._averaged_blocks),)

    def describe_targets(self, targets: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """See :meth:`MindsporeObjective.describe_targets`.

        ``target_spread`` is the standard deviation over the images, mean over patches and features. It falls to 0 if
        the features no longer depend on the image: if the teacher has collapsed.
        """
        (features,) = targets
        variance = ops.square(features - features.mean(axis=0)).mean(axis=0)
        return {"target_spread": ops.sqrt(variance).mean()}

    def reconstruct(self, model: Any, images: Tensor, visible: Tensor, restore: Tensor) -> Reconstruction:
        """See :meth:`MindsporeObjective.reconstruct`."""
        (features,) = self.compute_targets(images)
        predicted = model.predict(images, visible, restore, index_all_patches(restore)).astype(ms.float32)
        return reconstruct_features(compute_cosine(predicted, features).asnumpy())


def compute_patch_features(teacher: VisibleEncoder, images: Tensor, averaged_blocks: int = 0) -> Tensor:
    """Compute the features of all patches of normalised (B, 3, H, W): (B, N, D), float32.

    Those of a patch have mean 0 and variance 1. They are the tokens behind the last norm; with ``averaged_blocks`` the
    mean over so many last blocks of their outputs, each normalised, and normalised again (data2vec, section 3.3, and
    its command for ViT-B).
    """
    bias, rotations = teacher.locate()
    prefix = teacher.prefix
    tokens = teacher.prepend_prefix(teacher.embed(images))
    first = len(teacher.blocks) - averaged_blocks
    total = 0.0
    for index, block in enumerate(teacher.blocks):
        tokens = block(tokens, bias, rotations)
        if index >= first:
            total = total + _normalise(tokens[:, prefix:])
    if averaged_blocks == 0:
        return _normalise(teacher.norm(tokens)[:, prefix:])
    return _normalise(total / averaged_blocks)


def compute_cosine(left: Tensor, right: Tensor) -> Tensor:
    """Return the cosine of the angle between features (..., D): (...)."""
    lengths = _measure_length(left) * _measure_length(right)
    return (left * right).sum(axis=-1) / lengths


def _measure_length(features: Tensor) -> Tensor:
    return ops.maximum(ops.sqrt(ops.square(features).sum(axis=-1)), _SHORTEST)


def _compute_smooth_l1(difference: Tensor, beta: float) -> Tensor:
    """Return half the square of ``difference`` over ``beta`` where it is smaller than that, else its size less."""
    size = ops.abs(difference)
    return ops.where(size < beta, 0.5 * ops.square(difference) / beta, size - 0.5 * beta)


def _normalise(features: Tensor) -> Tensor:
    """Bring features (..., D) to mean 0 and variance 1."""
    features = features.astype(ms.float32)
    centred = features - features.mean(axis=-1, keep_dims=True)
    return centred / ops.sqrt(ops.square(centred).mean(axis=-1, keep_dims=True) + _EPSILON)
