"""Train and measure one run of a study, in a process of its own.

    python -m ehm.comparison.study_run FILE --out OUT --arm NAME --seed S --device D

OUT/runs/NAME/seed-S/          a run of ``ehm train``; it is complete, and not trained again, if it has an
                               encoder.safetensors
OUT/results/NAME/seed-S.json   its measures
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from ehm import backends
from ehm.comparison.measuring import measure_run
from ehm.comparison.results import RunKey, save_result
from ehm.config import StudyConfig, TrainConfig, load_config, read_config
from ehm.errors import CheckpointError, ConfigError, EhmError
from ehm.storage.checkpoint import find_checkpoint, newest_checkpoint
from ehm.storage.reading import read_text
from ehm.training.pretrain import train
from ehm.training.resume import check_settings

__all__ = ["carry_out", "check_run", "is_complete", "list_overrides", "read_run_figures", "run_folder"]

_HIERARCHY_FIGURES = ("tree_height", "largest_part", "parts")
"""Figures in ``metrics.jsonl`` that describe the hierarchies; the result has their means over the run."""


def run_folder(out: Path, run: RunKey) -> Path:
    """Return the folder of ``run``."""
    return out / "runs" / run.arm / f"seed-{run.seed}"


def is_complete(folder: Path) -> bool:
    """Return whether the run in ``folder`` has reached its end: only then does it write the encoder."""
    return (folder / "encoder.safetensors").is_file()


def list_overrides(study: StudyConfig, run: RunKey, out: Path) -> list[str]:
    """Return the overrides of ``run``. Later ones win: those of all arms come first, then its arm's, and its seed."""
    arm = study.arms[run.arm]
    overrides = [*study.overrides, *arm.overrides]
    if arm.start is not None:
        overrides.append(f"model.init={run_folder(out, RunKey(arm.start, run.seed))}")
    return [*overrides, f"run.seed={run.seed}"]


def check_run(study: StudyConfig, run: RunKey, out: Path) -> None:
    """Raise ConfigError if the run in its folder was trained with other settings than those of ``study``."""
    folder = run_folder(out, run)
    checkpoint = find_checkpoint(folder)
    if checkpoint is None:
        raise CheckpointError(f"{folder}: has an encoder and no checkpoint; remove it, and the run is trained again")
    overrides = list_overrides(study, run, out)
    base = study.base
    if base is None:
        # the run was trained with ehm train's default configuration, which its folder holds
        base = str(folder / "config.yaml")
    settings = load_config(TrainConfig, base, overrides)
    if settings.awaits_encoder:
        settings = settings.with_encoder_of(TrainConfig.model_validate(checkpoint.metadata["config"]))
    try:
        check_settings(TrainConfig, settings, checkpoint)
    except ConfigError as error:
        reason = str(error).removeprefix("--resume: ").partition(";")[0]
        raise ConfigError(
            f"{folder}: {reason}; set in the study what the run was trained with, remove it, or choose another --out"
        ) from None


def carry_out(study: StudyConfig, run: RunKey, out: Path, device: str) -> None:
    """Train ``run`` if it is not complete, measure it, and write its result."""
    folder = run_folder(out, run)
    if is_complete(folder):
        check_run(study, run, out)
    else:
        is_begun = newest_checkpoint(folder / "checkpoints") is not None
        # with resume and without a base, train reads the configuration in the folder, which only a begun run has
        resume = is_begun or study.base is not None
        train(study.base, device=device, overrides=list_overrides(study, run, out), out=folder, resume=resume)
        if not is_complete(folder):
            raise ConfigError(f"{folder}: run.max_steps stops it before its end; take optim.steps for shorter runs")
    backend = backends.get(device)
    figures = read_run_figures(folder)
    for measure in study.measure:
        figures |= measure_run(folder, measure, backend, device, run.seed)
    path = save_result(out, run, figures, study)
    print(f"Result: {path}", flush=True)


def read_run_figures(folder: Path) -> dict[str, float]:
    """Return the last loss of a run, means of figures of its hierarchies, and the minutes that its steps took.

    Checkpoints, measurements and steps that an interruption lost are not part of the minutes.
    """
    batch_size = int(read_config(folder / "config.yaml")["optim"]["batch_size"])
    text = read_text(folder / "metrics.jsonl", CheckpointError, "the log of a run")
    lines: list[dict[str, Any]] = []
    for line in text.splitlines():
        values = json.loads(line)
        # other lines are measurements during the training
        if "loss" in values and "images_per_second" in values:
            lines.append(values)
    figures = {"loss": float(lines[-1]["loss"])}
    for name in _HIERARCHY_FIGURES:
        found = [float(values[name]) for values in lines if name in values]
        if found:
            figures[name] = statistics.mean(found)
    seconds = 0.0
    last_step = 0
    for values in lines:
        seconds += (values["step"] - last_step) * batch_size / values["images_per_second"]
        last_step = values["step"]
    figures["minutes"] = seconds / 60
    return figures


def main() -> int:
    """Carry out the run that the arguments name; return 0, or 1 after an error, whose message is printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arm", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--device", required=True)
    args = parser.parse_args()
    try:
        carry_out(load_config(StudyConfig, args.file), RunKey(args.arm, args.seed), args.out, args.device)
    except EhmError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
