"""A bundle for other engines: what ``--triton`` and ``--kserve`` write, for a new bundle or for one that is there."""

from __future__ import annotations

import os
from pathlib import Path

from ehm.config import ExportConfig, TritonConfig
from ehm.console import console
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import MANIFEST
from ehm.deploy.export.engines.kserve import write_kserve
from ehm.deploy.export.engines.triton import check_triton, choose_model_name, write_triton
from ehm.errors import ConfigError
from ehm.models.heads import Head

__all__ = ["check_engines", "convert_bundle", "is_bundle", "write_engines"]

_RUN_FILES = ("checkpoints", "state.json", "metrics.jsonl")
"""Names that occur only in the folder of a run, or of a checkpoint."""
_FLAGS = {"target": "--target", "int8": "--int8", "float16": "--float16"}
"""Keys of the configuration that have a flag of their own."""


def is_bundle(path: str | Path) -> bool:
    """Return whether ``path`` is a bundle, rather than something to make one of."""
    return (Path(path) / MANIFEST).is_file()


def convert_bundle(
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

    Raises ConfigError if neither is asked for, or if settings, ``head`` or ``out`` would change the bundle.
    """
    changes = _list_changes(config)
    if out is not None:
        changes.insert(0, "--out")
    if head != "auto":
        changes.insert(0, "--head")
    if not changes and triton is None and kserve is None:
        raise ConfigError(f"{path}: is a bundle already; --triton DIR or --kserve FILE says what to make of it")
    # verified first, since its files are copied as they are
    bundle = Bundle.open(path)
    if changes:
        origin = bundle.manifest.source.checkpoint
        raise ConfigError(
            f"{path}: is a bundle already, and final; for {', '.join(changes)} export {origin} again with that"
        )
    check_engines(bundle.path, triton=triton, kserve=kserve, config=config, device=device)
    write_engines(bundle, triton=triton, kserve=kserve, config=config, device=device)
    return bundle.path


def check_engines(
    bundle: Path, *, triton: str | Path | None, kserve: str | Path | None, config: ExportConfig, device: str
) -> None:
    """Raise, before anything is written, the errors of `write_engines` for the bundle that is or will be there.

    It is a ConfigError if they would put a file into a bundle, or models into a bundle or a run.
    """
    own = Path(os.path.abspath(bundle))
    if triton is not None:
        repository = Path(os.path.abspath(triton))
        if repository.is_relative_to(own) or own.is_relative_to(repository):
            raise ConfigError(
                f"--triton {triton}: neither the repository nor the bundle {bundle} may lie in the other; "
                "give a folder of its own"
            )
        # Triton takes every folder in its repository for a model
        if is_bundle(repository) or any((repository / name).exists() for name in _RUN_FILES):
            raise ConfigError(f"--triton {triton}: is a bundle or a run; give a folder of its own")
        if repository.exists() and not repository.is_dir():
            raise ConfigError(f"--triton {triton}: is no folder")
        check_triton(bundle, repository, config.triton, device)
    if kserve is not None:
        file = Path(os.path.abspath(kserve))
        if file.is_relative_to(own) or is_bundle(file.parent):
            raise ConfigError(f"--kserve {kserve}: lies in a bundle, which holds nothing else; give another place")
        if file.is_dir():
            raise ConfigError(f"--kserve {kserve}: is a folder; give a file")
        choose_model_name(bundle, config.triton)  # which raises the error of a wrong name


def write_engines(
    bundle: Bundle, *, triton: str | Path | None, kserve: str | Path | None, config: ExportConfig, device: str
) -> None:
    """Write the model repository ``triton`` and the file ``kserve``, if they are asked for; errors as theirs."""
    if triton is not None:
        # the pod of an InferenceService has one GPU, which is number 0 there, whichever it is on this machine
        in_pod = kserve is not None and device.startswith("cuda:")
        models = write_triton(bundle, Path(triton), config.triton, "cuda:0" if in_pod else device)
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


def _list_changes(config: ExportConfig) -> list[str]:
    """Return what ``config`` says that a finished bundle cannot follow, as flags."""
    default = ExportConfig()
    changes = []
    for name in ExportConfig.model_fields:
        # Triton's settings are for the files beside the bundle
        if name != "triton" and getattr(config, name) != getattr(default, name):
            changes.append(_FLAGS.get(name, f"--set {name}"))
    return changes
