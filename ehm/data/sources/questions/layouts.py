"""Decide which kind of questions a set means, and open them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ehm.config import QuestionSet
from ehm.data.decoding.depth import ValueRange
from ehm.data.questions import QuestionSource
from ehm.data.sources.questions.coco_objects import holds_coco
from ehm.data.sources.questions.easy_vqa import EASY_VQA, holds_easy_vqa, open_easy_vqa
from ehm.data.sources.questions.gvtbench import holds_gvtbench, open_gvtbench
from ehm.data.sources.questions.made import open_made_questions
from ehm.data.sources.questions.messages import QuestionPart
from ehm.data.sources.questions.table import QuestionTable
from ehm.data.sources.questions.vcr import holds_vcr
from ehm.data.sources.questions.vqa import holds_vqa, open_vqa
from ehm.errors import DataError

__all__ = ["open_questions"]

_OPENERS: dict[str, Callable[[QuestionSet, QuestionPart], QuestionTable]] = {
    "easy_vqa": open_easy_vqa,
    "vqa": open_vqa,
    "count": partial(open_made_questions, about="count"),
    "identify": partial(open_made_questions, about="identify"),
    "gvtbench": open_gvtbench,
}
_LOOKED_FOR = (
    "v2_OpenEnded_mscoco_*_questions.json (VQAv2), annotations/instances_*.json and instances.json (COCO's format), "
    "train.jsonl and val.jsonl (VCR), train/questions.json (easy-vqa), and for a file of GVTBench's questions"
)


def open_questions(chosen: QuestionSet, part: QuestionPart, value_range: ValueRange = None) -> QuestionSource:
    """Open the questions of a set to train on, or those of its validation part to measure on.

    If a set has no parts, both give all of it, and ``split`` of the source is "all". ``value_range`` is that of
    :func:`ehm.data.decoding.decode.decode_image`. Raises DataError if there are no questions there in a known layout,
    saying what was looked for, or if there are several.
    """
    layout = _recognise_layout(chosen.source) if chosen.questions == "auto" else chosen.questions
    return replace(_OPENERS[layout](chosen, part), value_range=value_range)


def _recognise_layout(source: str) -> str:
    """Return the layout that a source has by what only this layout has; DataError if it has none, or two."""
    if source == EASY_VQA:
        return "easy_vqa"
    root = Path(source).expanduser()
    if not root.exists():
        raise DataError(f"{source}: there is no such folder or file of questions")
    fitting = []
    for layout, holds in (("easy_vqa", holds_easy_vqa), ("vqa", holds_vqa), ("gvtbench", holds_gvtbench)):
        if holds(root):
            fitting.append(layout)
    # objects can be asked about in two ways, between which nothing on disk decides
    if holds_vcr(root) or holds_coco(root):
        fitting += ["count", "identify"]
    if not fitting:
        raise DataError(f"{source}: holds no questions in a known layout; looked for {_LOOKED_FOR}")
    if len(fitting) > 1:
        raise DataError(f"{source}: may be read as {', '.join(fitting)}; choose one of them as questions")
    return fitting[0]
