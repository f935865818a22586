"""The page of a report: collect everything that is shown of a run, and render it as HTML."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml
from markupsafe import Markup

from ehm import __version__
from ehm.report.answers import ShownAnswer, read_answers
from ehm.report.embedding import Picture, embed_file, find_newest_pages
from ehm.report.findings import Finding, find_in_curves
from ehm.report.known_figures import GROUPS
from ehm.report.measured import find_in_measurement, read_measurements
from ehm.report.mistakes import Mistake, read_mistakes
from ehm.report.next_steps import list_next_steps
from ehm.report.overview import RUN_NAMES, choose_tiles, describe_status, write_title
from ehm.report.record import COMMAND_NAMES, RunRecord
from ehm.report.rendering import create_environment, read_template
from ehm.report.run_charts import draw_charts
from ehm.report.settings import OBJECTIVE_NAMES, describe_run, list_changed_settings
from ehm.storage.names import escape_undecodable

__all__ = ["render_page"]

_SHOWN_ROWS = 20
"""Classes that are listed at first; a click shows the others."""


@dataclass(frozen=True)
class MistakeCard:
    """A mistake with its embedded picture, None if it could not be read."""

    mistake: Mistake
    picture: Picture | None

    @property
    def name(self) -> str:
        """The last two parts of the image's path, which fit below the picture."""
        return "/".join(Path(self.mistake.image).parts[-2:])


@dataclass(frozen=True)
class AnswerCard:
    """An answer with its embedded picture, None if it could not be read."""

    answer: ShownAnswer
    picture: Picture | None

    @property
    def level(self) -> str:
        """The score of the answer in words, "" if it has none."""
        if self.answer.score is None:
            return ""
        return {0.0: "wrong", 1.0: "right"}.get(self.answer.score, f"score {self.answer.score:.1f}")


def render_page(record: RunRecord) -> str:
    """Return the report of a run as one HTML document, which loads nothing."""
    script = read_template("report.js")
    measurements = read_measurements(record)
    findings = find_in_curves(record)
    # of a probe only the first one, because the second one is on the same images
    for measurement in measurements if record.kind == "vision_language" else measurements[:1]:
        findings += find_in_measurement(measurement)
    recipe = f"the defaults of {COMMAND_NAMES[record.kind]}"
    if record.kind == "pretrain":
        recipe = f"the published recipe of {OBJECTIVE_NAMES.get(record.setting('objective'), 'its objective')}"
    values = {
        "kind": RUN_NAMES[record.kind],
        "title": write_title(record),
        "folder": str(record.folder),
        "status": describe_status(record),
        "written": datetime.now().astimezone().strftime("%-d %B %Y, %H:%M"),
        "version": __version__,
        "tiles": choose_tiles(record, measurements),
        "findings": _order_findings(findings),
        "measurements": measurements,
        "shown_rows": _SHOWN_ROWS,
        "mistakes": _embed_mistakes(record.folder),
        "answers": _embed_answers(record.folder),
        "charts": [(GROUPS[group], charts) for group, charts in draw_charts(record.curves).items()],
        "pictures": _embed_pages(record.folder),
        "next_steps": list_next_steps(record),
        "facts": describe_run(record),
        "settings": list_changed_settings(record),
        "recipe": recipe,
        "configuration": yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True),
        # not escaped, because they are files of this package
        "style": Markup(read_template("report.css")),
        "script": Markup(script),
        # a browser runs only the script with this hash, so that a name cannot smuggle in another one
        "script_hash": base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
    }
    return escape_undecodable(create_environment().get_template("report.html").render(values))


def _order_findings(findings: list[Finding]) -> list[Finding]:
    """Return warnings before notes; if there are none, a finding that says so."""
    if not findings:
        return [Finding("good", "Nothing in the curves and figures calls for attention.")]
    order = {"warning": 0, "note": 1, "good": 2}
    return sorted(findings, key=lambda finding: order[finding.level])


def _embed_pages(folder: Path) -> list[Picture]:
    pages = []
    for path, step in find_newest_pages(folder / "pictures"):
        title = path.stem if step is None else f"{path.stem.rpartition(f'-{step:08d}')[0]}, after step {step:,}"
        picture = embed_file(path, title)
        if picture is not None:
            pages.append(picture)
    return pages


def _embed_mistakes(folder: Path) -> list[MistakeCard]:
    cards = []
    for mistake, path in read_mistakes(folder):
        picture = None
        if path is not None:
            picture = embed_file(path, f"{mistake.image}: {mistake.true}, predicted {mistake.predicted}")
        cards.append(MistakeCard(mistake, picture))
    return cards


def _embed_answers(folder: Path) -> list[AnswerCard]:
    cards = []
    for answer, path in read_answers(folder):
        picture = None if path is None else embed_file(path, f"{answer.image}: {answer.question}")
        cards.append(AnswerCard(answer, picture))
    return cards
