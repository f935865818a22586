"""A discrete VAE in training on one torch device.

Shapes: B images of H x W pixels, K codes of the vocabulary, (h, w) = (H, W) / stride.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ehm.backends.base import ALONE, LearnerState, Processes
from ehm.backends.common import STEP, entropy
from ehm.backends.torch.distributed import mean
from ehm.backends.torch.models.dvae import build
from ehm.backends.torch.optim import param_groups
from ehm.backends.torch.tensors import Pixels, load_arrays, to_arrays
from ehm.backends.torch.training import Training, seeded
from ehm.config import TokenizerConfig

__all__ = ["TorchTokenizer"]


class TorchTokenizer:
    """Implements :class:`ehm.backends.base.TokenizerLearner`. ``model`` is the torch module."""

    def __init__(self, config: TokenizerConfig, device: torch.device, processes: Processes = ALONE) -> None:
        self._config, self._device, self._processes = config, device, processes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            self.model = build(config)
        self.model.to(device)
        optim = config.optim
        self._training = Training(
            self.model,
            lambda fused: torch.optim.AdamW(
                param_groups(self.model.named_parameters()), lr=optim.lr, betas=optim.betas, fused=fused
            ),
            optim,
            config.run,
            device,
            processes,
        )
        self._pixels = Pixels(device, (0, 0, 0), (1, 1, 1))
        self._recent: deque[Tensor] = deque(maxlen=config.run.log_every)
        self._steps = 0

    def train_step(
        self, images: NDArray[np.uint8], temperature: float, lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.TokenizerLearner.train_step`."""
        self.model.train()
        heat = torch.full((), temperature, device=self._device)
        terms, counts = torch.zeros(2, device=self._device), torch.zeros(self._config.vocabulary, device=self._device)

        def loss(rows: slice) -> Tensor:
            with self._training.autocast():
                error, divergence, tokens = self._training.module(self._pixels(images[rows]), heat)
            terms.add_(torch.stack([error, divergence]).detach(), alpha=(rows.stop - rows.start) / len(images))
            counts.scatter_add_(0, tokens.flatten(), torch.ones_like(tokens, dtype=counts.dtype).flatten())
            value: Tensor = error + self._config.kl_weight * divergence
            return value

        with seeded(self._device, entropy(self._config.run.seed, self._steps, self._processes.rank)):
            metrics = self._training.step(len(images), loss, lr, weight_decay)
        self._steps += 1
        self._recent.append(mean(counts, self._processes))
        error, divergence = mean(terms, self._processes).unbind()
        return {**metrics, "mse": error, "kl": divergence, **usage(torch.stack(list(self._recent)).sum(dim=0))}

    def reconstruct(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See :meth:`ehm.backends.base.TokenizerLearner.reconstruct`."""
        self.model.eval()
        seen, tokens = self.model.reconstruct(self._pixels(images))
        return seen.permute(0, 2, 3, 1).cpu().numpy(), tokens.cpu().numpy()

    def state(self) -> LearnerState:
        """See :meth:`ehm.backends.base.TokenizerLearner.state`."""
        return LearnerState(to_arrays(self.model), {**self._training.state(), STEP: np.array(self._steps, np.int64)})

    def load(self, state: LearnerState) -> None:
        """See :meth:`ehm.backends.base.TokenizerLearner.load`."""
        load_arrays(self.model, state.model)
        moments = dict(state.optimizer)
        self._steps = int(moments.pop(STEP, np.array(0)))
        self._training.load(moments)


def usage(counts: Tensor) -> dict[str, SupportsFloat]:
    """Share of the codes that occur, and the perplexity of their distribution, of (K,) counts."""
    shares = counts / counts.sum()
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return {"codes_used": (counts > 0).float().mean(), "perplexity": entropy.exp()}
