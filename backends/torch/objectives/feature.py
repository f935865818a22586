"""Feature prediction: hidden patches as a teacher sees them, who sees the whole image (data2vec, I-JEPA, MILAN, EVA).

Shapes: B images, N patches, V visible ones, K hidden ones, k masks an image, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize, smooth_l1_loss

from ehm.backends.base import Reconstruction
from ehm.backends.common import count_averaged_blocks
from ehm.backends.reconstruction import reconstruct_features
from ehm.backends.torch.engine.devices import autocast_to, choose_dtype
from ehm.backends.torch.engine.distributed import gather_parameters
from ehm.backends.torch.engine.placement import place_model
from ehm.backends.torch.engine.seeds import seed_weights
from ehm.backends.torch.engine.tensors import load_arrays
from ehm.backends.torch.models.adapters import merge_arrays
from ehm.backends.torch.models.attention import run_block
from ehm.backends.torch.models.patches import gather_tokens, index_all_patches
from ehm.backends.torch.models.visible_decoder import VisibleDecoder
from ehm.backends.torch.models.visible_encoder import VisibleEncoder
from ehm.backends.torch.objectives.base import TorchObjective
from ehm.config import ModelConfig, TrainConfig
from ehm.config.encoders import VitSpec

__all__ = ["FeaturePredictor", "TorchFeature", "compute_patch_features"]


class FeaturePredictor(VisibleDecoder):
    """A ViT of ``spec`` under a light decoder; ``forward`` gives the loss of the features that it predicts."""

    def __init__(self, spec: VitSpec, model: ModelConfig) -> None:
        super().__init__(spec, model.decoder_width, model.decoder_depth, model.decoder_heads)
        # another name than that of MAE's last layer, which may have the same shape and predicts pixels
        self.feature_pred = nn.Linear(model.decoder_width, spec.width)
        self._loss = model.loss
        self._beta = model.loss_beta
        self.init_weights()

    def forward(
        self,
        images: Tensor,
        visible: Tensor,
        masked: Tensor,
        restore: Tensor,
        tokens: Tensor | None = None,
        *,
        features: Tensor,
    ) -> Tensor:
        """Compute the mean loss of hidden patches against ``features`` (B, N, D) of a teacher.

        Indices are (k * B, ...): the k masks of an image lie one after the other. ``tokens`` (B, N, D) spares the patch
        embedding if it has been computed.
        """
        predicted = self.predict(images, visible, restore, masked, tokens).float()
        target = gather_tokens(features, masked)
        if self._loss == "cosine":
            return 1 - compute_cosine(predicted, target).mean()
        return smooth_l1_loss(predicted, target, beta=self._beta)

    def predict(
        self, images: Tensor, visible: Tensor, restore: Tensor, wanted: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        """Predict the features of the patches at indices ``wanted`` (k * B, K): (k * B, K, D)."""
        if tokens is None:
            tokens = self.embed(images)
        predicted: Tensor = self.feature_pred(self.decode(self.encode(tokens, visible), restore, wanted))
        return predicted


class TorchFeature(TorchObjective):
    """Feature prediction on a torch device."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self._dtype = choose_dtype(config.optim.dtype, device)
        self._averaged_blocks = count_averaged_blocks(config)

    def build_model(self) -> FeaturePredictor:
        """See :meth:`TorchObjective.build_model`."""
        spec = self.config.spec
        assert isinstance(spec, VitSpec)  # the objective refuses other encoders when a configuration is read
        return FeaturePredictor(spec, self.config.model)

    def build_teacher(self, model: Any, average: Any | None) -> Any:
        """See :meth:`TorchObjective.build_teacher`."""
        if self.config.model.teacher == "ema":
            return average
        with seed_weights():  # the weights that it draws are replaced, and no other draws should change by them
            teacher = VisibleEncoder(model.spec)
        # of the plain network: the teacher has no update, even if the student has one
        weights = merge_arrays(model)
        load_arrays(teacher, {name: weights[name] for name in teacher.state_dict()})
        return place_model(teacher, self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def compute_targets(self, images: Tensor) -> dict[str, Tensor]:
        """See :meth:`TorchObjective.compute_targets`."""
        # in the type of the run: the teacher sees all patches, which takes longer than encoding the visible ones
        with gather_parameters([self.teacher]), autocast_to(self.device, self._dtype):
            return {"features": compute_patch_features(self.teacher, images, self._averaged_blocks)}

    def describe_targets(self, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`TorchObjective.describe_targets`.

        ``target_spread`` is the standard deviation over the images, mean over patches and features. It falls to 0 if
        the features no longer depend on the image: if the teacher has collapsed.
        """
        variance, _ = torch.var_mean(targets["features"], dim=0, correction=0)
        return {"target_spread": variance.sqrt().mean()}

    def reconstruct(self, model: Any, images: Tensor, visible: Tensor, restore: Tensor) -> Reconstruction:
        """See :meth:`TorchObjective.reconstruct`."""
        features = self.compute_targets(images)["features"]
        predicted = model.predict(images, visible, restore, index_all_patches(restore)).float()
        return reconstruct_features(compute_cosine(predicted, features).cpu().numpy())


def compute_patch_features(teacher: VisibleEncoder, images: Tensor, averaged_blocks: int = 0) -> Tensor:
    """Compute the features of all patches of normalised (B, 3, H, W): (B, N, D), float32.

    Those of a patch have mean 0 and variance 1. They are the tokens behind the last norm; with ``averaged_blocks`` the
    mean over so many last blocks of their outputs, each normalised, and normalised again (data2vec, section 3.3, and
    its command for ViT-B).
    """
    places = teacher.locate()
    tokens = teacher.prepend_prefix(teacher.embed(images))
    outputs = []
    for block in teacher.blocks:
        tokens = run_block(block, tokens, places)
        outputs.append(tokens)
    if not averaged_blocks:
        return _normalise(teacher.norm(tokens)[:, places.prefix :])
    total: Any = 0
    for output in outputs[-averaged_blocks:]:
        total = total + _normalise(output[:, places.prefix :])
    return _normalise(total / averaged_blocks)


def compute_cosine(left: Tensor, right: Tensor) -> Tensor:
    """Return the cosine of the angle between features (..., D): (...)."""
    return (normalize(left, dim=-1) * normalize(right, dim=-1)).sum(dim=-1)


def _normalise(features: Tensor) -> Tensor:
    return layer_norm(features.float(), features.shape[-1:])
