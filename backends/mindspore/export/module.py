"""A trained model as a function of NumPy arrays, to compare an exported one with."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from ehm.backends.mindspore.engine.devices import Target, use
from ehm.backends.mindspore.engine.tensors import load_arrays
from ehm.backends.mindspore.models.vit import VisionTransformer
from ehm.models.trained import Reference, Trained

__all__ = ["reference"]


def reference(trained: Trained) -> Reference:
    """What MindSpore computes for ``trained``, in float32 on the CPU."""
    use(Target("cpu"))
    arrays, rng = dict(trained.arrays), np.random.default_rng(0)
    probe, fc_norm = "head.1.weight" in arrays, "fc_norm.weight" in arrays
    if probe:
        arrays["head.0.num_batches_tracked"] = np.array(0)  # which changes nothing in evaluation
    model = VisionTransformer(trained.spec, rng, len(trained.labels), trained.pool, fc_norm, probe=probe)
    load_arrays(model, arrays)
    model.set_train(False)

    @ms.jit
    def compute(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = model.tokens(images)
        features = model.pooled(tokens)
        return model.head(features) if model.classes else features, features, model.patches(tokens)

    def forward(images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        logits, features, patches = (output.asnumpy() for output in compute(Tensor(images)))
        grid = patches.swapaxes(1, 2).reshape(len(images), trained.spec.width, *trained.spec.grid)
        found = {"logits": logits, "features": features, "patches": grid}
        return {name: found[name] for name in trained.outputs}

    return forward, f"mindspore {ms.__version__}, cpu, float32"
