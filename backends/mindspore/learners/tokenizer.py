"""A discrete VAE in training on one MindSpore target.

Shapes: B images of H x W pixels, K codes of the vocabulary, (h, w) = (H, W) / stride.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from ehm.backends.base import ALONE, Processes
from ehm.backends.common import is_decayed, make_step_seed
from ehm.backends.mindspore.engine.devices import Target, choose_dtype
from ehm.backends.mindspore.engine.noise import draw_gumbel, make_keys
from ehm.backends.mindspore.engine.optim import AdamW
from ehm.backends.mindspore.engine.step import Training, refuse_unknown
from ehm.backends.mindspore.engine.tensors import Pixels, load_arrays, to_arrays
from ehm.backends.mindspore.models.dvae import build_tokenizer
from ehm.backends.resumable import ResumableLearner
from ehm.config import TokenizerConfig

__all__ = ["MindsporeTokenizer"]


class MindsporeTokenizer(ResumableLearner):
    """Implements :class:`ehm.backends.base.TokenizerLearner`. Raises BackendError for settings that it lacks."""

    _to_arrays = staticmethod(to_arrays)
    _load_arrays = staticmethod(load_arrays)

    def __init__(self, config: TokenizerConfig, target: Target, processes: Processes = ALONE) -> None:
        refuse_unknown(config, processes)
        self._config = config
        self._rank = processes.rank
        dtype = choose_dtype(config.optim.dtype, target)
        model = build_tokenizer(config, dtype)
        self.model = model
        # pixels in [0, 1], which a tokenizer takes
        pixels = Pixels((0, 0, 0), (1, 1, 1))
        grid = (config.image_size[0] // config.stride, config.image_size[1] // config.stride)

        def compute_loss(images: Tensor, temperature: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
            noise = draw_gumbel(keys, (images.shape[0], config.vocabulary, *grid))
            error, divergence, tokens = model(pixels(images), temperature, noise)
            codes = ops.stop_gradient(count_codes(tokens, config.vocabulary))
            return error + config.kl_weight * divergence, error, divergence, codes

        self._pixels = pixels
        self._recent: deque[Tensor] = deque(maxlen=config.run.log_every)
        self._training = Training(
            compute_loss, self._create_optimizer(), config.optim, dtype, processes, figures=("mse", "kl", "codes")
        )

    def train_step(
        self, images: NDArray[np.uint8], temperature: float, lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.TokenizerLearner.train_step`."""
        self.model.set_train()
        metrics = self._training.step(len(images), self._prepare_inputs(images, temperature), lr, weight_decay)
        self._steps += 1
        codes: Any = metrics.pop("codes")
        self._recent.append(codes)
        return metrics | measure_usage(ops.stack(list(self._recent)).mean(axis=0))

    def reconstruct_images(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See :meth:`ehm.backends.base.TokenizerLearner.reconstruct_images`."""
        self.model.set_train(False)
        # operator by operator: to compile a graph for a few pictures would take longer than to draw them
        tokens = self.model.compute_tokens(self._pixels(Tensor(images)))
        grid = (images.shape[1] // self._config.stride, images.shape[2] // self._config.stride)
        pixels = self.model.decode_tokens(tokens, grid)
        return pixels.transpose((0, 2, 3, 1)).asnumpy(), tokens.asnumpy().astype(np.int64)

    def _prepare_inputs(self, images: NDArray[np.uint8], temperature: float) -> Callable[[slice], tuple[Tensor, ...]]:
        """Return a function that gives the loss's inputs for a slice of the batch."""
        numbers = make_step_seed(self._config.run.seed, self._steps, self._rank)
        on_device = Tensor(temperature, ms.float32)

        def take_inputs(rows: slice) -> tuple[Tensor, ...]:
            # each part of the batch has noise of its own
            return Tensor(images[rows]), on_device, Tensor(make_keys([*numbers, rows.start]))

        return take_inputs

    def _create_optimizer(self) -> AdamW:
        trained = {}
        decaying = []
        for name, value in self.model.parameters_and_names():
            if value.requires_grad:  # not the running moments of the batch norm
                trained[name] = value
                decaying.append(is_decayed(name, value.ndim))
        return AdamW(trained, [1.0] * len(trained), decaying, self._config.optim.betas)


def count_codes(tokens: Tensor, vocabulary: int) -> Tensor:
    """Return the share of each code of a ``vocabulary`` among ``tokens`` (B, h * w): (K,), float32."""
    codes = tokens.reshape((-1,))
    ones = ops.ones_like(codes.astype(ms.float32))
    return ops.unsorted_segment_sum(ones, codes, vocabulary) / codes.size


def measure_usage(shares: Tensor) -> dict[str, Any]:
    """Compute the share of codes that occur, and the perplexity of their distribution, whose ``shares`` are (K,)."""
    entropy = -(shares * ops.log(ops.maximum(shares, 1e-12))).sum()
    return {"codes_used": (shares > 0).astype(ms.float32).mean(), "perplexity": ops.exp(entropy)}
