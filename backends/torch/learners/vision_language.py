"""An encoder as the eyes of a frozen language model, on one torch device: training, and answers to questions.

Shapes: B images of H x W pixels, K visual tokens, W features of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ehm.backends.base import ALONE, Processes
from ehm.backends.torch.engine.distributed import mean_over_processes
from ehm.backends.torch.engine.kept_tokens import KeptTokens, find_room
from ehm.backends.torch.engine.seeds import seed_weights
from ehm.backends.torch.engine.step import recompute_activations
from ehm.backends.torch.language.frozen import FrozenLanguageModel
from ehm.backends.torch.learners.encoder import find_output_grid
from ehm.backends.torch.learners.supervised import SupervisedLearner
from ehm.backends.torch.models.loading import load_model
from ehm.backends.torch.models.resampler import VisualTokens
from ehm.config import VisionLanguageConfig
from ehm.models.weights import Weights

__all__ = ["TorchAnswerer"]


class TorchAnswerer(SupervisedLearner):
    """Implements :class:`ehm.backends.base.Answerer`. ``model`` is the torch module, a :class:`VisualTokens`.

    The language model stands beside it: it is neither trained nor kept in checkpoints, nor wrapped for processes.
    """

    def __init__(
        self,
        config: VisionLanguageConfig,
        classes: int,
        device: torch.device,
        processes: Processes = ALONE,
        weights: Weights | None = None,
    ) -> None:
        # first, because a mistake about it costs less than the encoder
        self._answering, self.language = FrozenLanguageModel.open(
            config.language, device, config.run.grad_checkpointing
        )
        with seed_weights(config.run.seed):
            loaded = load_model(config.model, fc_norm=False, weights=weights)
            model = VisualTokens(loaded.model, config.resampler, self._answering.width)
        self._is_frozen = config.frozen
        self._kept: KeptTokens | None = None
        head: nn.Module | None = None
        if config.frozen:
            loaded.model.requires_grad_(False)
            head = model.resampler
        if config.run.grad_checkpointing:
            recompute_activations(model, random=True)
        parts = config.optim.accumulate
        super().__init__(model, loaded, config, device, processes, head, parts, config.encoder_rate)
        self.notes += self._answering.notes

    def train_step(
        self,
        images: NDArray[np.uint8],
        prompts: Sequence[str],
        answers: Sequence[str],
        lr: float,
        weight_decay: float,
    ) -> Mapping[str, SupportsFloat]:
        """See :meth:`ehm.backends.base.Answerer.train_step`."""
        self.model.train()
        if self._is_frozen:
            self.model.encoder.eval()
        # of all processes, whose gradients are averaged: an answer's tokens weigh the same in each of them
        own = torch.tensor(float(sum(self._answering.count_answer_tokens(answers))), device=self._device)
        count = mean_over_processes(own, self._processes)

        def compute_loss(rows: slice) -> Tensor:
            with self._training.autocast():
                visual = self._look(images[rows])
            return self._answering.sum_losses(visual, prompts[rows], answers[rows]) / count

        return self._take_step(len(images), compute_loss, lr, weight_decay, is_part=True)

    @torch.no_grad()
    def answer(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> list[str]:
        """See :meth:`ehm.backends.base.Answerer.answer`."""
        if not prompts:  # of the last questions, a process may have none
            return []
        self.model.eval()
        with self._training.autocast():
            visual = self.model.resampler(self._encode(images))
        return self._answering.answer(visual, prompts)

    @torch.no_grad()
    def locate_latents(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :meth:`ehm.backends.base.Answerer.locate_latents`."""
        self.model.eval()
        encoder = self.model.encoder
        weights = self.model.resampler.compute_attention(self.model.encode(self._pixels(images)))
        # class and register tokens stand for no place
        patches = weights[..., getattr(encoder, "num_prefix_tokens", 0) :]
        located: NDArray[np.float32] = patches.unflatten(-1, find_output_grid(encoder, self.image_size)).cpu().numpy()
        return located

    @torch.no_grad()
    def keep_features(self, folder: Path, images: int) -> str:
        """See :meth:`ehm.backends.base.Answerer.keep_features`."""
        self.model.eval()
        with self._training.autocast():
            example = self._encode_anew(np.zeros((1, *self.image_size, 3), np.uint8))
        # each process keeps its own, as it meets other images in every epoch
        size = images * example.nbytes * self._processes.local_size
        room = find_room(folder)
        described = f"the encoder's tokens of {images:,} images take {math.ceil(size / 1e6):,} MB"
        if size > room:
            return f"{described}, and up to {room // 10**6:,} MB are spent on them: each image is encoded every time"
        try:
            self._kept = KeptTokens(self._encode_anew, example, images, folder)
        except OSError as error:
            return f"cache_features: {error.strerror or error}: each image is encoded every time"
        return f"{described} of the disk until the run ends: each image is encoded once (cache_features)"

    def forget_features(self) -> None:
        """See :meth:`ehm.backends.base.Answerer.forget_features`."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _look(self, images: NDArray[np.uint8]) -> Tensor:
        """Compute visual tokens in training: (B, H, W, 3) -> (B, K, W)."""
        if not self._is_frozen:
            visual: Tensor = self._training.module(self._pixels(images))
            return visual
        with torch.no_grad():
            tokens = self._encode(images)
        resampled: Tensor = self._training.module(tokens)
        return resampled

    def _encode(self, images: NDArray[np.uint8]) -> Tensor:
        """Compute the encoder's tokens, or read those that are kept: (B, H, W, 3) -> (B, L, D)."""
        if self._kept is not None:
            return self._kept.encode(images)
        return self._encode_anew(images)

    def _encode_anew(self, images: NDArray[np.uint8]) -> Tensor:
        tokens: Tensor = self.model.encode(self._pixels(images))
        return tokens


TASK_LEARNER = TorchAnswerer
"""The learner of the task that this file is named after; the backend finds it by that name."""
