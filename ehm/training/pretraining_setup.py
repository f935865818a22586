"""The parts that a pretraining run is put together from: its first weights, its images and its masker."""

from __future__ import annotations

from dataclasses import replace

from ehm.backends.base import Processes
from ehm.config import TrainConfig
from ehm.data import Loader, Source, TrainTransform, open_source
from ehm.errors import DataError
from ehm.masking import make_masker
from ehm.masking.masker import Masker
from ehm.models.pretraining import adopt_encoder, keep_needed_weights, name_first_weights
from ehm.models.weights import Weights
from ehm.training.loaders import make_train_loader
from ehm.training.own_processors import count_own_processors
from ehm.training.run import Run

__all__ = ["choose_first_weights", "create_masker", "open_images", "open_validation_part", "take_encoder"]


def take_encoder(run: Run[TrainConfig]) -> tuple[Run[TrainConfig], Weights | None, tuple[str, ...]]:
    """Open the weights that a new run begins with, and return the run with their encoder if it names none.

    Also returns the weights, if there are any, and notes on what they change. A resumed run has its encoder already,
    and opens weights only for a frozen teacher.
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
    """Return the configuration of ``run``, without ``model.init`` if it is resumed and needs its checkpoint alone."""
    return run.config if run.start is None else keep_needed_weights(run.config)


def open_images(config: TrainConfig, processes: Processes) -> tuple[Source, Loader]:
    """Open the images of a run, and return a loader of its batches beside them."""
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
    """Open the images that a run looks at and does not train on: the validation part beside ``training``.

    None is returned if the source has no such part, or if ``config.watch`` looks at nothing.
    """
    looks_at_nothing = config.watch.every == 0 and config.watch.pictures == 0
    if looks_at_nothing or training.split != "train":
        return None
    try:
        return open_source(config.data, "val")
    except DataError:  # nobody has asked for this part, which may lack what its layout needs
        return None


def create_masker(run: Run[TrainConfig]) -> Masker:
    """Create the masker of ``run``, which builds hierarchies where its configuration or its device says.

    All processes call this: those of one machine share its processors.
    """
    config = run.config
    build = config.mask.build
    if build == "auto":
        build = run.backend.describe_device().hierarchy
    return make_masker(config.masking, config.masks, config.units, build, count_own_processors(run.processes))
