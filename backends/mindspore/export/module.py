"""A trained model as a function of NumPy arrays, to compare an exported one with."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from ehm.backends.mindspore.engine.devices import Target, use_target
from ehm.backends.mindspore.engine.graphs import compile_graph
from ehm.backends.mindspore.engine.tensors import load_arrays
from ehm.backends.mindspore.models.vit import VisionTransformer
from ehm.config.encoders import VitSpec
from ehm.models.heads import Output, Reference
from ehm.models.weights import Weights

__all__ = ["reference"]


def reference(weights: Weights, outputs: Sequence[Output]) -> Reference:
    """Return MindSpore's computation of a plain ViT (:mod:`ehm.models.plain_vit`), in float32 on the CPU."""
    use_target(Target("cpu"))
    spec = weights.spec
    assert isinstance(spec, VitSpec)
    arrays = dict(weights.arrays)
    is_probe = "head.1.weight" in arrays
    if is_probe:
        arrays["head.0.num_batches_tracked"] = np.array(0)  # changes nothing in evaluation
    classes = len(weights.provenance.labels)
    pool = weights.provenance.pool
    fc_norm = "fc_norm.weight" in arrays
    model = VisionTransformer(spec, np.random.default_rng(0), classes, pool, fc_norm, probe=is_probe)
    load_arrays(model, arrays)
    model.set_train(False)

    @compile_graph
    def compute(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = model.compute_tokens(images)
        features = model.pool_tokens(tokens)
        logits = model.head(features) if model.classes else features  # a graph has one number of outputs
        return logits, features, model.norm_patches(tokens)

    def forward(images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        logits, features, patches = (output.asnumpy() for output in compute(Tensor(images)))
        grid = patches.swapaxes(1, 2).reshape(len(images), spec.width, *spec.grid)
        values = {"logits": logits, "features": features, "patches": grid}
        return {name: values[name] for name in outputs}

    return forward, f"mindspore {ms.__version__}, cpu, float32"
