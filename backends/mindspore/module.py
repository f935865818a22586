"""A trained model as a function of NumPy arrays, to compare an exported one with."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from ehm.backends.mindspore.devices import Target, use
from ehm.backends.mindspore.models.vit import VisionTransformer
from ehm.backends.mindspore.tensors import load_arrays
from ehm.trained import Reference, Trained

__all__ = ["reference"]


def reference(trained: Trained) -> Reference:
    """``trained`` in float32 on the CPU, normalised (B, 3, H, W) -> logits (B, C) or features (B, D), and its name."""
    use(Target("cpu"))
    arrays, rng = dict(trained.arrays), np.random.default_rng(0)
    probe, fc_norm = "head.1.weight" in arrays, "fc_norm.weight" in arrays
    if probe:
        arrays["head.0.num_batches_tracked"] = np.array(0)  # which changes nothing in evaluation
    model = VisionTransformer(trained.spec, rng, len(trained.labels), trained.pool, fc_norm, probe=probe)
    load_arrays(model, arrays)
    model.set_train(False)
    compiled = ms.jit(model)

    def forward(images: NDArray[np.float32]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = compiled(Tensor(images)).asnumpy()
        return output

    return forward, f"mindspore {ms.__version__}, cpu, float32"
