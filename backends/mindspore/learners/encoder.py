"""A trained encoder on one MindSpore target, for measurement and pictures.

Shapes: B images of H x W pixels, N patches, D features, L = 1 + N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from ehm.backends.mindspore.engine.graphs import BatchGraph
from ehm.backends.mindspore.engine.tensors import Pixels
from ehm.backends.mindspore.models.blocks import compute_attention_probs, run_blocks
from ehm.backends.mindspore.models.loading import load_model
from ehm.config import ModelSource, SourceConfig
from ehm.config.encoders import VitSpec
from ehm.errors import ConfigError
from ehm.models.shapes import spec_from_json
from ehm.models.weights import Pool

__all__ = ["MindsporeEncoder"]


class MindsporeEncoder:
    """Implements :class:`ehm.backends.base.Encoder`, in float32.

    Pixels are normalised as its weights were trained, unless ``data`` sets it otherwise, and features are pooled as
    ``pool`` says.
    """

    def __init__(self, source: ModelSource, data: SourceConfig | None = None, pool: Pool | None = None) -> None:
        channels = None if data is None else data.wanted_channels
        loaded = load_model(source, seed=0, pool=pool or "avg", fc_norm=False, channels=channels)
        model = loaded.model
        self.model = model
        model.set_train(False)
        self.image_size = loaded.image_size
        spec = spec_from_json(loaded.architecture)
        self._spec = spec
        self._origin = source.init
        self.grid = spec.grid
        self.has_class_token = spec.has_class_token
        self.inputs = loaded.inputs
        if data is not None:
            self.inputs = data.complete_inputs(loaded.inputs)
        self.notes = loaded.notes
        pixels = Pixels(self.inputs.mean, self.inputs.std, self.inputs.pixels.white)

        def compute_features(images: Tensor) -> Tensor:
            return model.pool_images(pixels(images))

        def compute_similarity(images: Tensor, blocks: int) -> Tensor:
            return model.compute_similarity(model.embed(pixels(images)), blocks)

        def compute_tokens(images: Tensor, blocks: int) -> Tensor:
            return model.compute_features(model.embed(pixels(images)), blocks)

        def compute_attention(images: Tensor) -> Tensor:
            bias, rotations = model.locate()
            last_input = model.run_stack(model.embed(pixels(images)), None, -1)
            return compute_attention_probs(model.blocks[-1], last_input, bias, rotations)

        self._features = BatchGraph(compute_features)
        self._similarity = BatchGraph(compute_similarity)
        self._tokens = BatchGraph(compute_tokens)
        self._attention = BatchGraph(compute_attention)
        self._pixels = pixels

    def compute_features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Encoder.compute_features`."""
        return self._features(images)

    def compute_similarity(self, images: NDArray[np.uint8], blocks: int) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Encoder.compute_similarity`."""
        return self._similarity(images, blocks)

    def compute_tokens(self, images: NDArray[np.uint8], blocks: int) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Encoder.compute_tokens`."""
        return self._tokens(images, blocks)

    def compute_attention(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Encoder.compute_attention`."""
        self._require_vit()
        return self._attention(images)

    def iterate_attention(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.Encoder.iterate_attention`."""
        self._require_vit()
        model = self.model
        bias, rotations = model.locate()
        tokens = model.prepend_prefix(model.embed(self._pixels(Tensor(images))))
        for block in model.blocks:
            yield compute_attention_probs(block, tokens, bias, rotations).asnumpy()
            tokens = run_blocks([block], tokens, bias, rotations)

    def _require_vit(self) -> None:
        """Raise ConfigError if the encoder is no ViT, whose tokens all attend to each other."""
        if not isinstance(self._spec, VitSpec):
            raise ConfigError(f"model.init {self._origin}: attention needs a ViT of a family in docs/weights.md")
