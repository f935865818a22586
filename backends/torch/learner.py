"""A masked autoencoder in pretraining on one torch device: the similarity pass, the training step, its state.

Shapes: B images of H x W pixels, N patches.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ehm.backends.base import Arrays, LearnerState
from ehm.backends.torch.devices import FACTS, arithmetic, autocast
from ehm.backends.torch.models.mae import MaskedAutoencoder
from ehm.backends.torch.optim import load_optimizer_arrays, optimizer_arrays, param_groups, set_rates
from ehm.backends.torch.tensors import chunks, load_arrays, to_arrays, to_pixels
from ehm.config import TrainConfig

__all__ = ["TorchLearner"]

_EMA = "ema/"


class TorchLearner:
    """Implements :class:`ehm.backends.base.Learner`.

    A batch is split into ``optim.accumulate`` chunks inside the step. What :meth:`similarity` uploads and embeds is
    kept for the :meth:`train_step` on the same images: the patch embedding runs once, with gradient (section V-E).
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            self.model = MaskedAutoencoder(
                config.vit,
                config.model.decoder_width,
                config.model.decoder_depth,
                config.model.decoder_heads,
                config.model.norm_pix_loss,
            )
        self.model.to(device).train()
        self._ema: MaskedAutoencoder | None = None
        if config.optim.ema_decay is not None:
            self._ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self._optimizer = torch.optim.AdamW(
            param_groups(self.model.named_parameters()),
            lr=config.optim.lr,
            betas=config.optim.betas,
            fused=FACTS[device.type].fused_adamw,
        )
        self._dtype = arithmetic(config.optim.dtype, device)
        self._embedded: tuple[NDArray[np.uint8], list[tuple[Tensor, Tensor | None]]] | None = None

    def similarity(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Learner.similarity`."""
        parts, kept = [], []
        for rows in chunks(len(images), self._config.optim.accumulate):
            with autocast(self._device, self._dtype):
                pixels = self._pixels(images[rows])
                tokens = self.model.embed(pixels) if self._ema is None or self._online else None
                with torch.no_grad():
                    if tokens is not None:
                        parts.append(self.model.similarity(tokens.detach(), self._config.mask.blocks))
                    else:
                        assert self._ema is not None
                        parts.append(self._ema.similarity(self._ema.embed(pixels), self._config.mask.blocks))
            kept.append((pixels, tokens))
        self._embedded = images, kept
        return torch.cat(parts).cpu().numpy()

    def train_step(
        self, images: NDArray[np.uint8], mask: NDArray[np.bool_], lr: float, weight_decay: float
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Learner.train_step`."""
        set_rates(self._optimizer, lr, weight_decay)
        self._optimizer.zero_grad(set_to_none=True)
        visible, masked, restore = (torch.from_numpy(part).to(self._device) for part in split_mask(mask))
        kept = self._embedded[1] if self._embedded is not None and self._embedded[0] is images else None
        self._embedded = None
        total = torch.zeros((), device=self._device)
        for index, rows in enumerate(chunks(len(images), self._config.optim.accumulate)):
            pixels, tokens = kept[index] if kept is not None else (self._pixels(images[rows]), None)
            with autocast(self._device, self._dtype):
                loss = self.model(pixels, visible[rows], masked[rows], restore[rows], tokens)
            loss = loss * (pixels.shape[0] / len(images))
            loss.backward()
            total += loss.detach()
        metrics: dict[str, SupportsFloat] = {"loss": total}
        if self._config.optim.clip_grad is not None:
            metrics["grad_norm"] = torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self._config.optim.clip_grad
            ).detach()
        self._optimizer.step()
        self._average()
        return metrics

    def state(self) -> LearnerState:
        """See :meth:`ehm.backends.base.Learner.state`."""
        optimizer = optimizer_arrays(self._optimizer, self.model.named_parameters())
        if self._ema is not None:
            optimizer |= {_EMA + name: array for name, array in to_arrays(self._ema).items()}
        return LearnerState(to_arrays(self.model), optimizer)

    def load(self, state: LearnerState) -> None:
        """See :meth:`ehm.backends.base.Learner.load`."""
        load_arrays(self.model, state.model)
        averages: Arrays = {
            name.removeprefix(_EMA): array for name, array in state.optimizer.items() if name.startswith(_EMA)
        }
        if self._ema is not None:
            load_arrays(self._ema, averages)
        rest = {name: array for name, array in state.optimizer.items() if not name.startswith(_EMA)}
        load_optimizer_arrays(self._optimizer, self.model.named_parameters(), rest)

    @property
    def _online(self) -> bool:
        return self._config.mask.source == "online"

    @torch.no_grad()
    def _average(self) -> None:
        """Exponential moving average of the parameters: ema = decay * ema + (1 - decay) * model."""
        if self._ema is None or self._config.optim.ema_decay is None:
            return
        torch._foreach_lerp_(
            list(self._ema.parameters()),
            [parameter.detach() for parameter in self.model.parameters()],
            1 - self._config.optim.ema_decay,
        )

    def _pixels(self, images: NDArray[np.uint8]) -> Tensor:
        return to_pixels(images, self._device, self._config.data.mean, self._config.data.std)


def split_mask(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the visible and of the masked patches, and each patch's place among both: (B, N) -> three arrays.

    Computed on the host, with a fixed count in every image, so that no step depends on a mask's contents.
    """
    order = np.argsort(mask, axis=1, kind="stable")
    visible = mask.shape[1] - int(mask[0].sum())
    return order[:, :visible].copy(), order[:, visible:].copy(), np.argsort(order, axis=1)
