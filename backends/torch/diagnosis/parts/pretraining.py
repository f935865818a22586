"""Pretraining by each objective: its encoder families, every masking, and whatever else adds operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ehm.backends.torch import TorchBackend
from ehm.backends.torch.diagnosis.parts.encoders import (
    ENCODERS,
    FORMS,
    OPTIM,
    join_settings,
    make_images,
    save_dalle_encoder,
    save_encoder,
    save_tokenizer,
)
from ehm.config import TrainConfig
from ehm.config.encoders import FAMILIES
from ehm.config.objectives import OBJECTIVES
from ehm.config.objectives.decoding import DecodingObjective
from ehm.masking import BatchMasks, make_masker

__all__ = ["MAE_SETTINGS", "configure", "list_families", "pretrain"]

_DEVICE = {"build": "device"}
MAE_SETTINGS: tuple[dict[str, Any], ...] = (
    {"masking": "random"},
    {"masking": "attmask_high", "optim": {"ema_decay": None, "clip_grad": None, "accumulate": 1}},
    {"masking": "epm", "mask": {"similarity": "cosine", "balance": "none"}},
    {"mask": {**_DEVICE, "balance": "none", "unit": 16}, "run": {"grad_checkpointing": True}},
    {"mask": {**_DEVICE, "source": "ema", "views": 2}},
    {"model": {"norm_pix_loss": False, "freeze": 1, "relative": True}, "layer_decay": 0.75},
    *({"model": {"form": form}} for form in FORMS.values()),
)
"""Settings that any objective may have, and that bring operators with them whatever the objective."""
_OWN_SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "mae": MAE_SETTINGS,
    "simmim": ({"model": {"relative": False}, "mask": _DEVICE},),
    "feature": ({"model": {"loss": "cosine"}, "mask": {**_DEVICE, "source": "ema"}},),
}
"""Settings that an objective is run with besides its plain recipe."""
_ADAPTED = {"rank": 2, "dropout": 0.1, "norms": True, "targets": ["attn.qkv", "attn.proj", "mlp"]}


def list_families(objective: str) -> list[str]:
    """Return the families of encoders that can be pretrained by ``objective``."""
    needs_subsets = isinstance(OBJECTIVES[objective], DecodingObjective)
    return [name for name, spec in FAMILIES.items() if spec.encodes_subsets or not needs_subsets]


def configure(objective: str, family: str, dtype: str, settings: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration of a tiny run, with ``settings`` over those of the objective's recipe."""
    values: dict[str, Any] = {"objective": objective, "image_size": 32}
    values = join_settings(values, ENCODERS[family])
    values = join_settings(
        values, {"optim": {**OPTIM, "dtype": dtype}, "mask": {"blocks": 2, "unit": 16, "build": "host"}}
    )
    if isinstance(OBJECTIVES[objective], DecodingObjective):
        sizes = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
        values = join_settings(values, {"model": sizes, "mask": {"unit": None}})
        values = join_settings(values, {"optim": {"ema_decay": 0.9}})
    return TrainConfig.model_validate(join_settings(values, settings))


def pretrain(objective: str, backend: TorchBackend, dtype: str) -> Iterator[Callable[[], object]]:
    """Yield the steps of pretraining by ``objective``."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        variants = list(_OWN_SETTINGS.get(objective, ()))
        needed: dict[str, Any] = {}
        if objective == "beit":
            needed = {"model": {"tokenizer": save_tokenizer(backend, folder)}}
            variants.append({"model": {"tokenizer": save_dalle_encoder(folder)}})
        plain = configure(objective, "vit", dtype, needed)
        if isinstance(OBJECTIVES[objective], DecodingObjective):
            variants += _continue_from(save_encoder(backend, plain, folder), objective)
        for family in list_families(objective):
            yield from _take_step(backend, configure(objective, family, dtype, needed))
        for settings in variants:
            yield from _take_step(backend, configure(objective, "vit", dtype, join_settings(needed, settings)))


def _continue_from(saved: str, objective: str) -> Iterator[dict[str, Any]]:
    """Yield the settings that need weights to begin with: low-rank updates, and a teacher that stays as it is."""
    if find_spec("peft") is not None:
        yield {"model": {"init": saved}, "lora": _ADAPTED}
    if OBJECTIVES[objective].has_teacher:
        yield {"model": {"init": saved, "teacher": "start"}}


def _take_step(backend: TorchBackend, config: TrainConfig) -> Iterator[Callable[[], object]]:
    """Yield a step of ``config``: masks, the optimiser's state and its first update."""
    learner = backend.create_learner(config)
    assert config.mask.build != "auto"
    masker = make_masker(config.masking, config.masks, config.units, config.mask.build)
    images = make_images()[:: config.mask.views]

    def take() -> None:
        batch = learner.prepare_batch(images)
        masks: Any = BatchMasks(masker.iterate_pieces(batch, 0.5, (0,)), config.optim.batch_size)
        learner.train_step(batch, masks, 1e-3, 0.05)

    yield take
