"""The complete model of a pretraining run, encoder and predictor of hidden patches, opened from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ehm import backends
from ehm.backends.base import Learner
from ehm.config import TrainConfig, load_config
from ehm.data.decoding.depth import ValueRange
from ehm.errors import CheckpointError
from ehm.models.pretraining import keep_needed_weights, name_first_weights
from ehm.storage.checkpoint import Checkpoint, find_checkpoint

__all__ = ["PretrainedModel", "open_pretrained_model"]


@dataclass(frozen=True)
class PretrainedModel:
    """A model in the state of a checkpoint, and the configuration of its run.

    ``origin`` describes the checkpoint for messages. ``progress`` is the share of the run's schedule that was done, in
    [0, 1]. ``value_range`` is the range of pixel values in its training, for images of more than 8 bits.
    """

    learner: Learner
    config: TrainConfig
    origin: str
    progress: float
    value_range: ValueRange


def open_pretrained_model(path: str, device: str, ratio: float | None, balance: str | None) -> PretrainedModel:
    """Open the run or checkpoint at ``path``, with another ``mask.ratio`` and ``mask.balance`` if they are given.

    Raises CheckpointError for anything but pretraining, and ConfigError for a ratio that the run's masking cannot have.
    """
    checkpoint = _open_checkpoint(path)
    metadata = checkpoint.metadata
    overrides = ["run.compile=false", "run.grad_checkpointing=false", "optim.accumulate=1", "mask.build=host"]
    if ratio is not None:
        overrides.append(f"mask.ratio={ratio}")
    if balance is not None:
        overrides.append(f"mask.balance={balance}")
    config = keep_needed_weights(load_config(TrainConfig, metadata["config"], overrides))
    backend = backends.get(device)
    weights = None
    if config.model.init is not None:  # a teacher, which no checkpoint holds
        weights = backend.open_weights(name_first_weights(config))
    learner = backend.create_learner(config, weights)
    learner.load(checkpoint.take_state())
    origin = f"{path} (step {metadata['step']:,}, epoch {metadata['epoch']:.4g})"
    return PretrainedModel(learner, config, origin, _find_progress(config, checkpoint), checkpoint.value_range)


def _open_checkpoint(path: str) -> Checkpoint:
    needed = "give the folder of a run of ehm train, or one of its checkpoints"
    checkpoint = find_checkpoint(path)
    if checkpoint is None:
        if not Path(path).exists():
            raise CheckpointError(f"{path}: there is no such run; {needed}")
        raise CheckpointError(f"{path}: is an encoder alone, without what predicts the hidden patches; {needed}")
    if checkpoint.kind != "pretrain":
        raise CheckpointError(f"{path}: is a {checkpoint.kind}, which predicts no hidden patches; {needed}")
    return checkpoint


def _find_progress(config: TrainConfig, checkpoint: Checkpoint) -> float:
    """Return the share of the run's schedule that was done when ``checkpoint`` was written."""
    if config.optim.steps is not None:
        done = checkpoint.metadata["step"] / config.optim.steps
    else:
        done = checkpoint.metadata["epoch"] / config.optim.epochs
    return min(1.0, float(done))
