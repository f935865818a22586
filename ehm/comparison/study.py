"""A study: arms over seeds from one file. What is missing is trained and measured, and all of it becomes a table.

OUT/runs/ARM/seed-S/           plain runs of ``ehm train``
OUT/logs/ARM/seed-S.log        what training and measuring printed
OUT/results/ARM/seed-S.json    the measures of each run
OUT/results.csv, comparison.json, table.md, chart.png
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ehm import backends
from ehm.comparison.results import Measures, Results, RunKey, load_result, read_results_table
from ehm.comparison.side_by_side import Job, run_jobs
from ehm.comparison.study_run import check_run, is_complete, run_folder
from ehm.config import StudyConfig, load_config
from ehm.config.loading import locate_config
from ehm.console import console
from ehm.errors import ConfigError, TrainingError
from ehm.processors import count_available_processors

__all__ = ["choose_runs", "gather_results", "list_devices", "open_study", "report_failures", "run_missing"]

_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""For runs that share the processors: the results then do not depend on how many run side by side either."""


def open_study(file: str) -> StudyConfig:
    """Read the file of a study, a path or the name of a shipped one; raises ConfigError if it names no arms."""
    study = load_config(StudyConfig, file)
    if not study.arms:
        raise ConfigError(f"{file}: arms: names none; give one at least, for example random: [masking=random]")
    if not study.measure:
        raise ConfigError(f"{file}: measure: is missing; it says how encoders are measured, for example source: elpv")
    return study


def choose_runs(study: StudyConfig, arms: Sequence[str] | None, seeds: Sequence[int] | None) -> list[RunKey]:
    """Return the runs of ``study``, seed by seed, or only those of ``arms`` and of ``seeds`` if these are given.

    What an arm starts from is among them. Seed by seed, so that an interrupted study has all arms of its first seeds.
    """
    names = list(study.arms)
    for name in arms or ():
        if name not in study.arms:
            raise ConfigError(f"--arms {name}: no such arm; the arms are {', '.join(study.arms)}")
    if arms:
        names = [name for name in names if name in _with_starts(study, arms)]
    known = sorted({seed for name in names for seed in study.seeds_of(name)})
    for seed in seeds or ():
        if seed not in known:
            raise ConfigError(f"--seeds {seed}: no arm has this seed; the seeds are {', '.join(map(str, known))}")
    runs = []
    for seed in known:
        if seeds and seed not in seeds:
            continue
        runs += [RunKey(name, seed) for name in names if seed in study.seeds_of(name)]
    return runs


def _with_starts(study: StudyConfig, arms: Sequence[str]) -> set[str]:
    """Return ``arms`` and all that they start from."""
    names = set(arms)
    for name in arms:
        while (start := study.arms[name].start) is not None:
            names.add(start)
            name = start
    return names


def gather_results(study: StudyConfig, runs: Sequence[RunKey], out: Path, tables: Sequence[Path]) -> Results:
    """Return the results of ``runs`` that are there: measured in ``out``, or else in ``tables`` from elsewhere."""
    results: Results = {}
    # a table has all runs of the study, of which some were chosen; only runs of other studies are worth a line
    known = choose_runs(study, None, None)
    for table in tables:
        for run, measures in read_results_table(table, known).items():
            results.setdefault(run, {}).update(measures)
    for run in runs:
        measured = _load_result(study, run, out)
        if measured is not None:
            results[run] = measured
    return {run: results[run] for run in runs if run in results}


def _load_result(study: StudyConfig, run: RunKey, out: Path) -> Measures | None:
    """Return the result of ``run`` in ``out``, which has to be that of the study's settings if the run is there."""
    complete = is_complete(run_folder(out, run))
    if complete:
        check_run(study, run, out)
    return load_result(out, run, study, can_measure=complete)


def run_missing(
    file: str,
    study: StudyConfig,
    runs: Sequence[RunKey],
    done: Results,
    out: Path,
    device: str,
    jobs: int | None,
    measure_only: bool,
) -> list[Job]:
    """Train and measure those of ``runs`` that have no result among those ``done``; return the jobs that failed.

    With ``measure_only`` nothing is trained: only complete runs are measured.
    """
    missing = [run for run in runs if run not in done]
    complete = [run for run in missing if is_complete(run_folder(out, run))]
    if measure_only:
        missing = complete
    else:
        missing = _add_starts(study, runs, missing, out)
    if not missing:
        return []
    devices = list_devices(device, jobs, len(missing))
    console.print(
        f"Of {len(runs)} runs {len(missing) - len(complete)} are to be trained and {len(missing)} to be measured, "
        f"{len(devices)} side by side"
    )
    made = [_make_job(file, study, run, out) for run in missing]
    run_jobs(made, devices, _ONE_THREAD if devices[0].startswith("cpu") else {})
    return [job for job in made if job.status != 0]


def _add_starts(study: StudyConfig, runs: Sequence[RunKey], missing: Sequence[RunKey], out: Path) -> list[RunKey]:
    """Return those of ``runs`` that are ``missing``, or that these start from and are not there to start from."""
    needed = set(missing)
    # a result may be known from elsewhere, but only the run itself has an encoder
    for run in missing:
        while (start := study.arms[run.arm].start) is not None:
            run = RunKey(start, run.seed)
            if not is_complete(run_folder(out, run)):
                needed.add(run)
    return [run for run in runs if run in needed]


def _make_job(file: str, study: StudyConfig, run: RunKey, out: Path) -> Job:
    """Return the job that carries ``run`` out, after the one that it starts from."""

    def command(device: str) -> list[str]:
        # the path, because a name is looked up where this process stands
        place = str(locate_config(file).resolve())
        words = [place, "--out", str(out), "--arm", run.arm, "--seed", str(run.seed), "--device", device]
        return [sys.executable, "-m", "ehm.comparison.study_run", *words]

    after: tuple[str, ...] = ()
    start = study.arms[run.arm].start
    if start is not None and not is_complete(run_folder(out, RunKey(start, run.seed))):
        after = (str(RunKey(start, run.seed)),)
    return Job(str(run), command, out / "logs" / run.arm / f"seed-{run.seed}.log", after)


def list_devices(device: str, jobs: int | None, most: int) -> list[str]:
    """Return a device for each process that runs at the same time, ``jobs`` of them or one a core or an accelerator."""
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs {jobs}: should be 1 or more")
    info = backends.get(device).describe_device()
    if info.name == "cpu" or info.name.startswith("mindspore"):
        count = jobs or count_available_processors()
        return [device if info.name != "cpu" else "cpu"] * min(count, most)
    if ":" in device:  # one of several was asked for
        return [device] * min(jobs or 1, most)
    count = min(jobs or info.count, most)
    return [f"{info.name}:{number % info.count}" for number in range(count)]


def report_failures(failed: Sequence[Job]) -> None:
    """Raise TrainingError that names the runs that failed, with the last line of the log of each."""
    if not failed:
        return
    sentences = []
    for job in failed:
        lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1].strip() if lines else "nothing was printed"
        sentences.append(f"{job.name}: {last} ({os.path.relpath(job.log)})")
    raise TrainingError(f"{len(failed)} runs failed; the same command tries them again: {'; '.join(sentences)}")
