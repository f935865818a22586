"""Tokenizers, tiny language models, and what looks at a model: watched figures, broken steps, ``ehm inspect``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from timm.models.swin_transformer import SwinTransformer

from ehm.backends.base import Piece
from ehm.backends.torch import TorchBackend
from ehm.backends.torch.diagnosis.parts.encoders import (
    ENCODERS,
    FORMS,
    IMAGES,
    OPTIM,
    make_images,
    save_encoder,
    save_tokenizer,
)
from ehm.backends.torch.diagnosis.parts.pretraining import configure, list_families
from ehm.config import FinetuneConfig, LanguageTrainingConfig, ModelSource, TokenizerConfig, TrainConfig
from ehm.config.encoders import FAMILIES
from ehm.config.objectives import OBJECTIVES

__all__ = ["inspect_encoders", "train_language_model", "train_tokenizer", "watch_pretraining"]

Steps = Iterator[Callable[[], object]]


def train_tokenizer(backend: TorchBackend, dtype: str) -> Steps:
    """Yield a step of a tokenizer, and its reconstructions."""
    config = TokenizerConfig.model_validate({"vocabulary": 16, "width": 8, "optim": {**OPTIM, "dtype": dtype}})
    learner = backend.create_tokenizer(config)
    images = make_images()
    yield partial(learner.train_step, images, 0.5, 1e-3, 0.05)
    yield partial(learner.reconstruct_images, images)


def train_language_model(backend: TorchBackend, dtype: str) -> Steps:
    """Yield a step of ``ehm language train``, and an answer; nothing without transformers."""
    if find_spec("transformers") is None:
        return
    config = LanguageTrainingConfig.model_validate({"width": 16, "depth": 1, "heads": 2, "optim": {"dtype": dtype}})
    question = "question: which colour? answer:"
    learner = backend.create_text_learner(config, [question, "red"])
    document = [Piece(question), Piece("red", is_answer=True)]
    yield partial(learner.train_step, [document, document], 1e-3, 0.05)
    yield partial(learner.answer, [question], 2)


def watch_pretraining(backend: TorchBackend, dtype: str) -> Steps:
    """Yield the figures and pictures of every objective, a checkpoint, and the examination of a broken step."""
    with TemporaryDirectory() as folder:
        tokenizer = save_tokenizer(backend, Path(folder))
        for objective in OBJECTIVES:
            settings: dict[str, Any] = {"optim": {"ema_decay": 0.9}}
            if objective == "beit":
                settings["model"] = {"tokenizer": tokenizer}
            for family in list_families(objective):
                yield from _watch(backend, configure(objective, family, dtype, settings))


def _watch(backend: TorchBackend, config: TrainConfig) -> Steps:
    learner = backend.create_learner(config)
    images = make_images()
    units = config.units[0] * config.units[1]
    mask = np.tile(np.arange(units) < units // 2, (IMAGES, 1))
    yield partial(learner.reconstruct_images, images, mask)
    yield partial(learner.compute_features, images)
    yield partial(learner.compute_features, images, average=True)
    yield learner.state
    yield lambda: learner.examine_step(learner.prepare_batch(images), mask, 1e-3, 0.05)


def inspect_encoders(backend: TorchBackend, dtype: str) -> Steps:
    """Yield what ``ehm inspect`` computes of encoders of every family and form, which is always in float32."""
    if dtype != "float32":
        return
    sources = [_describe(family) for family in FAMILIES]
    sources += [_describe("vit", form=form) for form in FORMS.values()]
    with TemporaryDirectory() as folder:
        relative = save_encoder(backend, configure("simmim", "vit", dtype, {}), Path(folder))
        for source in [*sources, ModelSource(init=relative)]:
            yield from _inspect(backend, source)


def _describe(family: str, **model: Any) -> ModelSource:
    encoder = ENCODERS[family]
    values = {"encoder": encoder["encoder"], "patch_size": encoder["patch_size"], "image_size": 32}
    return ModelSource.model_validate({**values, **encoder["model"], **model})


def _inspect(backend: TorchBackend, source: ModelSource) -> Steps:
    encoder: Any = backend.create_encoder(source)
    images = make_images()
    yield partial(encoder.compute_features, images)
    yield partial(encoder.compute_similarity, images, 2)
    yield partial(encoder.compute_tokens, images, 2)
    if not isinstance(encoder.model, SwinTransformer):
        yield partial(encoder.compute_attention, images)
        yield lambda: list(encoder.iterate_attention(images))
    classifier = backend.create_task_learner(FinetuneConfig(model=source), 3)
    targets = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    yield partial(classifier.measure_gradients, images, targets)
