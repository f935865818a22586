"""Open questions that are made of annotated objects."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ehm.config import QuestionSet
from ehm.data.sources.questions.coco_objects import holds_coco, read_coco_objects
from ehm.data.sources.questions.messages import QuestionPart, describe_questions, require_images
from ehm.data.sources.questions.objects import make_count_questions, make_existence_questions
from ehm.data.sources.questions.table import QuestionTable, tabulate_questions
from ehm.data.sources.questions.vcr import holds_vcr, read_vcr_objects
from ehm.errors import DataError

__all__ = ["open_made_questions"]

_MEASURED = 10_000
"""Questions that are made to measure on if ``limit`` is null: as many as each file of GVTBench has."""


def open_made_questions(chosen: QuestionSet, part: QuestionPart, about: Literal["count", "identify"]) -> QuestionTable:
    """Make questions of the objects in annotations of COCO's format or of VCR, the same ones in every run.

    Raises DataError if there are no such annotations, or no object that can be asked about.
    """
    root = Path(chosen.source).expanduser()
    if holds_vcr(root):
        annotated = read_vcr_objects(chosen, part)
    elif holds_coco(root):
        annotated = read_coco_objects(chosen, part)
    else:
        raise DataError(
            f"{chosen.source}: no annotated objects; looked for annotations/instances_*.json and instances.json of "
            "COCO's format, and train.jsonl and val.jsonl of VCR, also in vcr1annots/"
        )
    limit = _MEASURED if chosen.limit is None and part == "validation" else chosen.limit
    if about == "count":
        questions = make_count_questions(annotated.objects, limit)
        made = "counting"
    else:
        questions = make_existence_questions(annotated.objects, limit)
        made = "identification"
    if not questions:
        raise DataError(f"{annotated.file}: its objects give no {made} questions")
    require_images(annotated.file, annotated.folder, questions)
    note = describe_questions(f"{made} questions made of {annotated.title}", questions)
    return tabulate_questions(annotated.folder, questions, annotated.split, [note])
