"""Four maps of features, at strides 4, 8, 16 and 32, from an encoder: what dense prediction builds on.

Shapes: B images of H x W pixels, N = h * w patches, D features of a ViT, C channels of a level.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from ehm.backends.base import Processes
from ehm.backends.mindspore.models.loading import load_model
from ehm.backends.mindspore.models.maps import BatchNorm, Doubling, Gelu, Pooling, build_resize
from ehm.backends.mindspore.models.patches import prepend_class_token
from ehm.config import ModelSource
from ehm.config.encoders import VitSpec
from ehm.errors import ConfigError
from ehm.models.pyramid import STRIDES, find_taps, plan_resizing, round_stride
from ehm.models.resample import bicubic_weights
from ehm.models.shapes import spec_from_json
from ehm.models.weights import LoadedModel, Weights

__all__ = ["VitPyramid", "load_pyramid"]


class VitPyramid(nn.Cell):
    """A ViT, ``encoder``, and a neck that brings its maps to the strides of the levels.

    Normalised (B, 3, H, W) of ``image_size`` -> four maps (B, D, H / s_i, W / s_i). They are the outputs of the blocks
    ``taps``, enlarged by transposed convolutions or reduced by a maximum. If the side of its patches is no power of
    two, images are resized so that it becomes one. Positions that are added are resampled in every pass, so that a
    checkpoint has those of the encoder's own size.
    """

    def __init__(
        self,
        encoder: Any,
        spec: VitSpec,
        image_size: tuple[int, int],
        taps: tuple[int, ...],
        dtype: Any,
        processes: Processes,
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        stride = round_stride(spec.patch_size)
        grid = (image_size[0] // stride, image_size[1] // stride)
        self.resize = None
        if stride != spec.patch_size:
            self.resize = build_resize(image_size, (grid[0] * spec.patch_size, grid[1] * spec.patch_size))
        self.relative = spec.relative
        self.resamples = not spec.relative and grid != spec.grid
        if self.resamples:
            down = bicubic_weights(grid[0], spec.grid[0])
            across = bicubic_weights(grid[1], spec.grid[1])
            self.resampling = Tensor(np.kron(down, across).astype(np.float32))
        self.grid = grid
        self.taps = taps
        self.channels = (spec.width,) * len(STRIDES)
        self.neck = nn.CellList([_build_neck(spec.width, stride, wanted, dtype, processes, rng) for wanted in STRIDES])
        self.layer_count = max(taps) + 2
        _freeze(encoder, spec, max(taps))

    def construct(self, images: Tensor, keep: Tensor | None = None) -> list[Tensor]:
        """See the class; ``keep`` (2 * depth, B, 1, 1) are drop path's factors."""
        if self.resize is not None:
            images = self.resize(images)
        tokens = self._embed(images)
        outputs = []
        for index in range(max(self.taps) + 1):
            block = self.encoder.blocks[index]
            if keep is None:
                tokens = block(tokens)
            else:
                tokens = block(tokens, None, keep[2 * index], keep[2 * index + 1])
            outputs.append(tokens)
        levels = []
        for level in range(len(self.taps)):
            patches = outputs[self.taps[level]][:, 1:].astype(ms.float32).swapaxes(1, 2)
            values = patches.reshape((patches.shape[0], patches.shape[1], *self.grid))
            levels.append(self.neck[level](values))
        return levels

    def _embed(self, images: Tensor) -> Tensor:
        """Embed images as the tokens that enter the first block: (B, 3, H, W) -> (B, 1 + N, D)."""
        if not self.resamples:
            return self.encoder.embed(images)
        positions = self.encoder.pos_embed
        patches = self.encoder.patch_embed(images) + self.resampling @ positions[0, 1:]
        return prepend_class_token(patches, self.encoder.cls_token + positions[:, :1])


def load_pyramid(
    source: ModelSource,
    seed: int,
    image_size: tuple[int, int],
    blocks: tuple[int, ...] | None,
    dtype: Any,
    processes: Processes,
    weights: Weights | None = None,
) -> tuple[VitPyramid, LoadedModel]:
    """Load the encoder that ``source`` names, without head, as a pyramid for images of ``image_size`` = (H, W).

    An encoder whose positions are added keeps those of its weights; any other is made for ``image_size``. The rest of
    the pyramid begins with weights that ``seed`` starts. ``weights`` are what ``source`` names if that was opened
    already. Raises as :func:`load_model` and :func:`find_taps` do.
    """
    loaded = load_model(source, seed, dtype=dtype, weights=weights)
    spec = spec_from_json(loaded.architecture)
    has_own_size = not isinstance(spec, VitSpec) or spec.relative
    if has_own_size and loaded.image_size != image_size:
        loaded = load_model(source.model_copy(update={"image_size": image_size}), seed, dtype=dtype, weights=weights)
        spec = spec_from_json(loaded.architecture)
    taps = find_taps(spec, blocks)
    assert isinstance(spec, VitSpec)
    if spec.relative and round_stride(spec.patch_size) != spec.patch_size:
        raise ConfigError(
            f"model: patches of {spec.patch_size} pixels; with relative positions they need a power of two"
        )
    rng = np.random.default_rng([seed, 1])  # the encoder begins with the numbers of the seed alone
    return VitPyramid(loaded.model, spec, image_size, taps, dtype, processes, rng), loaded


def _build_neck(
    width: int, stride: int, wanted: int, dtype: Any, processes: Processes, rng: np.random.Generator
) -> nn.Cell:
    """Return a cell that brings maps of ``stride`` to the stride ``wanted``."""
    resizing = plan_resizing(stride, wanted)
    if resizing.shrinking > 1:
        return Pooling(resizing.shrinking)
    layers: list[nn.Cell] = []
    for _ in range(resizing.doublings):
        if layers:
            layers += [BatchNorm(width, processes), Gelu()]
        layers.append(Doubling(width, dtype, rng))
    return nn.SequentialCell(*layers) if layers else nn.Identity()


def _freeze(encoder: Any, spec: VitSpec, last: int) -> None:
    """Let those parts of a ViT learn nothing whose output nobody takes: blocks behind the ``last``, and its norm."""
    unused = [f"blocks.{index}." for index in range(last + 1, spec.depth)]
    for name, parameter in encoder.parameters_and_names():
        if name.startswith((*unused, "norm.", "fc_norm.")):
            parameter.requires_grad = False
