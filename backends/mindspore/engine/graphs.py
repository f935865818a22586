"""Compiled graphs: one call that compiles, and functions of batches whose last one needs no graph of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from ehm.backends.mindspore.engine.devices import get_current_facts

__all__ = ["BatchGraph", "compile_graph"]


def compile_graph(function: Callable[..., Any]) -> Any:
    """Return ``function`` as a graph, which MindSpore compiles when it is called with inputs of new shapes."""
    return ms.jit(function, jit_level=get_current_facts().jit_level)


class BatchGraph:
    """A graph of images (B, ...) whose outputs (B, ...) do not depend on each other, as arrays.

    Every shape takes a graph of its own, and minutes on Ascend. So a batch that is smaller than one before it, such as
    the last one of an evaluation, is filled up, and what comes of the filling is dropped.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._graph = compile_graph(function)
        self._sizes: dict[tuple[Any, ...], set[int]] = {}

    def __call__(self, images: NDArray[Any], *others: int | Tensor | None) -> NDArray[np.float32]:
        """Compute the outputs of ``images``; for other numbers and shapes of tensors there are other graphs."""
        count = len(images)
        constants = [other.shape if isinstance(other, Tensor) else other for other in others]
        sizes = self._sizes.setdefault((images.shape[1:], *constants), set())
        size = min((known for known in sizes if known >= count), default=count)
        sizes.add(size)
        if size > count:
            filling = np.broadcast_to(images[-1:], (size - count, *images.shape[1:]))
            images = np.concatenate([images, filling])
        outputs: NDArray[np.float32] = self._graph(Tensor(images), *others).asnumpy()
        return outputs[:count]
