"""VQAv2 in its official files, each in the folder itself or in Questions/ and Annotations/ of it.

v2_OpenEnded_mscoco_train2014_questions.json, v2_mscoco_train2014_annotations.json, train2014/      to train on
v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/            to measure on
v2_OpenEnded_mscoco_test2015_questions.json, test2015/                                              without answers

Images are COCO_train2014_000000000009.jpg and so on; their folders may also lie in images/ or in Images/mscoco/.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehm.config import QuestionSet
from ehm.data.questions import Question
from ehm.data.sources.base import Split
from ehm.data.sources.inventory import list_names
from ehm.data.sources.questions.drawing import draw_limited
from ehm.data.sources.questions.messages import QuestionPart, describe_questions, require_images
from ehm.data.sources.questions.table import QuestionTable, tabulate_questions
from ehm.errors import DataError
from ehm.storage.reading import describe_value, read_json

__all__ = ["QUESTIONS_FILE", "VOTES", "holds_vqa", "open_vqa"]

QUESTIONS_FILE = re.compile(r"v2_OpenEnded_mscoco_(train2014|val2014|test2015|test-dev2015)_questions\.json")
VOTES = 10
"""People who answered each question."""
_TRAIN = "train2014"
_VALIDATION = "val2014"
_TESTS = ("test2015", "test-dev2015")
_LOOKED_FOR = "v2_OpenEnded_mscoco_{train2014,val2014,test2015}_questions.json, also in Questions/"
_NAMED = 3
"""Ids that an error names."""


@dataclass(frozen=True)
class _Files:
    """The files of ``part``, such as val2014: ``annotations`` is None of a test part; ``root`` is the whole folder."""

    root: Path
    part: str
    questions: Path
    annotations: Path | None
    split: Split


def holds_vqa(root: Path) -> bool:
    """Return whether a folder has question files of VQAv2, or is such a file."""
    return bool(_list_parts(root))


def open_vqa(chosen: QuestionSet, part: QuestionPart) -> QuestionTable:
    """Open the questions of a part. If there is no validation part, a test part is measured: it has no answers.

    Raises DataError if files or images are missing, if questions and annotations do not belong together, or if there is
    nothing to train on.
    """
    files = _find_files(chosen.source, part)
    rows = _read_list(files.questions, "questions")
    annotations = {} if files.annotations is None else _read_annotations(files.annotations)
    questions = []
    for number, row in enumerate(rows):
        match row:
            case {"question_id": int(identifier), "image_id": int(image), "question": str(text)}:
                kind, group, answers = annotations.get(identifier, ("other", "", ()))
                name = _name_image(files.part, image)
                questions.append(Question(text, answers, kind, name, group, identifier=identifier))
            case _:
                raise DataError(
                    f"{files.questions}: question {number}: expected question_id, image_id and question, not "
                    f"{describe_value(row)}"
                )
    if files.annotations is not None:
        _compare_ids(files, {int(each.identifier) for each in questions}, annotations)
    questions = draw_limited(questions, chosen.limit)
    folder = _find_images(files, chosen.images, questions)
    require_images(files.questions, folder, questions)
    layout = f"VQAv2, {files.part}"
    if files.annotations is None:
        layout += " (without answers: predictions alone can be written)"
    return tabulate_questions(folder, questions, files.split, [describe_questions(layout, questions)])


def _find_files(source: str, part: QuestionPart) -> _Files:
    root = Path(source).expanduser()
    parts = _list_parts(root)
    if not parts:
        raise DataError(f"{source}: not VQAv2; looked for {_LOOKED_FOR}")
    answered = [name for name in (_TRAIN, _VALIDATION) if name in parts]
    if part == "train":
        if not answered:
            raise DataError(
                f"{source}: {', '.join(parts)} of VQAv2 has no answers, so that nothing can be trained on it; it can "
                "be a benchmark, whose answers are written for the official server"
            )
        name = answered[0]
    else:
        name = next(each for each in (_VALIDATION, *_TESTS, _TRAIN) if each in parts)
    split: Split = "all"
    if len(answered) == 2:
        split = "train" if part == "train" else "val"
    folder = root if root.is_dir() else root.parent
    if folder.name == "Questions":
        folder = folder.parent
    return _Files(folder, name, parts[name], _find_annotations(folder, parts[name], name), split)


def _list_parts(root: Path) -> dict[str, Path]:
    """Return the question files by their parts; of a single file that alone."""
    if root.is_file():
        files = [root]
    else:
        files = [*sorted(root.glob("v2_OpenEnded_*.json")), *sorted((root / "Questions").glob("v2_OpenEnded_*.json"))]
    parts: dict[str, Path] = {}
    for file in files:
        found = QUESTIONS_FILE.fullmatch(file.name)
        if found is not None:
            parts.setdefault(found[1], file)
    return parts


def _find_annotations(root: Path, questions: Path, part: str) -> Path | None:
    if part in _TESTS:
        return None
    name = f"v2_mscoco_{part}_annotations.json"
    places = [questions.parent, root, root / "Annotations"]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise DataError(f"{questions}: its answers should stand in {name}, beside it or in {root / 'Annotations'}")


def _name_image(part: str, number: int) -> str:
    return f"COCO_{_name_images(part)}_{number:012d}.jpg"


def _name_images(part: str) -> str:
    """Return the name of a part's images: test-dev is about some of the test part's."""
    return "test2015" if part in _TESTS else part


def _find_images(files: _Files, images: str | None, questions: Sequence[Question]) -> Path:
    """Return the folder with the images of a part: the first possible one that has the first image."""
    name = _name_images(files.part)
    if images is None:
        possible = [files.root / name, files.root / "images" / name, files.root / "Images" / "mscoco" / name]
    else:
        given = Path(images).expanduser()
        possible = [given, given / name]
    for folder in possible:
        if questions and (folder / questions[0].image).is_file():
            return folder
    return next(filter(Path.is_dir, possible), possible[0])


def _read_list(file: Path, key: str) -> list[Any]:
    content = read_json(file, what=f"{key} of VQAv2")
    rows = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(rows, list):
        raise DataError(f"{file}: not {key} of VQAv2: it has no list {key}")
    return rows


def _read_annotations(file: Path) -> dict[int, tuple[str, str, tuple[str, ...]]]:
    """Return the type of the answer, that of the question, and the answers, by the number of the question."""
    found = {}
    for number, row in enumerate(_read_list(file, "annotations")):
        match row:
            case {
                "question_id": int(identifier),
                "question_type": str(group),
                "answer_type": str(kind),
                "answers": list(votes),
            }:
                answers = tuple(_list_answers(votes))
            case _:
                raise DataError(
                    f"{file}: annotation {number}: expected question_id, question_type, answer_type and answers, not "
                    f"{describe_value(row)}"
                )
        if len(answers) != VOTES:
            raise DataError(f"{file}: question {identifier} has {len(answers)} answers; VQAv2 has {VOTES} of each")
        found[identifier] = (kind, group, answers)
    return found


def _list_answers(votes: Sequence[Any]) -> Iterator[str]:
    for vote in votes:
        match vote:
            case {"answer": str(answer)}:
                yield answer


def _compare_ids(files: _Files, asked: Collection[int], answered: Collection[int]) -> None:
    """Raise DataError if a question has no annotation, or an annotation no question."""
    for present, absent, place, other in (
        (asked, answered, files.questions, files.annotations),
        (answered, asked, files.annotations, files.questions),
    ):
        missing = sorted(set(present) - set(absent))
        if missing:
            raise DataError(
                f"{place}: {len(missing):,} of its question ids are not in {other}: "
                f"{list_names(list(map(str, missing)), _NAMED)}; the two files belong together"
            )
