"""BEiT (Bao et al., 2022): predict the visual tokens of what is hidden.

Shapes: B images, N output tokens of D features, K hidden ones, k masks an image, a vocabulary of C visual tokens.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from ehm.backends.base import Reconstruction
from ehm.backends.mindspore.models.blocks import Dense
from ehm.backends.mindspore.models.dvae import load_tokenizer
from ehm.backends.mindspore.models.initial import init_masked
from ehm.backends.mindspore.models.masked_encoder import MaskedSwin, MaskedVit, encode_masked_images
from ehm.backends.mindspore.models.patches import gather_tokens, index_all_patches
from ehm.backends.mindspore.models.tokenizers import DiscreteVae, Tokenizer
from ehm.backends.mindspore.objectives.base import MindsporeObjective
from ehm.backends.reconstruction import reconstruct_tokens
from ehm.config import TrainConfig
from ehm.config.encoders import EncoderSpec
from ehm.config.inputs import Means
from ehm.models.resample import compute_bicubic_weights, resample_images

__all__ = ["BeitSwin", "BeitVit", "MindsporeBeit", "VisualTokens", "build_beit"]


class VisualTokens:
    """The visual token of each output cell, by a frozen ``tokenizer`` (:mod:`ehm.backends.mindspore.models.dvae`).

    The tokenizer sees images of ``image_size`` at the size at which its tokens are those of the output ``grid``: BEiT's
    112 pixels for 14 x 14. ``mean`` and ``std`` are those that the images were normalised with.
    """

    def __init__(
        self, tokenizer: Tokenizer, grid: tuple[int, int], image_size: tuple[int, int], mean: Means, std: Means
    ) -> None:
        self.tokenizer = tokenizer
        self._grid = grid
        self._image_size = image_size
        # resampling as two matrix products, one for each axis
        down = compute_bicubic_weights(grid[0] * tokenizer.stride, image_size[0])
        across = compute_bicubic_weights(grid[1] * tokenizer.stride, image_size[1])
        self._down = Tensor(down.astype(np.float32))
        self._across = Tensor(across.astype(np.float32))
        self._mean = Tensor(np.array(mean, np.float32).reshape(1, 3, 1, 1))
        self._std = Tensor(np.array(std, np.float32).reshape(1, 3, 1, 1))

    def compute(self, images: Tensor) -> Tensor:
        """Compute visual tokens in float32: normalised (B, 3, H, W) -> (B, N) in [0, C)."""
        pixels = images * self._std + self._mean
        batch, _, height, width = pixels.shape
        across = ops.MatMul(transpose_b=True)(pixels.reshape((-1, width)), self._across)
        columns = across.reshape((batch * 3, height, -1)).swapaxes(1, 2).reshape((-1, height))
        resized = ops.MatMul(transpose_b=True)(columns, self._down).reshape((batch, 3, self._across.shape[0], -1))
        # bicubic resampling overshoots
        return self.tokenizer.compute_tokens(ops.clamp(resized.swapaxes(2, 3), 0, 1))

    def decode(self, visual_tokens: Tensor) -> NDArray[np.float32] | None:
        """Return the images (B, H, W, 3) in [0, 1] that tokens (B, N) stand for, None if the tokenizer has no decoder.

        They are enlarged to the size of the images that tokens were made of.
        """
        if not isinstance(self.tokenizer, DiscreteVae):
            return None
        decoded = self.tokenizer.decode_tokens(visual_tokens, self._grid).asnumpy()
        return resample_images(decoded, self._image_size)


class TokenHead:
    """The head and the loss of BEiT, over an encoder that a subclass adds."""

    lm_head: Dense

    def construct(
        self,
        images: Tensor,
        visible: Tensor,
        masked: Tensor,
        restore: Tensor,
        visual_tokens: Tensor,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Compute the mean cross-entropy of the ``visual_tokens`` (B, N) of hidden cells, from indices (k * B, ...).

        For ``keep`` see :func:`encode_masked_images`.
        """
        logits = self.predict(images, visible, restore, masked, keep).astype(ms.float32)
        batch, cells = visual_tokens.shape
        views = masked.shape[0] // batch
        # the k masks of an image lie one after the other, and have the same visual tokens
        repeated = ops.broadcast_to(visual_tokens.reshape((batch, 1, cells)), (batch, views, cells))
        target = ops.gather_elements(repeated.reshape((-1, cells)), 1, masked)
        likelihood = ops.log_softmax(logits, axis=-1)
        return -ops.gather_elements(likelihood, 2, target.reshape((*target.shape, 1))).mean()

    def predict(
        self, images: Tensor, visible: Tensor, restore: Tensor, wanted: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """Predict how likely each visual token is in the cells ``wanted`` (k * B, K): logits (k * B, K, C)."""
        encoded = encode_masked_images(self, images, visible, restore, keep)
        return self.lm_head(gather_tokens(encoded, wanted))


class BeitVit(TokenHead, MaskedVit):
    """BEiT with a ViT."""


class BeitSwin(TokenHead, MaskedSwin):
    """BEiT with a Swin, whose output cells are as many as the visual tokens of a smaller image."""


MODELS: dict[str, Any] = {"vit": BeitVit, "swin": BeitSwin}
"""The model of each encoder family."""


def build_beit(spec: EncoderSpec, vocabulary: int, rng: np.random.Generator, dtype: Any = ms.float32) -> Any:
    """Return an untrained BEiT on an encoder of ``spec`` that predicts visual tokens of a ``vocabulary``.

    Its weights are drawn from ``rng``.
    """
    model = MODELS[spec.family](spec, dtype)
    model.lm_head = Dense(spec.features, vocabulary, dtype)
    init_masked(model, spec, rng)
    return model


class MindsporeBeit(MindsporeObjective):
    """BEiT on a MindSpore target. Raises ConfigError and CheckpointError as ``load_tokenizer`` does."""

    has_targets = True

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        tokenizer = load_tokenizer(config.model.tokenizer)
        self._visual_tokens = VisualTokens(
            tokenizer, self.spec.grid, self.spec.image_size, config.data.mean, config.data.std
        )

    def build_model(self, dtype: Any) -> Any:
        """See :meth:`MindsporeObjective.build_model`."""
        return build_beit(self.spec, self._visual_tokens.tokenizer.vocabulary, self.create_generator(), dtype)

    def compute_targets(self, images: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`MindsporeObjective.compute_targets`."""
        return (self._visual_tokens.compute(images),)

    def reconstruct(self, model: Any, images: Tensor, visible: Tensor, restore: Tensor) -> Reconstruction:
        """See :meth:`MindsporeObjective.reconstruct`."""
        true_tokens = self._visual_tokens.compute(images)
        logits = model.predict(images, visible, restore, index_all_patches(restore)).astype(ms.float32)
        predicted_tokens = ops.argmax(logits, -1).astype(ms.int32)
        return reconstruct_tokens(
            self._visual_tokens.decode(predicted_tokens),
            self._visual_tokens.decode(true_tokens),
            (predicted_tokens == true_tokens).asnumpy(),
        )
