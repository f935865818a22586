"""A trained encoder on one torch device, for measurement and pictures.

Shapes: B images of H x W pixels, N patches, D features, L tokens, the last N of which are patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.swin_transformer import SwinTransformer

from ehm.backends.torch.engine.placement import place_model
from ehm.backends.torch.engine.seeds import seed_weights
from ehm.backends.torch.engine.tensors import Pixels
from ehm.backends.torch.models.attention import compute_attention_probs, run_block
from ehm.backends.torch.models.loading import load_model
from ehm.backends.torch.models.swin import average_cells, compute_stage_similarity, run_first_blocks
from ehm.backends.torch.models.timm_vit import read_timm_spec
from ehm.backends.torch.models.vit import VIT_CLASSES
from ehm.backends.torch.models.vit_parts import VitParts
from ehm.config import ModelSource, SourceConfig
from ehm.config.encoders import EncoderSpec, VitSpec
from ehm.errors import ConfigError
from ehm.models.shapes import spec_from_json
from ehm.models.weights import Pool

__all__ = ["TorchEncoder", "find_output_grid"]


class TorchEncoder:
    """Implements :class:`ehm.backends.base.Encoder`, in float32.

    ``model`` is the torch module, a timm model without a head; pixels are normalised as its weights were trained,
    unless ``data`` sets it otherwise, and features are pooled as ``pool`` says.
    """

    def __init__(
        self,
        source: ModelSource,
        device: torch.device,
        data: SourceConfig | None = None,
        pool: Pool | None = None,
    ) -> None:
        with seed_weights():  # `scratch` and untrained models are the same every time
            channels = None if data is None else data.wanted_channels
            loaded = load_model(source, pool=pool or "avg", fc_norm=False, repool=pool is not None, channels=channels)
        self.inputs = loaded.inputs
        if data is not None:
            self.inputs = data.complete_inputs(loaded.inputs)
        self._pixels = Pixels(device, self.inputs.mean, self.inputs.std, self.inputs.pixels.white)
        self._origin = source.init
        self.model: Any = place_model(loaded.model, device).eval()
        self.image_size = loaded.image_size
        self.notes = loaded.notes
        self.grid = find_output_grid(self.model, self.image_size)
        self._architecture = loaded.architecture

    @property
    def has_class_token(self) -> bool:
        """See :class:`ehm.backends.base.Encoder`."""
        return self._spec is not None and self._spec.has_class_token

    @torch.inference_mode()
    def compute_features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Encoder.compute_features`.

        A network of timm's pools in its own way unless it is told otherwise.
        """
        tokens = self.model.forward_features(self._pixels(images))
        features: NDArray[np.float32] = self.model.forward_head(tokens, pre_logits=True).cpu().numpy()
        return features

    @torch.inference_mode()
    def compute_similarity(self, images: NDArray[np.uint8], blocks: int) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Encoder.compute_similarity`."""
        if isinstance(self.model, SwinTransformer):
            tokens = self.model.patch_embed(self._pixels(images))
            similarity = compute_stage_similarity(self.model.layers, tokens, blocks, self.grid)
        else:
            vit = self._require_vit()
            similarity = vit.compute_similarity(vit.embed(self._pixels(images)), blocks)
        array: NDArray[np.float32] = similarity.cpu().numpy()
        return array

    @torch.inference_mode()
    def compute_tokens(self, images: NDArray[np.uint8], blocks: int) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Encoder.compute_tokens`; a Swin's are means over each cell of its output."""
        if isinstance(self.model, SwinTransformer):
            _, tokens = run_first_blocks(self.model.layers, self.model.patch_embed(self._pixels(images)), blocks)
            tokens = average_cells(tokens, self.grid)
        else:
            vit = self._require_vit()
            tokens = vit.compute_features(vit.embed(self._pixels(images)), blocks)
        array: NDArray[np.float32] = tokens.cpu().numpy()
        return array

    @torch.inference_mode()
    def compute_attention(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Encoder.compute_attention`."""
        vit = self._require_vit()
        places = vit.locate()
        tokens = vit.run_stack(vit.embed(self._pixels(images)), places, -1)
        attention: NDArray[np.float32] = compute_attention_probs(vit.blocks[-1], tokens, places).cpu().numpy()
        return attention

    @torch.inference_mode()
    def iterate_attention(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.Encoder.iterate_attention`."""
        vit = self._require_vit()
        places = vit.locate()
        tokens = vit.prepend_prefix(vit.embed(self._pixels(images)))
        for block in vit.blocks:
            yield compute_attention_probs(block, tokens, places).cpu().numpy()
            tokens = run_block(block, tokens, places)

    def _require_vit(self) -> VitParts:
        """Return the parts of the model; raises ConfigError if it is no ViT that we can walk through."""
        if not isinstance(self._spec, VitSpec):
            raise ConfigError(f"model.init {self._origin}: attention needs a ViT of a family in docs/weights.md")
        return VitParts(self._spec, self.model)

    # only if it is asked for: reading it off a network of timm's copies the weights, and features do without
    @cached_property
    def _spec(self) -> EncoderSpec | None:
        """The spec of the encoder; None for a network of timm's that is no encoder of ours."""
        if self._architecture["family"] != "timm":
            return spec_from_json(self._architecture)
        found = read_timm_spec(self.model, self._architecture["name"])
        return None if found is None else found[0]


def find_output_grid(model: Any, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return the patches down and across; for a Swin or a convolutional network, the cells of its last map."""
    if isinstance(model, VIT_CLASSES):
        down, across = model.patch_embed.grid_size
        return down, across
    reduction = model.feature_info[-1]["reduction"]
    return image_size[0] // reduction, image_size[1] // reduction
