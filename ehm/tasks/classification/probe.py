"""``ehm probe``: measure a frozen encoder by a linear probe (as MAE does), by k-NN (as DINO does) and by RankMe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ehm.config import ProbeConfig
from ehm.config.tasks.classification import PROBE_FIGURES
from ehm.console import console
from ehm.data import Source, open_source
from ehm.data.subset import Subset, find_targets
from ehm.errors import ConfigError
from ehm.report.card import Card, render_card
from ehm.report.run_card import list_tiles, render_run_card
from ehm.report.write import write_final_report
from ehm.storage.writing import write_json
from ehm.tasks.classification.frozen_features import FeatureRank, measure_neighbours_and_rank, measure_rank
from ehm.tasks.classification.image_format import complete_format
from ehm.tasks.classification.metrics import ClassificationReport
from ehm.tasks.classification.multi_label_metrics import MultiLabelReport
from ehm.tasks.classification.task import Classification
from ehm.training.run import Run, open_run
from ehm.training.supervised import TaskResult, train_task

__all__ = ["DEFAULT_CONFIG", "ProbeResult", "probe"]

DEFAULT_CONFIG = "elpv/probe"
DEFAULT_OUT = Path("runs/probe")
_HEADINGS = {"top1": "top-1", "auc": "AUC", "mean_ap": "mAP", "macro_f1": "macro F1", "micro_f1": "micro F1"}
AnyReport = ClassificationReport | MultiLabelReport
"""The report on images with one class each, or with several labels."""


@dataclass(frozen=True)
class ProbeResult:
    """The results of the probes on the same images, each None if it was not asked for, and their folder ``out``.

    ``checkpoint`` is the classifier of the linear probe, and ``rank`` the rank of the features that neighbours are
    searched among.
    """

    out: Path
    checkpoint: Path | None
    linear: AnyReport | None
    neighbours: AnyReport | None
    rank: FeatureRank | None

    def _repr_html_(self) -> str:
        card = None if self.checkpoint is None else render_run_card(self.out)
        if card is not None:
            return card
        # without training there is no run in the folder
        figures = {} if self.neighbours is None else dict(self.neighbours.figures)
        if self.rank is not None:
            figures["rankme"] = self.rank.rankme
        return render_card(Card(kind="Probe", tiles=list_tiles(figures), places=[("Folder", self.out)]))


def probe(
    config: ProbeConfig | str | Path | None = None,
    *,
    device: str = "auto",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    only: str | None = None,
) -> ProbeResult:
    """Measure the encoder that ``config.model`` names by a linear probe, by nearest neighbours and by RankMe.

    The linear probe gets features that are pooled as ``config.pool`` says, and is trained by the loop of fine-tuning
    with a frozen encoder. The others get features that are pooled as ``config.neighbours_pool`` says, and train
    nothing. ``only`` selects some of ``PROBE_FIGURES``, separated by commas; RankMe alone needs no labels. Writes the
    results to ``out/metrics.json``. Raises EhmError on bad input.
    """
    figures = _read_figures(only)
    folder = Path(out or DEFAULT_OUT)
    run = open_run(ProbeConfig, DEFAULT_CONFIG, config, overrides, device, folder, is_resumable=False)
    with run.explain_write_errors():
        if figures == {"rankme"}:
            rank = measure_rank(run.config, run.backend, _open_images(run.config))
            result = ProbeResult(folder, None, None, None, rank)
        else:
            result = _measure_with_labels(run, figures)
        _print_results(run.config, result)
        if run.is_main_process:
            path = write_json(folder / "metrics.json", _describe(result))
            console.print(f"Figures: {path}")
            # train_task has written a report without these figures; without training there is nothing to report
            if result.linear is not None:
                write_final_report(folder)
    return result


def _read_figures(only: str | None) -> set[str]:
    """Return the figures that ``only`` names, or all; raises ConfigError for others."""
    if only is None:
        return set(PROBE_FIGURES)
    names = [name.strip() for name in only.split(",")]
    for name in names:
        if name not in PROBE_FIGURES:
            raise ConfigError(
                f"--only {only}: {name or 'an empty name'} is no figure; it takes {', '.join(PROBE_FIGURES)}, or some "
                "of them"
            )
    return set(names)


def _open_images(config: ProbeConfig) -> Subset[Source]:
    """Return the training images, or all images if there are no labels to hold out a fold by."""
    source = open_source(complete_format(config, config.model.init).data, "train")
    has_labels = source.labels is not None or find_targets(source) is not None
    if not has_labels or len(source.classes) < 2:
        return Subset(source, None, source.split)
    train, _ = Classification.divide_source(config, source)
    return train


def _measure_with_labels(run: Run[ProbeConfig], figures: set[str]) -> ProbeResult:
    config = run.config
    task = Classification(config, run.backend)
    neighbours = None
    rank = None
    # before the linear probe, which has to be trained, so that mistakes in the settings show soon
    if "knn" in figures:
        neighbours, rank = measure_neighbours_and_rank(config, run.backend, task.train, task.val)
    elif "rankme" in figures:
        rank = measure_rank(config, run.backend, task.train)
    trained: TaskResult[AnyReport] | None = None
    if "linear" in figures:
        trained = train_task(task, run, title="probe")
    else:
        task.close()
    return ProbeResult(
        run.folder,
        None if trained is None else trained.checkpoint,
        None if trained is None else trained.report,
        neighbours,
        rank if "rankme" in figures else None,
    )


def _describe(result: ProbeResult) -> dict[str, Any]:
    """Return the contents of ``metrics.json``: the figures that were asked for."""
    values: dict[str, Any] = {}
    if result.checkpoint is not None:
        values["checkpoint"] = str(result.checkpoint)
    if result.linear is not None:
        values["linear"] = result.linear.to_json()
    if result.neighbours is not None:
        values["neighbours"] = result.neighbours.to_json()
    if result.rank is not None:
        values |= {"rankme": result.rank.rankme, "feature_spread": result.rank.feature_spread}
    return values


def _print_results(config: ProbeConfig, result: ProbeResult) -> None:
    reports = {"linear": result.linear, f"{config.neighbours} nearest neighbours": result.neighbours}
    measured = {name: report for name, report in reports.items() if report is not None}
    if measured:
        figures = list(next(iter(measured.values())).figures)
        table = Table("probe", *map(_name_figure, figures), title=f"frozen features of {config.model.init}")
        for name, report in measured.items():
            shares = [report.figures[figure] for figure in figures]
            table.add_row(name, *("" if share is None else f"{share:.1%}" for share in shares))
        console.print(table)
    if result.rank is not None:
        console.print(result.rank.describe())


def _name_figure(figure: str) -> str:
    """Return the heading of a column."""
    return _HEADINGS.get(figure, figure.replace("_", " "))
