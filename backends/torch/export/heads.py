"""What a timm model gives besides its logits, as one module with several outputs.

Shapes: B images, N = h * w patches, L = N tokens and those before them, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ehm.backends.torch.models.pyramid import fix_size
from ehm.backends.torch.models.upernet import UperNet, upsample
from ehm.errors import ExportError
from ehm.models.heads import Output

__all__ = ["Heads", "Scores"]


class Heads(nn.Module):
    """Normalised images (B, 3, H, W) -> a tuple of ``outputs``, as :data:`ehm.models.heads.Forward` describes them.

    ExportError where ``patches`` are asked for and the model's tokens are no grid.
    """

    def __init__(self, model: nn.Module, outputs: Sequence[Output]) -> None:
        super().__init__()
        self.model: Any = model
        self.outputs = tuple(outputs)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        tokens = self.model.forward_features(images)
        return tuple(self._output(name, tokens, images.shape[2], images.shape[3]) for name in self.outputs)

    def _output(self, name: Output, tokens: Any, height: int, width: int) -> Tensor:
        if name == "patches":
            return self._patches(tokens, height, width)
        values: Tensor = self.model.forward_head(tokens, pre_logits=name == "features")
        return values

    def _patches(self, tokens: Any, height: int, width: int) -> Tensor:
        """(B, L, D), (B, h, w, D) or (B, D, h, w) -> (B, D, h, w); the patches of tokens are equally far apart."""
        model = self.model
        if isinstance(tokens, Tensor) and tokens.ndim == 3:
            if isinstance(getattr(model, "norm", None), nn.Identity):  # the norm stands behind the average
                tokens = getattr(model, "fc_norm", model.norm)(tokens)
            tokens = tokens[:, getattr(model, "num_prefix_tokens", 0) :]
            stride = math.sqrt(height * width / tokens.shape[1])
            h, w = round(height / stride), round(width / stride)
            if h * w == tokens.shape[1]:
                return tokens.transpose(1, 2).unflatten(2, (h, w))
        elif isinstance(tokens, Tensor) and tokens.ndim == 4:
            return tokens.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else tokens
        raise ExportError(
            f"{type(model).__name__}: its tokens are no grid of patches; --head classifier and features export it"
        )


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
