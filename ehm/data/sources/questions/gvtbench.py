"""GVTBench's question files (Wang et al., 2023), read and written.

[{"image_id": 42102, "text_in": "How many people are there in the image?", "text_out": "1", "n_obj_exist": 3}, …]

Only the object is taken from the text that is read, and the question is written again: in the published vcr_mci.json
all questions whose answer is Yes say "exist", and all others "exis". Questions that occur twice stay, as the published
figures count them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ehm.config import QuestionSet
from ehm.data.questions import Question
from ehm.data.sources.questions.drawing import draw_limited
from ehm.data.sources.questions.messages import QuestionPart, describe_questions, require_images
from ehm.data.sources.questions.objects import ask_count, ask_existence
from ehm.data.sources.questions.table import QuestionTable, tabulate_questions
from ehm.errors import DataError
from ehm.storage.reading import describe_value, read_json
from ehm.storage.writing import write_text

__all__ = ["holds_gvtbench", "open_gvtbench", "write_gvtbench"]

_EXISTENCE = re.compile(r"Does (.+) exist? in the image\?")
_COUNT = re.compile(r"How many (.+) are there in the image\?")
_ANSWERS = {"Yes.": True, "No.": False}
_MOST_DIGITS = 9
"""Digits of a number of objects, at most."""
_FOLDERS = ("val2017", "images/val2017", "vcr1images", "images", ".")
"""Folders beside the file that its images may lie in."""


def holds_gvtbench(root: Path) -> bool:
    """Return whether ``root`` is a file of GVTBench's questions."""
    if root.suffix != ".json" or not root.is_file():
        return False
    with root.open("rb") as file:
        head = file.read(2048)
    return head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[") and b'"text_in"' in head and b'"image_id"' in head


def open_gvtbench(chosen: QuestionSet, part: QuestionPart) -> QuestionTable:
    """Open a file of questions, which has no parts; ``chosen.images`` is the folder of COCO's or VCR's images.

    Raises DataError if a question is not one of GVTBench's two, or if images are missing.
    """
    file = Path(chosen.source).expanduser()
    if not file.is_file():
        raise DataError(f"{chosen.source}: no file of GVTBench's questions; looked for one such as coco_mci.json")
    rows = read_json(file, what="questions of GVTBench")
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a list of questions, not {describe_value(rows)}")
    questions = [_read_question(row, f"{file}, question {number}") for number, row in enumerate(rows, start=1)]
    questions = draw_limited(questions, chosen.limit)
    folder = _find_images(file, chosen.images, questions)
    require_images(file, folder, questions)
    return tabulate_questions(folder, questions, "all", [describe_questions(f"GVTBench's {file.stem}", questions)])


def write_gvtbench(path: Path, questions: Iterable[Question]) -> Path:
    """Write counting and identification questions as GVTBench's files have them, for a benchmark of one's own.

    Raises ValueError if a question is of another kind.
    """
    rows = []
    for each in questions:
        if each.rule == "text":
            raise ValueError(f"{each.text!r}: GVTBench's files hold counting and identification questions only")
        answer = each.answers[0] if each.rule == "number" else f"{each.answers[0].capitalize()}."
        rows.append(
            {
                "image_id": each.identifier,
                "text_in": each.text,
                "text_out": answer,
                "n_obj_exist": each.objects,
            }
        )
    return write_text(path, json.dumps(rows) + "\n")


def _read_question(row: Any, where: str) -> Question:
    match row:
        case {"image_id": int() | str() as image, "text_in": str(text), "text_out": str(answer)}:
            objects = row.get("n_obj_exist", 0)
        case _:
            raise DataError(f"{where}: expected image_id, text_in, text_out and n_obj_exist, not {describe_value(row)}")
    if not isinstance(objects, int) or not 0 <= objects < 10**_MOST_DIGITS:
        raise DataError(f"{where}: n_obj_exist should be a number, not {describe_value(objects)}")
    # COCO's images are named by their numbers, VCR's by their paths
    file = f"{image:012d}.jpg" if isinstance(image, int) else image
    count = _COUNT.fullmatch(text)
    if count is not None:
        if not answer.isdecimal() or len(answer) > _MOST_DIGITS:
            raise DataError(f"{where}: text_out should be a number, not {describe_value(answer)}")
        return ask_count(count[1], answer, file, image, objects)
    existence = _EXISTENCE.fullmatch(text)
    if existence is None:
        raise DataError(
            f'{where}: expected "Does … exist in the image?" or "How many … are there in the image?", not '
            f"{describe_value(text)}"
        )
    if answer not in _ANSWERS:
        raise DataError(f"{where}: text_out should be Yes. or No., not {describe_value(answer)}")
    return ask_existence(existence[1], _ANSWERS[answer], file, image, objects)


def _find_images(file: Path, images: str | None, questions: Sequence[Question]) -> Path:
    """Return the folder with the images: the first possible one that has the first of them."""
    if images is not None:
        return Path(images).expanduser()
    for name in _FOLDERS:
        if questions and (file.parent / name / questions[0].image).is_file():
            return file.parent / name
    return file.parent / "images"
