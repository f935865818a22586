"""The parts of a pretraining run: its first weights, its images and its masker."""

from __future__ import annotations

from dataclasses import replace

from ehm.backends.base import Processes
from ehm.config import TrainConfig
from ehm.data import Loader, Source, TrainTransform, open_source
from ehm.errors import DataError
from ehm.masking import make_masker
from ehm.masking.base import Masker
from ehm.models.pretraining import adopt_encoder, keep_needed_weights, name_first_weights
from ehm.models.weights import Weights
from ehm.training.loaders import make_train_loader
from ehm.training.own_processors import count_own_processors
from ehm.training.run import Run

__all__ = ["choose_first_weights", "create_masker", "open_images", "open_validation_part", "take_encoder"]


def take_encoder(run: Run[TrainConfig]) -> tuple[Run[TrainConfig], Weights | None, tuple[str, ...]]:
    """Open the first weights of a run; if its configuration names no encoder, it gets the encoder of the weights.

    Returns the run with its encoder, the weights, and notes on them: None and no notes if the run has no first weights.
    A resumed run knows its encoder already, and needs first weights only for a frozen teacher.
    """
    config = run.config
    if choose_first_weights(run).model.init is None:
        return run, None, ()
    weights = run.backend.open_weights(name_first_weights(config))
    if not config.awaits_encoder:
        return run, weights, ()
    config, notes = adopt_encoder(config, weights)
    return replace(run, config=config), weights, notes


def choose_first_weights(run: Run[TrainConfig]) -> TrainConfig:
    """Return the configuration of ``run``, without ``model.init`` if it is resumed and needs only its checkpoint."""
    return run.config if run.start is None else keep_needed_weights(run.config)


def open_images(config: TrainConfig, processes: Processes) -> tuple[Source, Loader]:
    """Open the images of a run, and return them with a loader of its batches."""
    data = config.data
    source = open_source(data, "train")
    transform = TrainTransform(
        config.image_size,
        data.crop_scale,
        data.flip,
        data.color_jitter,
        mean=data.mean,
        std=data.std,
        pixels=data.pixels,
    )
    return source, make_train_loader(source, transform, config, processes, views=config.mask.views)


def open_validation_part(config: TrainConfig, training: Source) -> Source | None:
    """Open the validation part of the source of ``training``, which a run is measured on and draws pictures of.

    Returns None if there is no such part, or if ``config.watch`` switches measurements and pictures off.
    """
    is_watch_off = config.watch.every == 0 and config.watch.pictures == 0
    if is_watch_off or training.split != "train":
        return None
    try:
        return open_source(config.data, "val")
    except DataError:  # no reason to stop the run, because the user has not asked for this part
        return None


def create_masker(run: Run[TrainConfig]) -> Masker:
    """Create the masker of ``run``; it builds hierarchies on the host or the device, as ``mask.build`` says.

    ``auto`` leaves this choice to the device. All processes call this, as those of a machine share its processors.
    """
    config = run.config
    build = config.mask.build
    if build == "auto":
        build = run.backend.describe_device().hierarchy
    return make_masker(config.masking, config.masks, config.units, build, count_own_processors(run.processes))
