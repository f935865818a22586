"""BEiT (Bao et al., 2022): predict the visual tokens of what is hidden.

Shapes: B images, N output tokens of D features, K hidden ones, a vocabulary of C visual tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ehm.backends.base import Reconstruction
from ehm.backends.reconstruction import reconstruct_tokens
from ehm.backends.torch.models.dvae import load_tokenizer
from ehm.backends.torch.models.masked_encoder import MaskedSwin, MaskedVit, encode_masked_images
from ehm.backends.torch.models.patches import gather_tokens, index_all_patches
from ehm.backends.torch.models.tokenizers import DiscreteVae, Tokenizer
from ehm.backends.torch.objectives.base import TorchObjective
from ehm.config import TrainConfig
from ehm.config.inputs import Means
from ehm.models.resample import compute_bicubic_weights, resample_images

__all__ = ["BeitSwin", "BeitVit", "TorchBeit", "VisualTokens", "build_beit"]


class VisualTokens:
    """The visual token of each output cell, by a frozen ``tokenizer`` (:mod:`ehm.backends.torch.models.dvae`).

    The tokenizer sees images of ``image_size`` at the size at which its tokens are those of the output ``grid``: BEiT's
    112 pixels for 14 x 14. ``mean`` and ``std`` are those that the images were normalised with.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        grid: tuple[int, int],
        image_size: tuple[int, int],
        mean: Means,
        std: Means,
        device: torch.device,
    ) -> None:
        self._tokenizer = tokenizer
        self._grid = grid
        self._image_size = image_size
        # resampling as two matrix products, one for each axis
        down = compute_bicubic_weights(grid[0] * tokenizer.stride, image_size[0])
        across = compute_bicubic_weights(grid[1] * tokenizer.stride, image_size[1])
        self._down = torch.from_numpy(down).float().to(device)
        self._across = torch.from_numpy(across).float().to(device)
        self._mean = torch.tensor(mean).view(1, 3, 1, 1).to(device)
        self._std = torch.tensor(std).view(1, 3, 1, 1).to(device)

    @property
    def vocabulary(self) -> int:
        """Number of visual tokens, C."""
        return self._tokenizer.vocabulary

    @torch.no_grad()
    def compute(self, images: Tensor) -> Tensor:
        """Compute visual tokens in float32: normalised (B, 3, H, W) -> (B, N) in [0, C)."""
        with torch.autocast(images.device.type, enabled=False):
            pixels = images * self._std + self._mean
            resized = self._down @ pixels @ self._across.T
            # bicubic resampling overshoots
            return self._tokenizer.compute_tokens(resized.clamp(0, 1))

    @torch.no_grad()
    def decode(self, visual_tokens: Tensor) -> NDArray[np.float32] | None:
        """Return the images (B, H, W, 3) in [0, 1] that tokens (B, N) stand for, None if the tokenizer has no decoder.

        They are enlarged to the size of the images that tokens were made of.
        """
        if not isinstance(self._tokenizer, DiscreteVae):
            return None
        with torch.autocast(visual_tokens.device.type, enabled=False):
            decoded = self._tokenizer.decode_tokens(visual_tokens, self._grid).cpu().numpy()
        return resample_images(decoded, self._image_size)


class TokenHead(nn.Module):
    """The head and the loss of BEiT, over an encoder that a subclass adds."""

    spec: Any

    def __init__(self, *args: Any, vocabulary: int) -> None:
        super().__init__(*args)
        self.lm_head = nn.Linear(self.spec.features, vocabulary)
        nn.init.trunc_normal_(self.lm_head.weight, std=0.02)
        nn.init.zeros_(self.lm_head.bias)

    def forward(
        self: Any,
        images: Tensor,
        visible: Tensor,
        masked: Tensor,
        restore: Tensor,
        tokens: Tensor | None = None,
        *,
        visual_tokens: Tensor,
    ) -> Tensor:
        """Compute the mean cross-entropy of the ``visual_tokens`` (B, N) of hidden cells, from indices (k * B, ...)."""
        logits = self.predict(images, visible, restore, masked, tokens)
        # the k masks of an image lie one after the other, and have the same visual tokens
        views = len(masked) // len(visual_tokens)
        repeated = visual_tokens.unsqueeze(1).expand(-1, views, -1).flatten(0, 1)
        target = repeated.gather(1, masked)
        return cross_entropy(logits.float().flatten(0, 1), target.flatten())

    def predict(
        self: Any, images: Tensor, visible: Tensor, restore: Tensor, wanted: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        """Predict how likely each visual token is in the cells ``wanted`` (k * B, K): logits (k * B, K, C)."""
        encoded = encode_masked_images(self, images, visible, restore, tokens)
        logits: Tensor = self.lm_head(gather_tokens(encoded, wanted))
        return logits


class BeitVit(TokenHead, MaskedVit):
    """BEiT with a ViT."""


class BeitSwin(TokenHead, MaskedSwin):  # type: ignore[misc]  # a loss, where timm's forward gives features
    """BEiT with a Swin, whose output cells are as many as the visual tokens of a smaller image."""


MODELS: dict[str, Any] = {"vit": BeitVit, "swin": BeitSwin}
"""The model of each encoder family."""


def build_beit(config: TrainConfig, vocabulary: int) -> Any:
    """Return an untrained BEiT that predicts visual tokens of a ``vocabulary``."""
    spec = config.spec
    return MODELS[spec.family](spec, config.model.drop_path, vocabulary=vocabulary)


class TorchBeit(TorchObjective):
    """BEiT on a torch device. Raises ConfigError and CheckpointError as ``load_tokenizer`` does."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        tokenizer = load_tokenizer(config.model.tokenizer, device)
        spec = config.spec
        self._visual_tokens = VisualTokens(
            tokenizer, spec.grid, spec.image_size, config.data.mean, config.data.std, device
        )

    def build_model(self) -> Any:
        """See :meth:`TorchObjective.build_model`."""
        return build_beit(self.config, self._visual_tokens.vocabulary)

    def compute_targets(self, images: Tensor) -> dict[str, Tensor]:
        """See :meth:`TorchObjective.compute_targets`."""
        return {"visual_tokens": self._visual_tokens.compute(images)}

    def reconstruct(self, model: Any, images: Tensor, visible: Tensor, restore: Tensor) -> Reconstruction:
        """See :meth:`TorchObjective.reconstruct`."""
        true_tokens = self._visual_tokens.compute(images)
        predicted_tokens = model.predict(images, visible, restore, index_all_patches(restore)).argmax(dim=-1)
        return reconstruct_tokens(
            self._visual_tokens.decode(predicted_tokens),
            self._visual_tokens.decode(true_tokens),
            (predicted_tokens == true_tokens).cpu().numpy(),
        )
