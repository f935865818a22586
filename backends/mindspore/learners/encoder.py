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
from ehm.backends.mindspore.models.blocks import attention_probs, mean_attention, patch_similarity, run_blocks
from ehm.backends.mindspore.models.loading import load_model
from ehm.config import ModelSource, SourceConfig
from ehm.models.shapes import spec_from_json
from ehm.models.weights import Pool

__all__ = ["MindsporeEncoder"]


class MindsporeEncoder:
    """Implements :class:`ehm.backends.base.Encoder`, in float32.

    Pixels are normalised as its weights were trained, unless ``data`` sets it otherwise, and features are pooled as
    ``pool`` says.
    """

    def __init__(self, source: ModelSource, data: SourceConfig | None = None, pool: Pool | None = None) -> None:
        loaded = load_model(source, seed=0, pool=pool or "avg", fc_norm=False)
        model = loaded.model
        self.model = model
        model.set_train(False)
        self.image_size = loaded.image_size
        spec = spec_from_json(loaded.architecture)
        self.grid = spec.grid
        self.has_class_token = spec.has_class_token
        self.inputs = loaded.inputs
        if data is not None:
            self.inputs = data.input_spec(loaded.inputs)
        self.notes = loaded.notes
        pixels = Pixels(self.inputs.mean, self.inputs.std)

        def features(images: Tensor) -> Tensor:
            return model.compute_features(pixels(images))

        def similarity(images: Tensor, blocks: int) -> Tensor:
            return patch_similarity(mean_attention(model.blocks, model.embed(pixels(images)), blocks))

        def tokens(images: Tensor, blocks: int) -> Tensor:
            return run_blocks(model.blocks[:blocks], model.embed(pixels(images)))[:, 1:]

        def attention(images: Tensor) -> Tensor:
            last_input = run_blocks(model.blocks[:-1], model.embed(pixels(images)))
            return attention_probs(model.blocks[-1], last_input)

        self._features = BatchGraph(features)
        self._similarity = BatchGraph(similarity)
        self._tokens = BatchGraph(tokens)
        self._attention = BatchGraph(attention)
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
        return self._attention(images)

    def iterate_attention(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        """See :meth:`ehm.backends.base.Encoder.iterate_attention`."""
        tokens = self.model.embed(self._pixels(Tensor(images)))
        for block in self.model.blocks:
            yield attention_probs(block, tokens).asnumpy()
            tokens = run_blocks([block], tokens)
