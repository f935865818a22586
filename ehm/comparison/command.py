"""``ehm compare``: encoders side by side on labelled images, or the arms of a study that it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ehm import backends
from ehm.analysis.chart import render_figure
from ehm.comparison.answers import choose_figure
from ehm.comparison.candidates import open_candidates, refuse_seen
from ehm.comparison.card import render_comparison_card
from ehm.comparison.chart import draw_comparison
from ehm.comparison.encoder_table import list_figures, tabulate_encoders, write_figures_table
from ehm.comparison.encoders import measure_candidates
from ehm.comparison.finetuning import quote_yaml
from ehm.comparison.images import open_images
from ehm.comparison.measuring import check_measure
from ehm.comparison.probes import check_scikit_learn
from ehm.comparison.results import write_results_table
from ehm.comparison.study import choose_runs, gather_results, open_study, report_failures, run_missing
from ehm.comparison.study_table import tabulate_study
from ehm.comparison.table import ComparisonTable
from ehm.config import MeasureConfig, StudyConfig, load_config
from ehm.console import console
from ehm.errors import ConfigError
from ehm.installation import build_install_command
from ehm.storage.writing import replace_file, write_json, write_text

__all__ = ["Comparison", "compare"]

DEFAULT_OUT = Path("runs/compare")


@dataclass(frozen=True)
class Comparison:
    """The table of a comparison, and the folder that holds it as files."""

    out: Path
    table: ComparisonTable

    def _repr_html_(self) -> str:
        return render_comparison_card(self.table, self.out)


def compare(
    encoders: Sequence[str] = (),
    *,
    source: str | None = None,
    figure: str | None = None,
    finetune: bool = False,
    overrides: Sequence[str] = (),
    device: str = "auto",
    out: str | Path | None = None,
    train: str | Path | None = None,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int | None = None,
    results: Sequence[str | Path] = (),
    measure_only: bool = False,
) -> Comparison:
    """Measure ``encoders`` on the same labelled images, or with ``train`` the arms of a study, and compare them.

    An encoder is whatever ``model.init`` takes, or ``scratch`` for the first one's architecture with random weights.
    ``source``, ``figure`` and ``overrides`` (``key=value``) say how they are measured
    (:class:`ehm.config.MeasureConfig`), and ``finetune`` adds short fine-tuning to the probes. Nothing but probes, and
    these fine-tunings, is trained. What was measured is kept in ``out``, so that the same call goes on after an
    interruption.

    ``train`` is the file of a study (:class:`ehm.config.StudyConfig`): what is missing is trained, in ``jobs``
    processes side by side, and measured. ``arms`` and ``seeds`` choose some of them, ``results`` are tables with
    results from elsewhere, and ``measure_only`` trains nothing.

    Raises EhmError on bad input, and TrainingError after all else is done if runs of a study failed.
    """
    check_scikit_learn()
    folder = Path(out or DEFAULT_OUT)
    if train is None:
        given = {"--arms": arms, "--seeds": seeds, "--jobs": jobs, "--results": results, "--measure-only": measure_only}
        _refuse(given, "is for studies, which --train names")
        return _compare_encoders(encoders, _read_measure(source, figure, finetune, overrides), device, folder)
    given = {"--source": source, "--figure": figure, "--finetune": finetune, "--set": overrides}
    _refuse(given, f"is for encoders that are there; {train} says how its arms are trained and measured")
    if encoders:
        raise ConfigError(f"{encoders[0]}: --train compares the arms of {train} and no other encoders; leave it out")
    tables = [Path(table) for table in results]
    return _compare_arms(str(train), folder, device, arms, seeds, jobs, tables, measure_only)


def _refuse(given: Mapping[str, object], reason: str) -> None:
    """Raise ConfigError if one of the flags is ``given``."""
    for flag, value in given.items():
        if value:
            raise ConfigError(f"{flag}: {reason}")


def _read_measure(source: str | None, figure: str | None, finetune: bool, overrides: Sequence[str]) -> MeasureConfig:
    """Return how encoders are measured; flags are short for keys, and further keys are in ``overrides``."""
    flags = []
    if source is not None:
        flags.append(f"source={quote_yaml(source)}")
    if figure is not None:
        flags.append(f"figure={figure}")
    measure = load_config(MeasureConfig, None, [*flags, *overrides])
    if finetune and "finetune" not in measure.probes:
        measure = measure.model_copy(update={"probes": (*measure.probes, "finetune")})
    return measure


def _compare_encoders(encoders: Sequence[str], measure: MeasureConfig, device: str, out: Path) -> Comparison:
    """Measure encoders that are there, and write their table."""
    if not encoders:
        raise ConfigError("encoders: none is named; give runs, files of weights, timm:NAME, hf:OWNER/NAME or scratch")
    images = open_images(measure)
    check_measure(measure, images)
    figure = choose_figure(measure, images.classes)
    backend = backends.get(device)
    if backend.processes.size > 1:
        raise ConfigError("compare: runs in one process; start it without torchrun")
    candidates = open_candidates(encoders, backend, out, measure.scratch_seeds)
    refuse_seen(candidates, images, measure.workers or 0)
    console.print(f"Comparing {len(candidates)} encoders on {images.description}")
    answers = measure_candidates(candidates, images, measure, backend, device, out)
    table = tabulate_encoders(candidates, answers, images, measure, figure)
    table.show()
    facts = {"images": images.description, "measure": measure.model_dump(mode="json")}
    write_figures_table(out / "results.csv", list_figures(candidates, answers, images))
    _write_files(out, table, facts)
    return Comparison(out, table)


def _compare_arms(
    file: str,
    out: Path,
    device: str,
    arms: Sequence[str] | None,
    seeds: Sequence[int] | None,
    jobs: int | None,
    tables: Sequence[Path],
    measure_only: bool,
) -> Comparison:
    """Train and measure what a study lacks, and write its tables."""
    study = open_study(file)
    figure = _check_study(study)
    runs = choose_runs(study, arms, seeds)
    done = gather_results(study, runs, out, tables)
    failed = run_missing(file, study, runs, done, out, device, jobs, measure_only)
    done = gather_results(study, runs, out, tables)
    if not done:
        report_failures(failed)
        raise ConfigError(f"--out {out}: no run is complete yet, so that there is nothing to compare")
    table = tabulate_study(study, done, figure)
    table.show()
    missing = len(runs) - len(done)
    if missing:
        console.print(f"{missing} of {len(runs)} runs have no result yet; the same command goes on")
    write_results_table(out / "results.csv", done)
    _write_files(out, table, {"study": file, "runs": len(done)})
    report_failures(failed)
    return Comparison(out, table)


def _check_study(study: StudyConfig) -> str:
    """Return the figure that arms are compared by; raises an error if a measurement could not be made.

    Here, and not when the first run is measured, so that a mistake costs seconds.
    """
    figures = []
    for measure in study.measure:
        images = open_images(measure)
        check_measure(measure, images)
        figures.append(choose_figure(measure, images.classes))
    if len(set(figures)) > 1:
        raise ConfigError(f"measure: figures are {', '.join(figures)}; set one and the same figure in all of them")
    return figures[0]


def _write_files(out: Path, table: ComparisonTable, facts: Mapping[str, object]) -> None:
    """Write the table as Markdown and JSON, and draw its chart if matplotlib is there."""
    markdown = write_text(out / "table.md", table.to_markdown())
    values = write_json(out / "comparison.json", {**facts, **table.to_json()})
    console.print(f"Tables: {markdown}, {values}, {out / 'results.csv'}")
    if find_spec("matplotlib") is None:
        console.print(f"No chart: matplotlib is not installed; {build_install_command('plots')} installs it")
        return
    picture = render_figure(draw_comparison(table))
    chart = out / "chart.png"
    with replace_file(chart) as temporary:
        picture.save(temporary)
    console.print(f"Chart: {chart}")
