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

from ehm.backends.base import ALONE, Processes
from ehm.backends.torch.engine.distributed import mean_over_processes
from ehm.backends.torch.engine.optim import make_param_groups
from ehm.backends.torch.engine.seeds import seed_weights
from ehm.backends.torch.engine.step import Training
from ehm.backends.torch.engine.tensors import Pixels
from ehm.backends.torch.learners.stepped import SteppedLearner
from ehm.backends.torch.models.dvae import build_tokenizer
from ehm.config import TokenizerConfig

__all__ = ["TorchTokenizer"]


class TorchTokenizer(SteppedLearner):
    """Implements :class:`ehm.backends.base.TokenizerLearner`. ``model`` is the torch module."""

    def __init__(self, config: TokenizerConfig, device: torch.device, processes: Processes = ALONE) -> None:
        self._config = config
        with seed_weights(config.run.seed):
            model = build_tokenizer(config)
        model.to(device)
        optim = config.optim
        training = Training(
            model,
            lambda fused: torch.optim.AdamW(
                make_param_groups(model.named_parameters()), lr=optim.lr, betas=optim.betas, fused=fused
            ),
            optim,
            config.run,
            device,
            processes,
        )
        # pixels in [0, 1], which a tokenizer takes
        self._pixels = Pixels(device, (0, 0, 0), (1, 1, 1))
        self._recent: deque[Tensor] = deque(maxlen=config.run.log_every)
        super().__init__(model, training, device, processes, config.run.seed)

    def train_step(
        self, images: NDArray[np.uint8], temperature: float, lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.TokenizerLearner.train_step`."""
        self.model.train()
        temperature_on_device = torch.full((), temperature, device=self._device)
        terms = torch.zeros(2, device=self._device)
        counts = torch.zeros(self._config.vocabulary, device=self._device)

        def compute_loss(rows: slice) -> Tensor:
            with self._training.autocast():
                error, divergence, tokens = self._training.module(self._pixels(images[rows]), temperature_on_device)
            # accumulated on the device: reading a term would make the host wait for it
            terms.add_(torch.stack([error, divergence]).detach(), alpha=(rows.stop - rows.start) / len(images))
            counts.scatter_add_(0, tokens.flatten(), torch.ones_like(tokens, dtype=counts.dtype).flatten())
            value: Tensor = error + self._config.kl_weight * divergence
            return value

        metrics = self._take_step(len(images), compute_loss, lr, weight_decay)
        self._recent.append(mean_over_processes(counts, self._processes))
        error, divergence = mean_over_processes(terms, self._processes).unbind()
        metrics |= {"mse": error, "kl": divergence}
        return metrics | measure_usage(torch.stack(list(self._recent)).sum(dim=0))

    def reconstruct_images(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See :meth:`ehm.backends.base.TokenizerLearner.reconstruct_images`."""
        self.model.eval()
        reconstructed, tokens = self.model.reconstruct(self._pixels(images))
        return reconstructed.permute(0, 2, 3, 1).cpu().numpy(), tokens.cpu().numpy()


def measure_usage(counts: Tensor) -> dict[str, SupportsFloat]:
    """Compute the share of codes that occur, and the perplexity of their distribution, from (K,) counts."""
    shares = counts / counts.sum()
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return {"codes_used": (counts > 0).float().mean(), "perplexity": entropy.exp()}
