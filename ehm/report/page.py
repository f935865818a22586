"""The page of a report: everything about a run that is shown, put together and rendered as HTML."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from ehm import __version__
from ehm.report.answers import ShownAnswer, read_answers
from ehm.report.chart import Chart, draw_chart
from ehm.report.curves import Curves
from ehm.report.embedding import Picture, embed_file, find_newest_pages
from ehm.report.findings import Finding, find_in_curves
from ehm.report.known_figures import GROUPS, KNOWN_FIGURES, FigureRow
from ehm.report.measured import find_in_measurement, read_measurements
from ehm.report.mistakes import Mistake, read_mistakes
from ehm.report.next_steps import list_next_steps
from ehm.report.numbers import PLAIN, format_share
from ehm.report.overview import RUN_NAMES, choose_tiles, describe_status, write_title
from ehm.report.record import RunRecord
from ehm.report.settings import COMMAND_NAMES, OBJECTIVE_NAMES, describe_run, list_changed_settings
from ehm.storage.names import escape_undecodable

__all__ = ["render_page"]

_TEMPLATES = files("ehm.report") / "templates"
_SHOWN_ROWS = 20
"""Classes that are listed at once; the others can be opened."""


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
        """The word for the score of the answer, "" if it has none."""
        if self.answer.score is None:
            return ""
        return {0.0: "wrong", 1.0: "right"}.get(self.answer.score, f"score {self.answer.score:.1f}")


def render_page(record: RunRecord) -> str:
    """Return the report of a run as one HTML document, which loads nothing."""
    script = _read_template("report.js")
    measurements = read_measurements(record)
    findings = find_in_curves(record)
    # of a probe the first one alone: the second measures the same images
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
        "charts": _draw_charts(record.curves),
        "pictures": _embed_pages(record.folder),
        "next_steps": list_next_steps(record),
        "facts": describe_run(record),
        "settings": list_changed_settings(record),
        "recipe": recipe,
        "configuration": yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True),
        # our own files, which are no text of users
        "style": Markup(_read_template("report.css")),
        "script": Markup(script),
        # the only script that a browser runs on this page, whatever a name may hold
        "script_hash": base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
    }
    return escape_undecodable(_make_environment().get_template("report.html").render(values))


def _make_environment() -> Environment:
    environment = Environment(
        # every value is escaped, as most are names of users' classes, files and folders
        autoescape=True,
        loader=FunctionLoader(_read_template),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = format_share
    return environment


def _read_template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _order_findings(findings: list[Finding]) -> list[Finding]:
    """Return warnings before notes; a sentence if there is nothing to say."""
    if not findings:
        return [Finding("good", "Nothing in the curves and figures calls for attention.")]
    order = {"warning": 0, "note": 1, "good": 2}
    return sorted(findings, key=lambda finding: order[finding.level])


def _draw_charts(curves: Curves) -> list[tuple[str, list[Chart]]]:
    """Return the charts by group: those of known figures in the order of their table, then one for each other key."""
    rows = list(KNOWN_FIGURES)
    known = {key for row in rows for key in row.keys}
    for key in curves.by_key:
        if key not in known:
            rows.append(FigureRow("other", key, {key: key}, "", PLAIN))
    charts: dict[str, list[Chart]] = {group: [] for group in GROUPS}
    for row in rows:
        lines = []
        for key, label in row.keys.items():
            if curves.find(key) is not None:
                # with the values that are not finite, which are gaps
                lines.append((label, curves.by_key[key]))
        if lines:
            charts[row.group].append(
                draw_chart(row.title, row.meaning, lines, curves.steps_per_epoch, row.unit, row.from_zero)
            )
    return [(GROUPS[group], found) for group, found in charts.items() if found]


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
