"""Four maps of features, at strides 4, 8, 16 and 32, from an encoder: what dense prediction builds on.

Shapes: B images of H x W pixels, N = h * w patches, D features of a ViT, C channels of a level.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from ehm.backends.base import Processes
from ehm.backends.mindspore.models.canvas import CanvasTokens, can_take_any_size, lay_out_patches, place_grid
from ehm.backends.mindspore.models.loading import load_model
from ehm.backends.mindspore.models.maps import BatchNorm, Doubling, Gelu, Pooling, build_resize
from ehm.backends.mindspore.models.rotary import compute_rotations
from ehm.config import ModelSource
from ehm.config.encoders import EncoderSpec, SwinSpec, VitSpec
from ehm.data.bilinear import interpolate_side
from ehm.errors import ConfigError
from ehm.models.pyramid import STRIDES, find_taps, plan_resizing, round_stride
from ehm.models.resample import compute_bicubic_weights
from ehm.models.shapes import spec_from_json
from ehm.models.weights import LoadedModel, Weights

__all__ = ["build_pyramid", "load_pyramid"]

_BEHIND = ("norm.", "fc_norm.", "attn_pool.")
"""Beginnings of the names of an encoder's parameters behind its last map."""


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
        self.spec = spec
        stride = round_stride(spec.patch_size)
        grid = (image_size[0] // stride, image_size[1] // stride)
        self.resize = None
        if stride != spec.patch_size:
            self.resize = build_resize(image_size, (grid[0] * spec.patch_size, grid[1] * spec.patch_size))
        self.resampling = None
        if encoder.pos_embed is not None and grid != spec.grid:
            down = compute_bicubic_weights(grid[0], spec.grid[0])
            across = compute_bicubic_weights(grid[1], spec.grid[1])
            self.resampling = Tensor(np.kron(down, across).astype(np.float32))
        if encoder.rotations is not None:
            encoder.rotations = Tensor(compute_rotations(spec.form.rotary, grid, spec.width // spec.heads))
        self.grid = grid
        self.taps = taps
        self.channels = (spec.width,) * len(STRIDES)
        self.neck = nn.CellList([_build_neck(spec.width, stride, wanted, dtype, processes, rng) for wanted in STRIDES])
        unused = tuple(f"blocks.{index}." for index in range(max(taps) + 1, spec.depth))
        _freeze(encoder, (*unused, *_BEHIND))

    def construct(self, images: Tensor, keep: Tensor | None = None) -> list[Tensor]:
        """See the class; ``keep`` (2 * depth, B, 1, 1) are drop path's factors."""
        if self.resize is not None:
            images = self.resize(images)
        bias, rotations = self.encoder.locate()
        tokens = self.encoder.prepend_prefix(self._embed(images))
        outputs = []
        for index in range(max(self.taps) + 1):
            block = self.encoder.blocks[index]
            if keep is None:
                tokens = block(tokens, bias, rotations)
            else:
                tokens = block(tokens, bias, rotations, keep[2 * index], keep[2 * index + 1])
            outputs.append(tokens)
        return self._arrange_levels(outputs, self.grid)

    def compute_canvas_levels(
        self,
        patches: Tensor,
        resampling: Tensor | None,
        rotations: Tensor | None,
        bias: Tensor,
        grid: tuple[int, int],
    ) -> list[Tensor]:
        """Compute the maps of images on a canvas, whose patches form a ``grid``; those of evaluation.

        See :mod:`ehm.backends.mindspore.models.canvas`.
        """
        tokens = self.encoder.prepend_prefix(self.encoder.embed_patches(patches, resampling))
        outputs = []
        for index in range(max(self.taps) + 1):
            tokens = self.encoder.blocks[index](tokens, bias, rotations)
            outputs.append(tokens)
        return self._arrange_levels(outputs, grid)

    def lay_out(self, pixels: NDArray[np.float32], size: tuple[int, int]) -> CanvasTokens:
        """Lay out normalised images (B, 3, H, W) on a canvas of ``size``, both multiples of 32 pixels."""
        stride = round_stride(self.spec.patch_size)
        grid = (pixels.shape[2] // stride, pixels.shape[3] // stride)
        canvas = (size[0] // stride, size[1] // stride)
        if stride != self.spec.patch_size:
            down = interpolate_side(pixels.shape[2], grid[0] * self.spec.patch_size)
            across = interpolate_side(pixels.shape[3], grid[1] * self.spec.patch_size)
            pixels = (down @ pixels @ across.T).astype(np.float32)
        return lay_out_patches(pixels, self.spec, place_grid(grid, canvas), canvas[0] * canvas[1])

    def _arrange_levels(self, outputs: list[Tensor], grid: tuple[int, int]) -> list[Tensor]:
        """Bring the outputs of blocks to the strides of the levels."""
        levels = []
        for level in range(len(self.taps)):
            patches = outputs[self.taps[level]][:, self.encoder.prefix :]
            levels.append(self.neck[level](_arrange_map(patches, grid)))
        return levels

    def _embed(self, images: Tensor) -> Tensor:
        """Embed images as patch tokens with positions for their grid: (B, 3, H, W) -> (B, N, D)."""
        encoder = self.encoder
        if self.resampling is None:
            return encoder.embed(images)
        positions = encoder.pos_embed[0, encoder.position_tokens :]
        return encoder.patch_embed(images).astype(ms.float32) + self.resampling @ positions


class SwinPyramid(nn.Cell):
    """A Swin, ``encoder``, whose stages ``taps`` have maps at the strides of the levels.

    Normalised (B, 3, H, W) of the encoder's own size -> four maps (B, C_i, H / s_i, W / s_i).
    """

    def __init__(self, encoder: Any, spec: SwinSpec, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self.sizes = tuple(spec.measure_map(stage) for stage in taps)
        # a level is what leaves the last block of its stage
        self.last_blocks = tuple(sum(spec.depths[: stage + 1]) - 1 for stage in taps)
        self.channels = tuple(spec.width << stage for stage in taps)
        unused = tuple(f"layers.{stage}." for stage in range(max(taps) + 1, len(spec.depths)))
        _freeze(encoder, (*unused, *_BEHIND))

    def construct(self, images: Tensor, keep: Tensor | None = None) -> list[Tensor]:
        """See the class; ``keep`` (2 * blocks, B, 1, 1) are drop path's factors."""
        tokens = self.encoder.embed(images)
        outputs = []
        for index in range(self.last_blocks[-1] + 1):
            stage, place = self.encoder.places[index]
            tokens = self.encoder.enter_block(index, tokens)
            block = self.encoder.layers[stage].blocks[place]
            if keep is None:
                tokens = block(tokens)
            else:
                tokens = block(tokens, None, None, keep[2 * index], keep[2 * index + 1])
            outputs.append(tokens)
        levels = []
        for level in range(len(self.sizes)):
            levels.append(_arrange_map(outputs[self.last_blocks[level]], self.sizes[level]))
        return levels


def build_pyramid(
    encoder: Any,
    spec: EncoderSpec,
    image_size: tuple[int, int],
    blocks: tuple[int, ...] | None,
    dtype: Any,
    processes: Processes,
    rng: np.random.Generator,
) -> Any:
    """Build the pyramid of ``encoder`` for images of ``image_size``; raises as :func:`find_taps` does."""
    taps = find_taps(spec, blocks)
    if isinstance(spec, SwinSpec):
        return SwinPyramid(encoder, spec, taps)
    return VitPyramid(encoder, spec, image_size, taps, dtype, processes, rng)


def load_pyramid(
    source: ModelSource,
    seed: int,
    image_size: tuple[int, int],
    blocks: tuple[int, ...] | None,
    dtype: Any,
    processes: Processes,
    weights: Weights | None = None,
) -> tuple[Any, LoadedModel]:
    """Load the encoder that ``source`` names, without head, as a pyramid for images of ``image_size`` = (H, W).

    A ViT whose positions are added or rotary keeps those of its weights; any other encoder is made for ``image_size``.
    The rest of the pyramid begins with weights that ``seed`` starts. ``weights`` are what ``source`` names if that was
    opened already. Raises as :func:`load_model` and :func:`find_taps` do.
    """
    loaded = load_model(source, seed, dtype=dtype, weights=weights)
    spec = spec_from_json(loaded.architecture)
    if not can_take_any_size(spec) and loaded.image_size != image_size:
        loaded = load_model(source.model_copy(update={"image_size": image_size}), seed, dtype=dtype, weights=weights)
        spec = spec_from_json(loaded.architecture)
    if isinstance(spec, VitSpec) and spec.relative and round_stride(spec.patch_size) != spec.patch_size:
        raise ConfigError(
            f"model: patches of {spec.patch_size} pixels; with relative positions they need a power of two"
        )
    rng = np.random.default_rng([seed, 1])  # the encoder begins with the numbers of the seed alone
    return build_pyramid(loaded.model, spec, image_size, blocks, dtype, processes, rng), loaded


def _arrange_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Arrange tokens as a map of ``size``: (B, h * w, D) -> (B, D, h, w), float32."""
    columns = tokens.astype(ms.float32).swapaxes(1, 2)
    return columns.reshape((columns.shape[0], columns.shape[1], *size))


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


def _freeze(encoder: Any, prefixes: tuple[str, ...]) -> None:
    """Let those parameters of an encoder learn nothing whose names begin so: nobody takes what they give."""
    for name, parameter in encoder.parameters_and_names():
        if name.startswith(prefixes):
            parameter.requires_grad = False
