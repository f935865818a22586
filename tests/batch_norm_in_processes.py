"""One of several processes that norm a batch together with MindSpore, as msrun starts it: run as a script.

    python batch_norm_in_processes.py FOLDER

FOLDER has ``batch.npz`` with ``images`` (B, C, h, w), ``factors`` of the same shape, ``weight`` and ``bias`` (C,). Each
process takes its share of the images. Its file, ``RANK.npz``, has what the layer gives in training, the gradients of
the sum of outputs times factors, and the running moments afterwards.
"""

import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ehm import backends
from ehm.backends.mindspore.engine.tensors import set_values
from ehm.backends.mindspore.models.maps import BatchNorm


def norm_share(folder):
    processes = backends.get("mindspore:cpu").processes
    batch = np.load(folder / "batch.npz")
    share = np.array_split(np.arange(len(batch["images"])), processes.size)[processes.rank]
    layer = BatchNorm(batch["images"].shape[1], processes)
    set_values(layer.weight, batch["weight"])
    set_values(layer.bias, batch["bias"])
    layer.set_train()
    factors = Tensor(batch["factors"][share])

    def weigh(images):
        outputs = layer(images)
        return (outputs * factors).sum(), outputs

    parameters = ms.ParameterTuple([layer.weight, layer.bias])
    compute = ms.jit(ms.value_and_grad(weigh, 0, parameters, has_aux=True))
    (_, outputs), (images, (weight, bias)) = compute(Tensor(batch["images"][share]))
    found = {"outputs": outputs, "images": images, "weight": weight, "bias": bias}
    found |= {"mean": layer.running_mean, "variance": layer.running_var}
    np.savez(folder / f"{processes.rank}.npz", **{name: value.asnumpy() for name, value in found.items()})


if __name__ == "__main__":
    norm_share(Path(sys.argv[1]))
