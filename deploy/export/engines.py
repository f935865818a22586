"""A bundle for other engines: what ``--triton`` and ``--kserve`` write, of a new bundle or of one that is there."""

from __future__ import annotations

from pathlib import Path

from ehm.config import ExportConfig
from ehm.deploy.bundle import Bundle
from ehm.deploy.export.kserve import write_kserve
from ehm.deploy.export.triton import write_triton
from ehm.errors import ConfigError
from ehm.runlog import console
from ehm.trained import Head

__all__ = ["convert", "is_bundle", "write_engines"]


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

    Raises ConfigError where neither is asked for, or where settings, ``head`` or ``out`` would change nothing.
    """
    if triton is None and kserve is None:
        raise ConfigError(f"{path}: is a bundle already; --triton DIR or --kserve FILE says what to make of it")
    settings = config.model_copy(update={"triton": ExportConfig().triton})
    if out is not None or head != "auto" or settings != ExportConfig():
        raise ConfigError(f"{path}: is a bundle already: --out, --head and settings but triton's change nothing")
    write_engines(Bundle.open(path), triton=triton, kserve=kserve, config=config, device=device)
    return Path(path)


def write_engines(
    bundle: Bundle, *, triton: str | Path | None, kserve: str | Path | None, config: ExportConfig, device: str
) -> None:
    """Write the model repository ``triton`` and the file ``kserve``, where they are asked for; errors as theirs."""
    if triton is not None:
        models = write_triton(bundle, Path(triton), config.triton, device)
        names = ", ".join(model.name for model in models)
        console.print(f"{names} in {triton}; try: tritonserver --model-repository={triton}", markup=False)
    if kserve is not None:
        write_kserve(bundle, Path(kserve), config.triton, device)
        console.print(f"InferenceService in {kserve}; try: kubectl apply -f {kserve}", markup=False)
