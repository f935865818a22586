"""Modules with several outputs for export: a timm model's logits, features and patches, or those of a larger network.

Shapes: B images, N = h * w patches, L = N tokens and those before them, D features, C classes; K visual tokens, W
features of a language model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ehm.backends.torch.models.pyramid import fix_size
from ehm.backends.torch.models.resampler import VisualTokens
from ehm.backends.torch.models.upernet import UperNet, upsample
from ehm.errors import ExportError
from ehm.models.heads import Output

__all__ = ["Eyes", "Heads", "Scores"]


class Heads(nn.Module):
    """Normalised images (B, 3, H, W) -> a tuple of ``outputs``, as :data:`ehm.models.heads.Forward` describes them.

    Raises ExportError if ``patches`` are asked for and the model's tokens are no grid.
    """

    def __init__(self, model: nn.Module, outputs: Sequence[Output]) -> None:
        super().__init__()
        self.model: Any = model
        self.outputs = tuple(outputs)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        tokens = self.model.forward_features(images)
        return tuple(self._compute_output(name, tokens, images.shape[2], images.shape[3]) for name in self.outputs)

    def _compute_output(self, name: Output, tokens: Any, height: int, width: int) -> Tensor:
        if name == "patches":
            return self._arrange_patches(tokens, height, width)
        values: Tensor = self.model.forward_head(tokens, pre_logits=name == "features")
        return values

    def _arrange_patches(self, tokens: Any, height: int, width: int) -> Tensor:
        """Arrange patches as a map: (B, L, D), (B, h, w, D) or (B, D, h, w) -> (B, D, h, w).

        The patches of tokens are taken to be equally far apart down and across.
        """
        model = self.model
        if isinstance(tokens, Tensor) and tokens.ndim == 3:
            if isinstance(getattr(model, "norm", None), nn.Identity):  # the norm stands behind the average
                tokens = getattr(model, "fc_norm", model.norm)(tokens)
            # without class and register tokens
            tokens = tokens[:, getattr(model, "num_prefix_tokens", 0) :]
            stride = math.sqrt(height * width / tokens.shape[1])
            h = round(height / stride)
            w = round(width / stride)
            if h * w == tokens.shape[1]:
                return tokens.transpose(1, 2).unflatten(2, (h, w))
        elif isinstance(tokens, Tensor) and tokens.ndim == 4:
            channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"  # as timm's Swins
            return tokens.permute(0, 3, 1, 2) if channels_last else tokens
        raise ExportError(
            f"{type(model).__name__}: its tokens are no grid of patches; --head classifier and features export it"
        )


class Eyes(nn.Module):
    """The eyes of a language model: normalised (B, 3, H, W) -> ``visual_tokens`` (B, K, W)."""

    outputs: tuple[Output, ...] = ("visual_tokens",)

    def __init__(self, model: VisualTokens) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return (self.model(images),)


class Scores(nn.Module):
    """A segmenter for images of one size: normalised (B, 3, H, W) -> ``scores`` (B, C, H, W), logits."""

    outputs: tuple[Output, ...] = ("scores",)

    def __init__(self, model: UperNet, image_size: tuple[int, int]) -> None:
        super().__init__()
        fix_size(model.pyramid, image_size)
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        scores, _ = self.model(images)
        return (upsample(scores, images.shape[2:]),)
