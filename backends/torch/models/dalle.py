"""The encoder of DALL-E's discrete VAE, which made BEiT's visual tokens (Ramesh et al., 2021; openai/DALL-E).

Parameter names are those of the published module. Shapes: B images of H x W pixels in [0, 1], K codes, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from ehm.backends.torch.engine.tensors import load_arrays
from ehm.backends.torch.models.tokenizers import Tokenizer
from ehm.models.tokenizer_weights import infer_dalle_sizes
from ehm.storage.arrays import Arrays

__all__ = ["DalleEncoder"]

_EPSILON = 0.1
"""Pixels are mapped to [0.1, 0.9], which its logit-Laplace likelihood needs."""


class DalleEncoder(Tokenizer):
    """DALL-E's encoder: ``groups`` of ``blocks`` residual blocks, ``width`` wide, doubled in each further group.

    Pixels of the shorter side are halved after each group but the last. The defaults are the published sizes.
    """

    def __init__(self, vocabulary: int = 8192, width: int = 256, groups: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.stride = 2 ** (groups - 1)
        # the published scale of the residual branches
        gain = 1 / (groups * blocks) ** 2
        stack = nn.Sequential()
        stack.add_module("input", _Conv(3, width, 7))
        inside = width
        for number in range(1, groups + 1):
            group = nn.Sequential()
            outside = width * 2 ** (number - 1)
            for block in range(1, blocks + 1):
                group.add_module(f"block_{block}", _Block(inside, outside, gain))
                inside = outside
            if number < groups:
                group.add_module("pool", nn.MaxPool2d(2))
            stack.add_module(f"group_{number}", group)
        output = nn.Sequential()
        output.add_module("relu", nn.ReLU())
        output.add_module("conv", _Conv(inside, vocabulary, 1))
        stack.add_module("output", output)
        self.blocks = stack

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> DalleEncoder:
        """Build the encoder with the parameters ``arrays``; sizes follow from their names and shapes.

        Raises CheckpointError if they are not such an encoder's.
        """
        sizes = infer_dalle_sizes(arrays)
        encoder = cls(sizes.vocabulary, sizes.width, sizes.groups, sizes.blocks)
        load_arrays(encoder, arrays)
        return encoder

    def compute_logits(self, images: Tensor) -> Tensor:
        """See :meth:`Tokenizer.compute_logits`."""
        logits: Tensor = self.blocks((1 - 2 * _EPSILON) * images + _EPSILON)
        return logits


class _Block(nn.Module):
    """Four convolutions of a quarter of the width beside the identity, scaled by ``gain``."""

    def __init__(self, inside: int, outside: int, gain: float) -> None:
        super().__init__()
        self._gain = gain
        hidden = outside // 4
        self.id_path = nn.Identity() if inside == outside else _Conv(inside, outside, 1)
        self.res_path = nn.Sequential()
        sizes = ((inside, hidden, 3), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, outside, 1))
        for number, size in enumerate(sizes, 1):
            self.res_path.add_module(f"relu_{number}", nn.ReLU())
            self.res_path.add_module(f"conv_{number}", _Conv(*size))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D', h, w)."""
        refined: Tensor = self.id_path(x) + self._gain * self.res_path(x)
        return refined


class _Conv(nn.Module):
    """A convolution that keeps height and width, its parameters called ``w`` and ``b``."""

    def __init__(self, inside: int, outside: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(outside, inside, kernel, kernel) / (inside * kernel**2) ** 0.5)
        self.b = nn.Parameter(torch.zeros(outside))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D', h, w)."""
        return conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)
