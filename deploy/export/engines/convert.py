"""A bundle for other engines: what ``--triton`` and ``--kserve`` write, of a new bundle or of one that is there."""

from __future__ import annotations

import os
from pathlib import Path

from ehm.config import ExportConfig, TritonConfig
from ehm.console import console
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.export.engines.kserve import write_kserve
from ehm.deploy.export.engines.triton import check_triton, model_name, write_triton
from ehm.deploy.predict.registry import create_handler
from ehm.errors import ConfigError
from ehm.models.heads import Head

__all__ = ["check_engines", "convert", "is_bundle", "write_engines"]

_OF_A_RUN = ("checkpoints", "state.json", "metrics.jsonl")
"""What only the folder of a run, or of a checkpoint, holds."""


def is_bundle(path: str | Path) -> bool:
    """Whether ``path`` is a bundle, rather than something to make one of."""
    return (Path(path) / "manifest.json").is_file()


def convert(
    path: str | Path,
    *,
    triton: str | Path | None,
    kserve: str | Path | None,
    config: ExportConfig,
    head: Head,
    device: str,
    out: str | Path | None,
) -> Path:
    """Write what other engines want of the bundle at ``path``, which stays as it is; returns ``path``.

    Raises ConfigError where neither is asked for, or where settings, ``head`` or ``out`` would change the bundle.
    """
    changes = ["--head"] * (head != "auto") + ["--out"] * (out is not None) + _changed(config)
    if not changes and triton is None and kserve is None:
        raise ConfigError(f"{path}: is a bundle already; --triton DIR or --kserve FILE says what to make of it")
    bundle = Bundle.open(path)
    create_handler(bundle.manifest).require_batches(bundle.path, "ehm export --triton or --kserve")
    if changes:
        origin, flags = bundle.manifest.source.checkpoint, ", ".join(changes)
        raise ConfigError(f"{path}: is a bundle already, and final; for {flags} export {origin} again with that")
    check_engines(bundle.path, triton=triton, kserve=kserve, config=config, device=device)
    write_engines(bundle, triton=triton, kserve=kserve, config=config, device=device)
    return bundle.path


def check_engines(
    bundle: Path, *, triton: str | Path | None, kserve: str | Path | None, config: ExportConfig, device: str
) -> None:
    """Raise, before anything is written, what :func:`write_engines` would of the bundle that is or will be there.

    ConfigError where they would put a file into a bundle, or models into a bundle or a run.
    """
    own = Path(os.path.abspath(bundle))
    if triton is not None:
        place = Path(os.path.abspath(triton))
        if place.is_relative_to(own) or own.is_relative_to(place):
            raise ConfigError(
                f"--triton {triton}: neither the repository nor the bundle {bundle} may lie in the other; "
                "give a folder of its own"
            )
        if is_bundle(place) or any((place / name).exists() for name in _OF_A_RUN):
            raise ConfigError(f"--triton {triton}: is a bundle or a run; give a folder of its own")
        if place.exists() and not place.is_dir():
            raise ConfigError(f"--triton {triton}: is no folder")
        check_triton(bundle, place, config.triton, device)
    if kserve is not None:
        file = Path(os.path.abspath(kserve))
        if file.is_relative_to(own) or is_bundle(file.parent):
            raise ConfigError(f"--kserve {kserve}: lies in a bundle, which holds nothing else; give another place")
        if file.is_dir():
            raise ConfigError(f"--kserve {kserve}: is a folder; give a file")
        model_name(bundle, config.triton)


def write_engines(
    bundle: Bundle, *, triton: str | Path | None, kserve: str | Path | None, config: ExportConfig, device: str
) -> None:
    """Write the model repository ``triton`` and the file ``kserve``, if they are asked for; errors as theirs.

    The pod of an InferenceService has one GPU, which is number 0 there, whichever it is on the machine: both together
    name that one.
    """
    if triton is not None:
        placed = "cuda:0" if kserve is not None and device.startswith("cuda:") else device
        models = write_triton(bundle, Path(triton), config.triton, placed)
        names = ", ".join(model.name for model in models)
        console.print(f"{names} in {triton}; try: tritonserver --model-repository={triton}")
    if kserve is not None:
        write_kserve(bundle, Path(kserve), config.triton, device)
        console.print(f"InferenceService in {kserve}; try: kubectl apply -f {kserve}")
        if triton is None and device.startswith("cuda:"):
            console.print(
                f"Its pod has one GPU, number 0: a model repository for it is written by --device cuda, not {device}"
            )
        if config.triton.storage_uri == TritonConfig().storage_uri:
            console.print(
                f"Its storageUri, {config.triton.storage_uri}, is a placeholder: --set triton.storage_uri=URI gives "
                "the place that the repository is copied to",
            )


def _changed(config: ExportConfig) -> list[str]:
    """What ``config`` says that a bundle cannot follow any more, as flags."""
    flags = {"target": "--target", "int8": "--int8", "float16": "--float16"}
    default = ExportConfig()
    names = [name for name in ExportConfig.model_fields if getattr(config, name) != getattr(default, name)]
    return [flags.get(name, f"--set {name}") for name in names if name != "triton"]
