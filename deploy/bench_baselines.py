"""The network of a bundle in torch, loaded from its checkpoint: the baseline that an exported file should beat."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.config import ModelSource
from ehm.deploy.bundle.manifest import Manifest
from ehm.errors import BackendError, EhmError
from ehm.models.heads import Head
from ehm.models.opening import names_weights, open_model

__all__ = ["load_torch_baselines"]

Run = Callable[[NDArray[np.float32]], Any]


def load_torch_baselines(manifest: Manifest, output: str, threads: int = 0) -> dict[str, Run]:
    """Return functions of normalised images (B, 3, H, W): torch eager in float32, compiled, and in bfloat16, by name.

    All compute ``output``, logits or features, on the CPU, by ``threads`` if that is not 0. Raises EhmError, with the
    reason, if torch is not installed or the checkpoint is no longer what was exported.
    """
    if find_spec("torch") is None or find_spec("timm") is None:
        raise BackendError("torch and timm are not installed")
    import torch

    from ehm.backends.torch.export.module import load_module
    from ehm.backends.torch.models.torch_file import read_arrays

    source = ModelSource(init=manifest.source.checkpoint, image_size=manifest.preprocessing.image_size)
    head: Head = "classifier" if output == "logits" else "features"
    weights = open_model(source, read_arrays) if names_weights(source) else None
    loaded = load_module(source, head, weights)
    module = loaded.model
    if loaded.provenance.sha256 != manifest.source.sha256:
        raise EhmError(f"{manifest.source.checkpoint} has changed since it was exported")
    if threads:
        torch.set_num_threads(threads)
    # sizes stay the same, and code for one size is the fastest
    compiled = torch.compile(module, dynamic=False)

    @torch.inference_mode()
    def run_eager(images: NDArray[np.float32]) -> Any:
        return module(torch.from_numpy(images)).numpy()

    @torch.inference_mode()
    def run_compiled(images: NDArray[np.float32]) -> Any:
        return compiled(torch.from_numpy(images)).numpy()

    @torch.inference_mode()
    def run_bfloat16(images: NDArray[np.float32]) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return module(torch.from_numpy(images)).float().numpy()

    return {"float32": run_eager, "float32 compiled": run_compiled, "bfloat16": run_bfloat16}
