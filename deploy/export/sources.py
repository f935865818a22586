"""What can be exported, and how: our own plain ViTs from their arrays, with any framework; the rest by torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ehm.config import ModelSource
from ehm.errors import BackendError
from ehm.trained import Head, Reference, Trained, open_trained
from ehm.weights import ReadFile, read_safetensors

if TYPE_CHECKING:
    from onnx import ModelProto

    from ehm.backends.torch.module import Module

__all__ = ["Exportable", "demand", "prepare"]


@dataclass(frozen=True)
class Exportable:
    """A trained model, ``write(path, opset)`` that makes its ONNX file, and what that file is compared with.

    ``packages`` took part, besides onnx and ONNX Runtime.
    """

    about: Trained | Module
    write: Callable[[Path, int], ModelProto]
    reference: Reference
    packages: tuple[str, ...]


def prepare(source: ModelSource, head: Head) -> Exportable:
    """The model that ``source.init`` names; ``head`` as in :func:`ehm.trained.open_trained`, with its errors.

    BackendError where no framework is there to compare with, or a model that torch writes lacks what builds it.
    """
    framework = next((name for name, packages in _FRAMEWORKS.items() if all(map(find_spec, packages))), None)
    read_file: ReadFile = read_safetensors
    if framework == "torch":
        from ehm.backends.torch.weights import read_arrays as read_file
    trained = open_trained(source, head, read_file)
    if trained is None:
        return _by_torch(source, head)
    if framework is None:
        raise BackendError(
            "ehm export compares the file with what a framework computes, and neither torch nor MindSpore is there; "
            "pip install 'ehm[torch]' or 'ehm[mindspore]' installs one"
        )
    from ehm.deploy.export.vit import write_vit

    reference = import_module(f"ehm.backends.{framework}.module").reference(trained)
    return Exportable(trained, partial(write_vit, trained), reference, _FRAMEWORKS[framework])


def demand(extras: str, *packages: str) -> None:
    """BackendError that names those of ``packages`` that are not installed, and the extras of ehm that bring them."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise BackendError(
            f"ehm export needs {', '.join(missing)}; pip install 'ehm[{extras}]' installs what is missing"
        )


def _by_torch(source: ModelSource, head: Head) -> Exportable:
    packages = ("torch", "timm", "onnxscript")
    demand("torch,export", *packages)
    from ehm.backends.torch.heads import Heads
    from ehm.backends.torch.module import compute, load_module
    from ehm.deploy.export.graph import write_onnx

    loaded = load_module(source, head)
    heads = Heads(loaded.module, loaded.outputs)
    reference = compute(heads)
    reference[0](np.zeros((1, 3, *loaded.image_size), np.float32))  # what it cannot give is said before torch.onnx
    write = partial(write_onnx, heads, image_size=loaded.image_size, outputs=loaded.outputs)
    return Exportable(loaded, write, reference, packages)


_FRAMEWORKS = {"torch": ("torch", "timm"), "mindspore": ("mindspore",)}
"""Frameworks that a file can be compared with, by their backends, and the packages that they take."""
