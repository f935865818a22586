"""A trained encoder on one torch device, for measurement and pictures.

Shapes: B images of H x W pixels, N patches, D features, L = 1 + N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ehm.backends.torch.engine.seeds import seed_weights
from ehm.backends.torch.engine.tensors import Pixels
from ehm.backends.torch.models.attention import attention_probs, mean_attention, patch_similarity
from ehm.backends.torch.models.loading import load_model
from ehm.backends.torch.models.swin import first_blocks, mean_cells, stage_similarity
from ehm.config import ModelSource, SourceConfig
from ehm.errors import ConfigError

__all__ = ["TorchEncoder"]


class TorchEncoder:
    """Implements :class:`ehm.backends.base.Encoder`, in float32.

    ``model`` is the torch module, a timm model without a head; pixels are normalised as its weights were trained,
    unless ``data`` sets it otherwise.
    """

    def __init__(self, source: ModelSource, device: torch.device, data: SourceConfig | None = None) -> None:
        with seed_weights():  # `scratch` and untrained models are the same every time
            loaded = load_model(source, pool="avg", fc_norm=False)
        self.inputs = loaded.inputs
        if data is not None:
            self.inputs = data.input_spec(loaded.inputs)
        self._pixels = Pixels(device, self.inputs.mean, self.inputs.std)
        self._origin = source.init
        self.model: Any = loaded.model.to(device).eval()
        self.image_size = loaded.image_size
        self.notes = loaded.notes
        self.grid = _output_grid(self.model, self.image_size)

    @torch.inference_mode()
    def compute_features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Encoder.compute_features`.

        A model of timm's that is no ViT pools in its own way.
        """
        tokens = self.model.forward_features(self._pixels(images))
        features: NDArray[np.float32] = self.model.forward_head(tokens, pre_logits=True).cpu().numpy()
        return features

    @torch.inference_mode()
    def compute_similarity(self, images: NDArray[np.uint8], blocks: int) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Encoder.compute_similarity`."""
        if isinstance(self.model, SwinTransformer):
            tokens = self.model.patch_embed(self._pixels(images))
            similarity = stage_similarity(self.model.layers, tokens, blocks, self.grid)
        else:
            attention = mean_attention(self._require_vit().blocks, self._embed(images), blocks)
            similarity = patch_similarity(attention)
        array: NDArray[np.float32] = similarity.cpu().numpy()
        return array

    @torch.inference_mode()
    def compute_tokens(self, images: NDArray[np.uint8], blocks: int) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Encoder.compute_tokens`; a Swin's are means over each cell of its output."""
        if isinstance(self.model, SwinTransformer):
            _, tokens = first_blocks(self.model.layers, self.model.patch_embed(self._pixels(images)), blocks)
            tokens = mean_cells(tokens, self.grid)
        else:
            tokens = self._embed(images)
            for block in self._require_vit().blocks[:blocks]:
                tokens = block(tokens)
            tokens = tokens[:, 1:]  # without the class token
        array: NDArray[np.float32] = tokens.cpu().numpy()
        return array

    @torch.inference_mode()
    def compute_attention(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Encoder.compute_attention`."""
        *earlier, last = self._require_vit().blocks
        tokens = self._embed(images)
        for block in earlier:
            tokens = block(tokens)
        attention: NDArray[np.float32] = attention_probs(last, tokens).cpu().numpy()
        return attention

    @torch.inference_mode()
    def iterate_attention(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.Encoder.iterate_attention`."""
        tokens = self._embed(images)
        for block in self._require_vit().blocks:
            yield attention_probs(block, tokens).cpu().numpy()
            tokens = block(tokens)

    def _embed(self, images: NDArray[np.uint8]) -> Tensor:
        """Embed images as the tokens (B, L, D) that enter the first block of a ViT."""
        model = self._require_vit()
        patches = model.patch_embed(self._pixels(images))
        tokens: Tensor
        if isinstance(model, Beit):
            tokens = torch.cat([model.cls_token.expand(len(patches), -1, -1), patches], dim=1)
            return tokens if model.pos_embed is None else tokens + model.pos_embed
        tokens = model.norm_pre(model._pos_embed(patches))
        return tokens

    def _require_vit(self) -> Any:
        """Return the model; raises ConfigError if it is no ViT with a class token."""
        if not isinstance(self.model, VisionTransformer | Beit) or self.model.num_prefix_tokens != 1:
            raise ConfigError(f"model.init {self._origin}: attention needs a ViT with one class token")
        return self.model


def _output_grid(model: Any, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return the patches down and across; for a Swin or a convolutional network, the cells of its last map."""
    if isinstance(model, VisionTransformer | Beit):
        return tuple(model.patch_embed.grid_size)
    reduction = model.feature_info[-1]["reduction"]
    return image_size[0] // reduction, image_size[1] // reduction
