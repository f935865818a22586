"""A trained network as a function of NumPy arrays, to compare an exported one with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from ehm.backends.base import ALONE
from ehm.backends.mindspore.engine.devices import Target, use_target
from ehm.backends.mindspore.engine.graphs import compile_graph
from ehm.backends.mindspore.engine.tensors import load_arrays
from ehm.backends.mindspore.models.build import build_encoder
from ehm.backends.mindspore.models.embedding import Embedding
from ehm.backends.mindspore.models.pyramid import build_pyramid
from ehm.backends.mindspore.models.upernet import UperNet
from ehm.config import SegmentationConfig
from ehm.models.heads import Output, Reference
from ehm.models.weights import Weights
from ehm.storage.arrays import take_prefix

__all__ = ["build_reference"]

_COUNTER = "num_batches_tracked"
"""End of the name of a batch norm's counter, which changes nothing in evaluation and is not assembled."""

Compute = Callable[[Tensor], tuple[Tensor, ...]]


def build_reference(weights: Weights, outputs: Sequence[Output], image_size: tuple[int, int]) -> Reference:
    """Return MindSpore's computation of a network that :func:`ehm.models.assembling.assemble_network` gave.

    It is in float32 on the CPU, of images of ``image_size``.
    """
    use_target(Target("cpu"))
    if "scores" in outputs:
        network, compute = _build_segmenter(weights, image_size)
    elif weights.provenance.kind == "embedder":
        network, compute = _build_embedder(weights)
    else:
        network, compute = _build_encoder(weights)
    arrays = dict(weights.arrays)
    for name, _ in network.parameters_and_names():
        if name.endswith(_COUNTER):
            arrays[name] = np.array(0)
    load_arrays(network, arrays)
    network.set_train(False)
    # a graph has one number of outputs, and the file perhaps fewer
    names: tuple[Output, ...] = ("scores",) if "scores" in outputs else ("logits", "features", "patches")
    graph = compile_graph(compute)
    grid = weights.spec.grid if weights.spec is not None else (0, 0)

    def forward(images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        values = {name: output.asnumpy() for name, output in zip(names, graph(Tensor(images)), strict=True)}
        if "patches" in values:
            rows = values["patches"].swapaxes(1, 2)
            values["patches"] = rows.reshape(len(images), rows.shape[1], *grid)
        return {name: values[name] for name in outputs}

    return forward, f"mindspore {ms.__version__}, cpu, float32"


def _build_encoder(weights: Weights) -> tuple[nn.Cell, Compute]:
    """Build an encoder with its classifier, if it has one, and the function of its outputs."""
    classes = len(weights.provenance.labels)
    model = _create_encoder(weights, "", classes)

    def compute(images: Tensor) -> tuple[Tensor, ...]:
        tokens = model.compute_tokens(images)
        features = model.pool_tokens(tokens)
        logits = model.head(features) if model.classes else features
        return logits, features, model.norm_patches(tokens)

    return model, compute


def _build_embedder(weights: Weights) -> tuple[nn.Cell, Compute]:
    """Build a descriptor's network, and the function of its outputs."""
    assert weights.spec is not None
    dim = None
    if "whitening.weight" in weights.arrays:
        dim = len(weights.arrays["whitening.weight"])
    encoder = _create_encoder(weights, "encoder.", 0)
    rng = np.random.default_rng(0)
    model = Embedding(encoder, weights.spec.features, rng, dim, gem="power" in weights.arrays)

    def compute(images: Tensor) -> tuple[Tensor, ...]:
        tokens = model.encoder.compute_tokens(images)
        descriptors = model.describe_tokens(tokens)
        return descriptors, descriptors, model.encoder.norm_patches(tokens)

    return model, compute


def _build_segmenter(weights: Weights, image_size: tuple[int, int]) -> tuple[nn.Cell, Compute]:
    """Build a segmenter without its auxiliary head, and the function of its scores."""
    spec = weights.spec
    assert spec is not None
    assert weights.checkpoint is not None
    config = SegmentationConfig.model_validate(weights.checkpoint.metadata["config"])
    encoder = _create_encoder(weights, "pyramid.encoder.", 0)
    rng = np.random.default_rng(0)
    pyramid = build_pyramid(encoder, spec, image_size, config.head.taps, ms.float32, ALONE, rng)
    head = config.head.model_copy(update={"auxiliary_weight": 0.0})
    model = UperNet(pyramid, len(weights.provenance.labels), head, image_size, ms.float32, ALONE, rng)

    def compute(images: Tensor) -> tuple[Tensor, ...]:
        return (model.score(images),)

    return model, compute


def _create_encoder(weights: Weights, prefix: str, classes: int) -> Any:
    """Create the encoder whose arrays have a ``prefix``, with its linear classifier or probe for ``classes``."""
    arrays = take_prefix(weights.arrays, prefix)
    spec = weights.spec
    assert spec is not None
    is_probe = f"{spec.classifier}.1.weight" in arrays
    fc_norm = "fc_norm.weight" in arrays
    rng = np.random.default_rng(0)
    return build_encoder(spec, rng, classes, weights.provenance.pool, fc_norm, probe=is_probe)
