"""``ehm compare``: measure encoders on the same labelled images, or train and measure the arms of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ehm import backends
from ehm.analysis.chart import render_figure
from ehm.comparison.answers import choose_figure
from ehm.comparison.candidates import open_candidates, refuse_training_images
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
    """The table of a comparison, and the folder ``out`` with its files."""

    out: Path
    table: ComparisonTable

    def _repr_html_(self) -> str:
        return render_comparison_card(self.table, self.out)


@dataclass(frozen=True)
class _StudyFlags:
    """The arguments of :func:`compare` that only apply to a study."""

    arms: Sequence[str] | None
    seeds: Sequence[int] | None
    jobs: int | None
    results: Sequence[str | Path]
    measure_only: bool

    def refuse_all(self) -> None:
        """Raise ConfigError if one of them is given."""
        _refuse_flags(
            {
                "--arms": self.arms,
                "--seeds": self.seeds,
                "--jobs": self.jobs,
                "--results": self.results,
                "--measure-only": self.measure_only,
            },
            "is for studies, which --train names",
        )


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

    An encoder is anything that ``model.init`` takes, or ``scratch``: the architecture of the first one with random
    weights. ``source``, ``figure`` and ``overrides`` (``key=value``) set how they are measured
    (:class:`ehm.config.MeasureConfig`), and ``finetune`` adds short fine-tuning to the probes. The encoders themselves
    are not trained. Results are kept in ``out`` as soon as they are there, and after an interruption the same call
    continues with the missing ones.

    ``train`` is the file of a study (:class:`ehm.config.StudyConfig`): runs that have no result yet are trained, in
    ``jobs`` processes at a time, and measured. ``arms`` and ``seeds`` select runs, ``results`` are tables with results
    from elsewhere, and with ``measure_only`` only runs that are complete are measured.

    Raises EhmError on bad input. If runs of a study fail, the others are finished first and TrainingError is raised at
    the end.
    """
    check_scikit_learn()
    folder = Path(out or DEFAULT_OUT)
    flags = _StudyFlags(arms, seeds, jobs, results, measure_only)
    if train is None:
        flags.refuse_all()
        return _compare_encoders(encoders, _read_measure(source, figure, finetune, overrides), device, folder)
    _refuse_flags(
        {"--source": source, "--figure": figure, "--finetune": finetune, "--set": overrides},
        f"is for encoders that are there; {train} says how its arms are trained and measured",
    )
    if encoders:
        raise ConfigError(f"{encoders[0]}: --train compares the arms of {train} and no other encoders; leave it out")
    return _compare_arms(str(train), folder, device, flags)


def _refuse_flags(values: Mapping[str, object], reason: str) -> None:
    """Raise ConfigError, which says the ``reason``, if one of the flags has a value."""
    for flag, value in values.items():
        if value:
            raise ConfigError(f"{flag}: {reason}")


def _read_measure(source: str | None, figure: str | None, finetune: bool, overrides: Sequence[str]) -> MeasureConfig:
    """Return the settings of the measurement: the flags stand for keys, and ``overrides`` may set any key."""
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
    """Measure encoders that are already trained, and write their table."""
    if not encoders:
        raise ConfigError("encoders: none is named; give runs, files of weights, timm:NAME, hf:OWNER/NAME or scratch")
    images = open_images(measure)
    check_measure(measure, images)
    figure = choose_figure(measure, images.classes)
    backend = backends.get(device)
    if backend.processes.size > 1:
        raise ConfigError("compare: runs in one process; start it without torchrun")
    candidates = open_candidates(encoders, backend, out, measure.scratch_seeds)
    refuse_training_images(candidates, images, measure.workers or 0)
    console.print(f"Comparing {len(candidates)} encoders on {images.description}")
    answers = measure_candidates(candidates, images, measure, backend, device, out)
    table = tabulate_encoders(candidates, answers, images, measure, figure)
    table.show()
    facts = {"images": images.description, "measure": measure.model_dump(mode="json")}
    write_figures_table(out / "results.csv", list_figures(candidates, answers, images))
    _write_files(out, table, facts)
    return Comparison(out, table)


def _compare_arms(file: str, out: Path, device: str, flags: _StudyFlags) -> Comparison:
    """Train and measure the runs of the study ``file`` that have no result yet, and write its tables."""
    study = open_study(file)
    figure = _choose_study_figure(study)
    runs = choose_runs(study, flags.arms, flags.seeds)
    tables = [Path(table) for table in flags.results]
    done = gather_results(study, runs, out, tables)
    failed = run_missing(file, study, runs, done, out, device, flags.jobs, flags.measure_only)
    done = gather_results(study, runs, out, tables)  # again, with the results of the runs since then
    if not done:
        report_failures(failed)
        raise ConfigError(f"--out {out}: no run is complete yet, so there is nothing to compare")
    table = tabulate_study(study, done, figure)
    table.show()
    missing = len(runs) - len(done)
    if missing:
        console.print(f"{missing} of {len(runs)} runs have no result yet; the same command goes on")
    write_results_table(out / "results.csv", done)
    _write_files(out, table, {"study": file, "runs": len(done)})
    report_failures(failed)
    return Comparison(out, table)


def _choose_study_figure(study: StudyConfig) -> str:
    """Return the figure that arms are compared by.

    Also opens the images of all measurements and checks their settings, before anything is trained: a mistake then
    costs seconds, not the hours until the first run is measured.
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
    """Write the table as Markdown and JSON, and its chart if matplotlib is installed."""
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
