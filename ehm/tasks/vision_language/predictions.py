"""Write the answers of a model into files that the official evaluation programs read.

predictions.json        for VQAv2 [{"question_id": 1, "answer": "yes"}], for others the form of GVTBench:
                        [{"pred": "Yes", "gt": "Yes.", "image_id": 42102, "n_obj_exist": 3}]
predictions_NAME.json   the same for each benchmark, if there are several
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ehm.data.questions import Question
from ehm.storage.writing import write_text
from ehm.tasks.vision_language.answers import take_sentence

__all__ = ["list_predictions", "write_predictions"]


def write_predictions(folder: Path, benchmarks: Sequence[tuple[str, Sequence[Question], Sequence[str]]]) -> list[Path]:
    """Write the answers for each of ``benchmarks`` (its name, questions and answers), and return the paths."""
    paths = []
    for name, questions, texts in benchmarks:
        file_name = "predictions.json" if len(benchmarks) == 1 else f"predictions_{_make_file_name(name)}.json"
        rows = list_predictions(questions, texts)
        paths.append(write_text(folder / file_name, json.dumps(rows, ensure_ascii=True) + "\n"))
    return paths


def list_predictions(questions: Sequence[Question], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a file of predictions: for VQAv2 the first sentence of each answer, else all of it."""
    rows: list[dict[str, Any]] = []
    for question, text in zip(questions, texts, strict=True):
        if question.has_votes or not question.answers:
            rows.append({"question_id": question.identifier, "answer": take_sentence(text)})
            continue
        truth = question.answers[0]
        if question.rule == "yes_no":
            truth = f"{truth.capitalize()}."
        rows.append({"pred": text, "gt": truth, "image_id": question.identifier, "n_obj_exist": question.objects})
    return rows


def _make_file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_") or "set"
