"""The precision of an offline model, found by measuring: the fastest whose outputs are near enough on this NPU.

ATC's default, float16, and its mixed precisions are faster than the types of the graph, and have ruined encoders.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from rich.table import Table

from ehm.config import AscendConfig
from ehm.console import console
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import OFFLINE_MODEL, Ascend, AtcPrecision, AtcTrial, OfflineParity
from ehm.deploy.export.engines.ascend import CHOOSER, SCRIPT, has_atc, run_atc
from ehm.deploy.export.engines.samples import Samples, make_samples, read_samples
from ehm.deploy.predict.ascend_device import AscendDevice, open_device
from ehm.deploy.predict.offline_model import OfflineSession
from ehm.deploy.predict.offline_parity import compare_offline, measure_offline
from ehm.deploy.predict.predictor import Predictor
from ehm.errors import BackendError, EhmError, ExportError
from ehm.storage.writing import report_write_errors, write_json

__all__ = ["choose_precision", "convert_network", "main"]

_BATCH = 8
"""Most images of a batch that is timed."""
_RUNS = 10
"""Runs whose median time counts: enough for a median, and few enough for minutes of compiling to take the most time."""
_REPORT = "model.om.json"


@dataclass(frozen=True)
class _Candidate:
    """The outcome of a trial: its file, its record, and its comparison on the images of the export."""

    file: Path
    trial: AtcTrial
    parity: OfflineParity


def convert_network(
    bundle: Bundle,
    config: AscendConfig,
    write_script: Callable[[AtcPrecision], None],
    find_samples: Callable[[], Samples],
) -> Ascend:
    """Make ``model.om`` in the folder of ``bundle`` if ``atc`` is here, and return the manifest's record of it.

    ``write_script`` writes ``atc.sh`` with a precision as its default. If precision is to be measured and there is an
    NPU of the kind, all are tried on what ``find_samples`` finds; if there is none, the types of the graph are kept.
    Raises ExportError if ``atc`` fails, or outputs are too far from those of the ONNX file.
    """
    precision: AtcPrecision = "origin" if config.precision == "measured" else config.precision
    write_script(precision)
    record = Ascend(
        soc_version=config.soc_version,
        batch_sizes=config.batch_sizes,
        precision=precision,
        cosine=config.cosine,
        agreement=config.agreement,
    )
    if not has_atc():
        console.print(
            f"No atc here, CANN's converter; where it is installed, run {CHOOSER} of the bundle on an NPU, or {SCRIPT}"
        )
        return record
    bundle = Bundle(bundle.path, bundle.manifest.model_copy(update={"ascend": record}))
    try:
        device = _open_matching_device(config.soc_version)
    except BackendError as error:
        run_atc(bundle.path, bundle.path / OFFLINE_MODEL, precision)
        console.print(f"{OFFLINE_MODEL} is compared with the ONNX file when it is first loaded, not here: {error}")
        return record
    if config.precision == "measured":
        record = choose_precision(bundle, record, device, find_samples())
        write_script(record.precision)
        return record
    run_atc(bundle.path, bundle.path / OFFLINE_MODEL, precision)
    session = OfflineSession(device, bundle.offline_model(), bundle.manifest)
    parity = compare_offline(bundle, session)
    console.print(
        f"{OFFLINE_MODEL} on {parity.chip}: cosines to the ONNX file of {parity.cosine:.6f} and above "
        f"(allowed {record.cosine:g})"
    )
    return record.model_copy(update={"parity": parity})


def choose_precision(bundle: Bundle, record: Ascend, device: AscendDevice, samples: Samples) -> Ascend:
    """Try every precision, leave the fastest that is near enough as ``model.om``, and return its record.

    Raises ExportError if none is.
    """
    with tempfile.TemporaryDirectory(dir=bundle.path) as folder:  # on the same disk, so that the best is only renamed
        candidates = []
        for precision in get_args(AtcPrecision):
            candidates.append(_try_precision(bundle, record, device, samples, precision, Path(folder)))
        trials = tuple(candidate.trial for candidate in candidates)
        _print_trials(trials, samples.source, device.chip)
        accepted = [candidate for candidate in candidates if candidate.trial.accepted]
        if not accepted:
            raise ExportError(
                f"--target ascend: no precision of ATC reaches a cosine of {record.cosine:g} and "
                f"{record.agreement:.1%} of the same answers on {samples.source}; ascend.cosine and ascend.agreement "
                "are the bounds"
            )
        best = min(accepted, key=lambda candidate: candidate.trial.milliseconds)
        with report_write_errors(bundle.path / OFFLINE_MODEL):
            best.file.replace(bundle.path / OFFLINE_MODEL)
    return record.model_copy(update={"precision": best.trial.precision, "parity": best.parity, "trials": trials})


def _try_precision(
    bundle: Bundle, record: Ascend, device: AscendDevice, samples: Samples, precision: AtcPrecision, folder: Path
) -> _Candidate:
    """Convert the network in a precision, time it, and compare it with the ONNX file on the CPU."""
    file = folder / f"{precision}.om"
    run_atc(bundle.path, file, precision)
    session = OfflineSession(device, file, bundle.manifest)
    parity = measure_offline(bundle, session)
    reference = Predictor(bundle)
    handler = reference.handler
    cosines = []
    agreements = []
    for inputs in samples.iterate():
        expected = reference.run(inputs, handler.measured_outputs)
        found = session.run(handler.measured_outputs, {bundle.manifest.input.name: inputs})
        comparison = handler.compare(expected, dict(zip(expected, found, strict=True)))
        cosines.append(comparison.cosines)
        if comparison.agreements is not None:
            agreements.append(comparison.agreements)
    every_cosine = np.nan_to_num(np.concatenate(cosines), nan=-1)
    cosine = min(parity.cosine, float(every_cosine.min()))
    agreement = float(np.concatenate(agreements).mean()) if agreements else None
    near = cosine >= record.cosine and (agreement is None or agreement >= record.agreement)
    trial = AtcTrial(
        precision=precision,
        images=len(every_cosine),
        source=samples.source,
        milliseconds=measure_milliseconds(session, bundle),
        cosine=cosine,
        agreement=agreement,
        accepted=near,
    )
    return _Candidate(file, trial, parity)


def measure_milliseconds(session: OfflineSession, bundle: Bundle) -> float:
    """Return the median time of a batch of up to eight images."""
    record = bundle.manifest.input
    size = max((size for size in session.batch_sizes if size <= _BATCH), default=session.batch_sizes[0])
    shape = [int(side) for side in record.shape[1:]]
    images = np.zeros((size, *shape), np.float32)
    seconds = []
    for _ in range(_RUNS + 1):
        start = time.perf_counter()
        session.run(bundle.manifest.output_names, {record.name: images})
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:])) * 1000  # the first run takes memory


def main(folder: Path, images: Sequence[str]) -> int:
    """Run ``choose_precision.py`` of the bundle in ``folder``; returns the exit status."""
    try:
        bundle = Bundle.open(folder)
        record = bundle.manifest.ascend
        if record is None or not has_atc():
            raise ExportError(f"{folder}: needs a bundle of --target ascend, and atc on the PATH: source set_env.sh")
        device = _open_matching_device(record.soc_version)
        samples = read_samples(bundle, images) if images else make_samples(bundle)
        chosen = choose_precision(bundle, record, device, samples)
        write_json(folder / _REPORT, chosen.model_dump(mode="json"))
    except EhmError as error:
        console.print(f"choose_precision.py: {error}")
        return 1
    console.print(f"{chosen.precision} in {folder / OFFLINE_MODEL}, figures in {_REPORT}")
    return 0


def _open_matching_device(soc_version: str) -> AscendDevice:
    """Return the first NPU; raises BackendError if there is none of that kind."""
    device = open_device(0)
    if device.chip != soc_version:
        raise BackendError(f"it is for {soc_version}, and this NPU is an {device.chip}")
    return device


def _print_trials(trials: Sequence[AtcTrial], source: str, chip: str) -> None:
    table = Table(title=f"ATC's precisions on {chip}, beside float32 on {source}")
    for name in ("", "ms a batch", "least cosine", "the same", "near enough"):
        table.add_column(name, justify="right" if name else "left")
    for trial in trials:
        agreement = "" if trial.agreement is None else f"{trial.agreement:.1%}"
        near = "yes" if trial.accepted else "no"
        table.add_row(trial.precision, f"{trial.milliseconds:.2f}", f"{trial.cosine:.6f}", agreement, near)
    console.print(table)
