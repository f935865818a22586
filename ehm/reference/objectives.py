"""The losses of pretraining in NumPy and float64: MAE, SimMIM, BEiT and feature prediction.

Shapes: B images, N output tokens of the encoder, K hidden ones and V visible ones of an image, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.config import TrainConfig
from ehm.config.encoders import SwinSpec, VitSpec
from ehm.models.resample import compute_bicubic_weights
from ehm.reference.layers import Floats, Weights, apply_linear, apply_norm, normalise, normalise_pixels, split_patches
from ehm.reference.swin import Swin
from ehm.reference.tokenizer import find_stride, find_tokens
from ehm.reference.vit import Vit, run_plain_block, symmetrise

__all__ = ["Reference"]


@dataclass(frozen=True)
class Reference:
    """A pretraining model of ``config`` on ``images`` (B, H, W, 3) with ``masks`` (B, U) of the mask units.

    ``average`` are the weights of the moving average, for a teacher, and ``tokenizer`` those of BEiT's tokenizer.
    """

    config: TrainConfig
    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    average: Weights | None = None
    tokenizer: Weights | None = None

    def compute_similarity(self, weights: Weights) -> Floats:
        """Compute the similarity of the mask units by attention: (B, U, U)."""
        config = self.config
        if isinstance(config.spec, SwinSpec):
            swin = Swin(config.spec, weights)
            return self._pool(symmetrise(swin.compute_cell_attention(swin.embed(self._pixels), config.mask.blocks)))
        vit = Vit(config.spec, weights)
        _, attention = vit.run_blocks(vit.embed(self._pixels), blocks=config.mask.blocks)
        prefix = config.spec.form.prefix_tokens
        return self._pool(symmetrise(np.mean(attention, axis=(0, 2))[:, prefix:, prefix:]))

    def compute_saliency(self, weights: Weights) -> Floats:
        """Compute the class token's attention to the patches in the last block, mean over heads: (B, N)."""
        spec = self.config.spec
        assert isinstance(spec, VitSpec)
        vit = Vit(spec, weights)
        _, attention = vit.run_blocks(vit.embed(self._pixels))
        return attention[-1][:, :, 0, spec.form.prefix_tokens :].mean(axis=1)

    def find_targets(self) -> NDArray[Any]:
        """Compute all that hidden tokens are compared with, which does not depend on the weights: (B, N, ...)."""
        config = self.config
        side = config.spec.stride
        patches = split_patches(self._pixels, side)
        if config.objective == "simmim":
            return patches
        if config.objective == "mae":
            flat = patches.reshape(*patches.shape[:2], -1)
            if not config.model.norm_pix_loss:
                return flat
            # the variance of a sample, as torch has it
            spread = np.sqrt(flat.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
            return (flat - flat.mean(axis=-1, keepdims=True)) / spread
        if config.objective == "beit":
            assert self.tokenizer is not None
            stride = find_stride(self.tokenizer)
            down = compute_bicubic_weights(config.spec.grid[0] * stride, config.image_size[0])
            across = compute_bicubic_weights(config.spec.grid[1] * stride, config.image_size[1])
            resized = np.einsum("ij,bjkc,lk->bilc", down, self.images / 255, across).clip(0, 1)
            return find_tokens(self.tokenizer, resized)
        assert self.average is not None
        return self._compute_teacher_features(self.average)

    def compute_loss(self, weights: Weights, targets: NDArray[Any]) -> float:
        """Compute the loss of the hidden tokens, from targets of :meth:`find_targets`."""
        config = self.config
        hidden = np.nonzero(self._hidden)[1].reshape(len(self.images), -1)
        target = np.take_along_axis(targets, hidden.reshape(*hidden.shape, *[1] * (targets.ndim - 2)), axis=1)
        if config.objective in ("mae", "feature"):
            decoded = self._decode_visible(weights)
            name = "decoder_pred" if config.objective == "mae" else "feature_pred"
            predicted = apply_linear(weights, name, np.take_along_axis(decoded, hidden[..., None], axis=1))
        else:
            encoded = np.take_along_axis(self._encode_covered(weights), hidden[..., None], axis=1)
        if config.objective == "mae":
            return float(np.square(predicted - target).mean())
        if config.objective == "feature":
            return _compare_features(predicted, target, config.model.loss, config.model.loss_beta)
        if config.objective == "simmim":
            head = weights["decoder.0.weight"]
            values = encoded @ head.reshape(len(head), -1).T + weights["decoder.0.bias"]
            by_channel = target.transpose(0, 1, 4, 2, 3).reshape(values.shape)
            return float(np.abs(values - by_channel).mean())
        logits = apply_linear(weights, "lm_head", encoded)
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log_likelihood = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return float(-np.take_along_axis(log_likelihood, target[..., None].astype(np.int64), axis=-1).mean())

    @property
    def _pixels(self) -> Floats:
        return normalise_pixels(self.images, self.config.data.mean, self.config.data.std)

    @property
    def _hidden(self) -> NDArray[np.bool_]:
        """The hidden output tokens (B, N): a mask unit hides all that lie in it."""
        units = self.config.units
        factor = self.config.unit // self.config.spec.stride
        squares = self.masks.reshape(-1, *units).repeat(factor, axis=1).repeat(factor, axis=2)
        return squares.reshape(len(self.masks), -1)

    def _pool(self, matrix: Floats) -> Floats:
        """Average over the tokens of each pair of units: (B, N, N) -> (B, U, U)."""
        down, across = self.config.units
        factor = self.config.unit // self.config.spec.stride
        cells = matrix.reshape(-1, *(down, factor, across, factor) * 2).mean(axis=(2, 4, 6, 8))
        return cells.reshape(-1, down * across, down * across)

    def _decode_visible(self, weights: Weights) -> Floats:
        """Encode the visible patches and decode all places, as MAE does: (B, N, width of the decoder)."""
        config = self.config
        spec = config.spec
        assert isinstance(spec, VitSpec)
        vit = Vit(spec, weights)
        visible = np.nonzero(~self._hidden)[1].reshape(len(self.images), -1)
        tokens = np.take_along_axis(vit.embed(self._pixels), visible[..., None], axis=1)
        outputs, _ = vit.run_blocks(tokens, visible)
        narrow = apply_linear(weights, "decoder_embed", vit.apply_last_norm(outputs[-1]))
        # of the tokens before the patches, the decoder sees the class token alone
        class_tokens = 1 if spec.form.class_token else 0
        count = class_tokens + spec.grid[0] * spec.grid[1]
        x = np.broadcast_to(weights["mask_token"], (len(narrow), count, narrow.shape[-1])).copy()
        x[:, :class_tokens] = narrow[:, :class_tokens]
        rows = np.arange(len(x))[:, None]
        x[rows, class_tokens + visible] = narrow[:, spec.form.prefix_tokens :]
        x = x + weights["decoder_pos_embed"][:, 1 - class_tokens :]
        for index in range(config.model.decoder_depth):
            x = run_plain_block(weights, f"decoder_blocks.{index}.", x, config.model.decoder_heads)
        return apply_norm(weights, "decoder_norm", x[:, class_tokens:], 1e-6)

    def _encode_covered(self, weights: Weights) -> Floats:
        """Encode all patches with a mask token in place of the hidden ones, as SimMIM and BEiT do: (B, N, D)."""
        spec = self.config.spec
        if isinstance(spec, SwinSpec):
            swin = Swin(spec, weights)
            tokens = swin.embed(self._pixels)
            factor = spec.stride // spec.patch_size
            covered = self._hidden.reshape(-1, *spec.grid).repeat(factor, axis=1).repeat(factor, axis=2)
            return swin.encode(np.where(covered[..., None], weights["mask_token"][None], tokens))
        vit = Vit(spec, weights)
        mask_token = weights["mask_token"]
        positions = vit.patch_positions()
        if positions is not None:
            mask_token = mask_token + positions
        tokens = np.where(self._hidden[..., None], mask_token, vit.embed(self._pixels))
        outputs, _ = vit.run_blocks(tokens)
        return vit.apply_last_norm(outputs[-1])[:, spec.form.prefix_tokens :]

    def _compute_teacher_features(self, weights: Weights) -> Floats:
        """Compute the normalised features of all patches by a teacher that sees the whole image: (B, N, D)."""
        config = self.config
        spec = config.spec
        assert isinstance(spec, VitSpec)
        vit = Vit(spec, weights)
        outputs, _ = vit.run_blocks(vit.embed(self._pixels))
        blocks = config.model.teacher_blocks or max(1, spec.depth // 2)
        patches = [normalise(output[:, spec.form.prefix_tokens :], 1e-5) for output in outputs[-blocks:]]
        return normalise(np.mean(patches, axis=0), 1e-5)


def _compare_features(predicted: Floats, target: NDArray[Any], loss: str, beta: float) -> float:
    """Return 1 minus the mean cosine, or the mean smooth L1 loss."""
    wanted = np.asarray(target, np.float64)
    if loss == "cosine":
        lengths = np.linalg.norm(predicted, axis=-1) * np.linalg.norm(wanted, axis=-1)
        return float(1 - ((predicted * wanted).sum(axis=-1) / lengths).mean())
    distance = np.abs(predicted - wanted)
    return float(np.where(distance < beta, distance**2 / (2 * beta), distance - beta / 2).mean())
