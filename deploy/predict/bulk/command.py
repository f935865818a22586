"""Bulk prediction as a function, and as ``ehm predict SOURCE --bundle DIR --out FOLDER``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from ehm.console import console
from ehm.data.sources.base import Source
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Precision
from ehm.deploy.predict.bulk.job import BulkJob, claim_folder, hash_names, open_images
from ehm.deploy.predict.bulk.ray_engine import choose_device, count_workers, predict_on_ray, start_ray
from ehm.deploy.predict.bulk.table import check_columns
from ehm.deploy.predict.bulk.worker import PartSummary, PartWorker
from ehm.deploy.predict.registry import create_handler
from ehm.errors import ConfigError, WriteError
from ehm.processors import count_physical_cores
from ehm.progress_bar import create_progress
from ehm.report.card import Card, render_card
from ehm.report.numbers import format_value
from ehm.report.overview import Tile

__all__ = ["BulkResult", "predict_source"]


@dataclass(frozen=True)
class BulkResult:
    """The predictions of a source: their folder, and how many images are in it, of which some could not be read.

    ``new_images`` were predicted by this call, in ``seconds``; the others were there.
    """

    out: Path
    images: int
    unreadable: int
    new_images: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """The speed of this call; 0 if everything was there."""
        return self.new_images / self.seconds if self.new_images else 0.0

    def _repr_html_(self) -> str:
        tiles = [
            Tile("Images", f"{self.images:,}"),
            Tile("Unreadable", f"{self.unreadable:,}"),
            Tile("New", f"{self.new_images:,}", "predicted by this call"),
            Tile("Images a second", format_value(self.images_per_second)),
        ]
        return render_card(Card(kind="Predictions", tiles=tiles, places=[("Folder", self.out)]))


def predict_source(
    source: str | Path,
    *,
    bundle: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    top: int = 5,
    device: str = "auto",
    precision: Precision = "float32",
    part_size: int = 4096,
    cpus: int | None = None,
    ray: str | None = None,
    workers: int | None = None,
) -> BulkResult:
    """Run ``bundle`` on all images of ``source`` (as data.source takes it), and write Parquet files into ``out``.

    Each file has ``part_size`` images, with the columns that `write_rows` describes. Files that are there are not
    written again, so that the same call goes on after an interruption. ``overrides`` set how the source is read, by
    keys of ``data``: ``data.columns.path=file``. ``cpus`` threads read images and run the network, by default one for
    each processor, or one for each worker of Ray. With ``ray``, the address of a cluster or "" for one of this
    machine, ``workers`` processes share the parts, as many as the cluster has room for if left out; ``out`` is a
    folder that all its machines share.

    Raises ConfigError if ``out`` holds predictions of other images or weights, DataError without images, ExportError
    for a damaged bundle, BackendError for a device that is not there.
    """
    opened = Bundle.open(bundle)
    check_columns(opened.manifest)
    for flag, count in {"top": top, "part-size": part_size, "cpus": cpus, "workers": workers}.items():
        if count is not None and count < 1:
            raise ConfigError(f"--{flag} {count}: expected at least 1")
    if ray is None and workers is not None:
        raise ConfigError("--workers: are processes of Ray; add --ray, or set --cpus")
    cluster = None
    if ray is not None:
        cluster = start_ray(ray)
        device = choose_device(cluster, device)
    images = open_images(str(source), overrides, opened.manifest)
    folder = Path(out).absolute()
    threads = cpus or (count_physical_cores() if cluster is None else 1)
    job = BulkJob(
        source=str(source),
        overrides=tuple(overrides),
        images=len(images),
        names=hash_names(images),
        bundle=Path(bundle).absolute(),
        device=device,
        precision=precision,
        top=top,
        out=folder,
        part_size=part_size,
        threads=threads,
    )
    claim_folder(job, opened, images)
    missing = job.list_missing_parts()
    outputs = create_handler(opened.manifest).describe_outputs()
    console.print(
        f"{len(images):,} images of {source} with {bundle} ({outputs}; {precision}) on {device}: {job.parts:,} parts "
        f"of {part_size:,} images, {job.parts - len(missing):,} of them done"
    )
    start = time.perf_counter()
    summaries = _predict_parts(job, images, missing, cluster, workers)
    done = _watch_parts(job, missing, summaries)
    job.remove_debris()
    _check_parts(job)
    new_images = sum(summary.images for summary in done)
    result = BulkResult(folder, len(images), _count_unreadable(job), new_images, time.perf_counter() - start)
    console.print(f"{new_images:,} images in {result.seconds:.1f} s: {result.images_per_second:.1f} images a second")
    if result.unreadable:
        console.print(f"{result.unreadable:,} of {result.images:,} could not be read; the column error says why")
    console.print(f"Results: {folder}")
    return result


def _predict_parts(
    job: BulkJob, images: Source, parts: list[int], cluster: Any, workers: int | None
) -> Iterator[PartSummary]:
    """Yield the summary of each part that is done; ``cluster`` is the module ray, None for this process alone."""
    if not parts:
        return
    if cluster is not None:
        room = count_workers(cluster, job.device, job.threads)
        yield from predict_on_ray(cluster, job, parts, workers or room)
        return
    worker = PartWorker(job, images)
    for part in parts:
        yield worker.predict_part(part)


def _watch_parts(job: BulkJob, parts: list[int], summaries: Iterator[PartSummary]) -> list[PartSummary]:
    """Show the progress, in images, and return what was done."""
    columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done = []
    with create_progress(*columns, transient=True) as progress:
        task = progress.add_task("predict", total=sum(len(job.list_part_images(part)) for part in parts))
        for summary in summaries:
            done.append(summary)
            progress.advance(task, summary.images)
    return done


def _check_parts(job: BulkJob) -> None:
    """Raise WriteError if a part that was reported is not here: then machines do not share the folder."""
    missing = job.list_missing_parts()
    if missing:
        raise WriteError(
            job.name_part_file(missing[0]),
            "the worker that wrote it is on a machine with another folder of this name",
            "choose a folder that all machines share",
        )


def _count_unreadable(job: BulkJob) -> int:
    """Count the images that could not be read, in all parts, by the statistics of their columns alone."""
    from pyarrow import parquet

    unreadable = 0
    for part in range(job.parts):
        metadata = parquet.read_metadata(job.name_part_file(part))
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group)
            errors = rows.column(rows.num_columns - 1)  # the last column is error
            unreadable += rows.num_rows - errors.statistics.null_count
    return unreadable
