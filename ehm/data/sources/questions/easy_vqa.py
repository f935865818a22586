"""The questions of the package easy-vqa: one of three shapes in one of eight colours, 64 x 64 pixels.

train/questions.json, train/images/0.png …      [["what color is the shape?", "red", 0], …]
test/questions.json, test/images/0.png …        the same; measured on
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ehm.config import QuestionSet
from ehm.data.questions import Question
from ehm.data.sources.questions.drawing import draw_limited
from ehm.data.sources.questions.messages import QuestionPart, describe_questions, require_images
from ehm.data.sources.questions.table import QuestionTable, tabulate_questions
from ehm.errors import DataError
from ehm.storage.reading import describe_value, read_json

__all__ = ["EASY_VQA", "find_easy_vqa", "holds_easy_vqa", "open_easy_vqa"]

EASY_VQA = "easy-vqa"
_FILE = "questions.json"
_FOLDERS: dict[QuestionPart, str] = {"train": "train", "validation": "test"}
_COLOUR_WORDS = ("color", "colour")


def holds_easy_vqa(root: Path) -> bool:
    """Return whether a folder has the files of the package."""
    folders = [root / name for name in _FOLDERS.values()]
    return all((folder / _FILE).is_file() and (folder / "images").is_dir() for folder in folders)


def find_easy_vqa(source: str) -> Path:
    """Return the folder with the files: that of the package for ``easy-vqa``; DataError if it is not installed."""
    if source != EASY_VQA:
        return Path(source).expanduser()
    # found without being imported: it has nothing but the files
    package = find_spec("easy_vqa")
    if package is None or not package.submodule_search_locations:
        raise DataError(f"{source}: its questions are not installed; pip install easy-vqa")
    return Path(package.submodule_search_locations[0]) / "data"


def open_easy_vqa(chosen: QuestionSet, part: QuestionPart) -> QuestionTable:
    """Open the questions of a part; raises DataError if they are not installed, or not as the package has them."""
    folder = find_easy_vqa(chosen.source) / _FOLDERS[part]
    file = folder / _FILE
    if not file.is_file():
        raise DataError(f"{chosen.source}: not easy-vqa; looked for train/{_FILE} and test/{_FILE}")
    images = folder / "images" if chosen.images is None else Path(chosen.images).expanduser()
    rows = read_json(file, what="questions of easy-vqa")
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a list of questions, not {describe_value(rows)}")
    questions = []
    for number, row in enumerate(rows):
        match row:
            case [str(text), str(answer), int(image)]:
                kind = _name_kind(text, answer)
                questions.append(Question(text, (answer,), kind, f"{image}.png", identifier=image))
            case _:
                raise DataError(
                    f"{file}: question {number}: expected [text, answer, number of the image], "
                    f"not {describe_value(row)}"
                )
    questions = draw_limited(questions, chosen.limit)
    require_images(file, images, questions)
    note = describe_questions("easy-vqa", questions, f"the {_FOLDERS[part]} part")
    return tabulate_questions(images, questions, "train" if part == "train" else "val", [note])


def _name_kind(text: str, answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    is_colour = any(word in text.lower() for word in _COLOUR_WORDS)
    return "colour" if is_colour else "shape"
