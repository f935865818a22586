"""The encoder of DALL-E's discrete VAE, which made BEiT's visual tokens (Ramesh et al., 2021; openai/DALL-E).

Parameter names are those of the published module. Shapes: B images of H x W pixels in [0, 1], K codes, D features.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ehm.backends.mindspore.models.tokenizers import Tokenizer
from ehm.models.tokenizer_weights import DalleSizes

__all__ = ["DalleEncoder"]

_EPSILON = 0.1
"""Pixels are mapped to [0.1, 0.9], which its logit-Laplace likelihood needs."""
_HALVING = 2


class DalleEncoder(Tokenizer):
    """DALL-E's encoder of ``sizes``, whose width is doubled in each further group, with weights of zero.

    Pixels of the shorter side are halved after each group but the last.
    """

    def __init__(self, sizes: DalleSizes) -> None:
        super().__init__()
        self.vocabulary = sizes.vocabulary
        self.stride = 2 ** (sizes.groups - 1)
        # the published scale of the residual branches
        gain = 1 / (sizes.groups * sizes.blocks) ** 2
        stack: OrderedDict[str, nn.Cell] = OrderedDict(input=_Convolution(3, sizes.width, 7))
        inside = sizes.width
        for number in range(1, sizes.groups + 1):
            group: OrderedDict[str, nn.Cell] = OrderedDict()
            outside = sizes.width * 2 ** (number - 1)
            for block in range(1, sizes.blocks + 1):
                group[f"block_{block}"] = _Block(inside, outside, gain)
                inside = outside
            if number < sizes.groups:
                group["pool"] = nn.MaxPool2d(_HALVING, _HALVING)
            stack[f"group_{number}"] = nn.SequentialCell(group)
        last = OrderedDict(relu=nn.ReLU(), conv=_Convolution(inside, sizes.vocabulary, 1))
        stack["output"] = nn.SequentialCell(last)
        self.blocks = nn.SequentialCell(stack)

    def compute_logits(self, images: Tensor) -> Tensor:
        """See :meth:`Tokenizer.compute_logits`."""
        return self.blocks((1 - 2 * _EPSILON) * images + _EPSILON)


class _Block(nn.Cell):
    """Four convolutions of a quarter of the width beside the identity, scaled by ``gain``."""

    def __init__(self, inside: int, outside: int, gain: float) -> None:
        super().__init__()
        self.gain = gain
        hidden = outside // 4
        self.id_path = None if inside == outside else _Convolution(inside, outside, 1)
        path: OrderedDict[str, nn.Cell] = OrderedDict()
        sizes = ((inside, hidden, 3), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, outside, 1))
        for number, size in enumerate(sizes, 1):
            path[f"relu_{number}"] = nn.ReLU()
            path[f"conv_{number}"] = _Convolution(*size)
        self.res_path = nn.SequentialCell(path)

    def construct(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D', h, w)."""
        same = x if self.id_path is None else self.id_path(x)
        return same + self.gain * self.res_path(x)


class _Convolution(nn.Cell):
    """A convolution that keeps height and width, its parameters called ``w`` and ``b``."""

    def __init__(self, inside: int, outside: int, kernel: int) -> None:
        super().__init__()
        self.w = Parameter(Tensor(np.zeros((outside, inside, kernel, kernel), np.float32)))
        self.b = Parameter(Tensor(np.zeros(outside, np.float32)))
        self.convolve = ops.Conv2D(outside, kernel, pad_mode="pad", pad=kernel // 2)

    def construct(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D', h, w)."""
        return self.convolve(x, self.w) + self.b.reshape((1, -1, 1, 1))
