"""Commands for the next steps after a run, with its paths filled in."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from ehm.report.record import COMMAND_NAMES, RunRecord
from ehm.report.settings import quote_path, write_repeat_command

__all__ = ["NextStep", "list_next_steps", "list_uses"]

_ELPV = "elpv"
_LONGEST_LINE = 88
"""Longer lines of commands are broken before their flags."""


@dataclass(frozen=True)
class NextStep:
    """Something to do after a run, and the command that does it."""

    purpose: str
    command: str


def list_next_steps(record: RunRecord) -> list[NextStep]:
    """Return the next steps after a run: to continue it if it is not complete, to use it, and to repeat it."""
    steps = list_uses(record)
    steps.append(NextStep("Run the same once more", write_repeat_command(record)))
    steps.append(NextStep("Write this report again", f"ehm report {quote_path(record.folder)}"))
    return [replace(step, command=_break_lines(step.command)) for step in steps]


def list_uses(record: RunRecord) -> list[NextStep]:
    """Return the steps that continue a run, if it is not complete, and use it; commands are not broken into lines."""
    steps = []
    if not record.is_complete:
        resume = f"{_name_resume_command(record)} --resume --out {quote_path(record.folder)}"
        if record.is_stopped:
            resume += " --set run.max_steps=null"
        if record.kind != "probe":
            steps.append(NextStep("Go on to the end of the schedule", resume))
    if record.kind == "pretrain":
        steps += _list_after_pretraining(record)
    elif record.kind == "tokenizer":
        steps.append(
            NextStep(
                "Pretrain with these tokens",
                f"ehm train --config elpv/beit --set model.tokenizer={quote_path(record.folder)} "
                f"{_name_source(record)} --out {quote_path(record.folder)}-beit",
            )
        )
    elif record.kind != "probe":
        steps += _list_after_task(record)
    return steps


def _break_lines(command: str) -> str:
    """Break long lines of a command before flags, in the way of a shell."""
    lines = []
    for line in command.splitlines():
        if len(line) > _LONGEST_LINE:
            head, *flags = line.split(" --")
            parts = [head]
            for flag in flags:
                if len(f"{parts[-1]} --{flag}") > _LONGEST_LINE:
                    parts.append(f"    --{flag}")
                else:
                    parts[-1] += f" --{flag}"
            line = " \\\n".join(parts)
        lines.append(line)
    return "\n".join(lines)


def _list_after_pretraining(record: RunRecord) -> list[NextStep]:
    run = quote_path(record.folder)
    # ELPV's photographs have labels; for other sources a placeholder is shown
    labelled = "data.source=elpv" if record.setting("data.source") == _ELPV else "data.source=/data/labelled"
    image_size = _name_image_size(record)
    steps = [
        NextStep(
            "Measure the features on labelled images, a folder for each class: the figure that tells whether "
            "pretraining was worth it",
            f"ehm probe --config elpv/probe --set model.init={run}{image_size} --set {labelled} --out {run}-probe",
        ),
        NextStep(
            "Train a classifier from it",
            f"ehm finetune --config elpv/finetune --set model.init={run}{image_size} --set {labelled} "
            f"--out {run}-classifier",
        ),
    ]
    source = labelled.partition("=")[2]
    return [
        *steps,
        NextStep(
            "Compare it with the same encoder without pretraining",
            f"ehm compare {run} scratch --source {source} --out {run}-comparison",
        ),
        NextStep(
            "Look at its masks, at its reconstructions, and at the parts that it divides images into",
            f"ehm inspect masks PHOTOGRAPHS --checkpoint {run} --out {run}-pictures\n"
            f"ehm inspect reconstruction PHOTOGRAPHS --checkpoint {run} --out {run}-pictures\n"
            f"ehm inspect hierarchy PHOTOGRAPHS --checkpoint {run} --out {run}-pictures",
        ),
        NextStep("Export the encoder for ONNX Runtime", f"ehm export {run} --out {run}-bundle"),
    ]


def _list_after_task(record: RunRecord) -> list[NextStep]:
    run = quote_path(record.folder)
    steps = [
        NextStep(
            "Measure it on images that had no part in any choice",
            f"ehm evaluate {run} --set data.source=/data/others",
        ),
        NextStep("Export it for ONNX Runtime", f"ehm export {run} --out {run}-bundle"),
        NextStep("Use it on photographs", f"ehm predict {run}-bundle PHOTOGRAPHS"),
        NextStep("Serve it over HTTP, with a page to try it on", f"ehm serve {run}-bundle"),
    ]
    return steps


def _name_resume_command(record: RunRecord) -> str:
    """Return the name of the command without ``--task``, which a resumed run does not need."""
    return COMMAND_NAMES[record.kind].partition(" --task")[0]


def _name_image_size(record: RunRecord) -> str:
    """Return the setting that trains on images of the size in pretraining, because elpv's recipes have other sizes."""
    size = record.setting("image_size")
    if not isinstance(size, list | tuple):
        return ""
    text = str(size[0]) if size[0] == size[1] else f"[{size[0]},{size[1]}]"
    return f" --set {shlex.quote(f'model.image_size={text}')}"


def _name_source(record: RunRecord) -> str:
    return f"--set data.source={quote_path(record.setting('data.source'))}"
