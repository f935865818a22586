"""A bundle as models of Triton Inference Server, which batches requests and runs several instances of each.

    REPOSITORY/NAME/config.pbtxt     ModelConfig of Triton's model_config.proto, as protobuf text
               NAME/labels.txt       one class a line, if there are logits: Triton's classification extension
               NAME/1/model.onnx     the bundle's own file, unchanged (and its weights, if they lie beside it)
               NAME_int8/...         the same for every other precision in the bundle

Triton does not count the batch among the dimensions. A network of one image at a time, a detector's, has none, and its
requests are not put together. The models run on its ``onnxruntime`` backend.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import get_args

from ehm.config import TritonConfig
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Manifest, Precision, TensorRecord
from ehm.errors import ConfigError, ExportError
from ehm.storage.writing import rename_all, report_write_errors

__all__ = ["check_triton", "choose_model_name", "name_variant", "write_triton"]

_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "int64": "TYPE_INT64"}
_KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU"}
_OURS = "# ehm export wrote this folder, a network in {}, and replaces it\n"
"""The first line of its configuration: another bundle may have the name of a variant of this one, ``cells_int8``."""


def write_triton(
    bundle: Bundle, repository: Path, config: TritonConfig | None = None, device: str = "auto"
) -> list[Path]:
    """Write ``bundle`` into the model repository ``repository`` and return the models' folders, float32 first.

    ``device`` is what Triton runs them on: ``cpu``, ``cuda`` (``cuda:1``), or ``auto``, on GPUs if there are any.
    Models of an earlier export of the same name are replaced, all or none. Raises ExportError if another model has
    that name, ConfigError for a name or a device that Triton does not take.
    """
    config = config or TritonConfig()
    folders = check_triton(bundle.path, repository, config, device)
    group = _describe_instances(config, device)
    # beside the repository, which a running Triton may be watching
    repository = Path(os.path.abspath(repository))
    staging = repository.with_name(f".{repository.name}-partial")
    shutil.rmtree(staging, ignore_errors=True)
    moves: list[tuple[Path, Path]] = []
    try:
        with report_write_errors(repository):
            for precision in bundle.manifest.models:
                _write_model(bundle, precision, staging / folders[precision].name, config, group)
            repository.mkdir(parents=True, exist_ok=True)
            # models of precisions that the bundle no longer has go too: they are of other weights
            for precision, folder in folders.items():
                if folder.exists():
                    moves.append((folder, staging / f"{folder.name}-replaced"))
                if precision in bundle.manifest.models:
                    moves.append((staging / folder.name, folder))
            rename_all(moves)
    except BaseException:
        if not any(staging.glob("*-replaced")):  # an earlier model that could not be moved back stays there
            shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(staging, ignore_errors=True)
    return [folders[precision] for precision in bundle.manifest.models]


def check_triton(bundle: Path, repository: Path, config: TritonConfig, device: str) -> dict[Precision, Path]:
    """Return the folders in ``repository`` for the models of a ``bundle``, which need not be there yet.

    Raises the errors of `write_triton`.
    """
    name = choose_model_name(bundle, config)
    _describe_instances(config, device)  # which raises the error of a wrong device
    folders: dict[Precision, Path] = {}
    for precision in get_args(Precision):
        folders[precision] = repository / name_variant(name, precision)
        _refuse_foreign_folder(folders[precision], precision)
    return folders


def choose_model_name(bundle: Path, config: TritonConfig) -> str:
    """Return what clients call the model: ``triton.name``, or the name of the bundle's folder if a URL can hold it."""
    name = config.name or Path(os.path.abspath(bundle)).name
    try:
        return TritonConfig(name=name).name
    except ValueError:
        raise ConfigError(
            f"{bundle}: the name of the folder is no model name; --set triton.name=NAME gives it one of letters, "
            "digits, '_', '-' and '.'"
        ) from None


def name_variant(name: str, precision: Precision) -> str:
    """Return the name of the model in a precision."""
    return name if precision == "float32" else f"{name}_{precision}"


def _refuse_foreign_folder(folder: Path, precision: Precision) -> None:
    """Raise ExportError unless a folder is absent, or an earlier export wrote it for the same precision."""
    if not folder.exists() and not folder.is_symlink():
        return
    file = folder / "config.pbtxt"
    own = file.is_file() and file.read_text(encoding="utf-8", errors="replace").startswith(_OURS.format(precision))
    if not own or {path.name for path in folder.iterdir()} - {"config.pbtxt", "labels.txt", "1"}:
        raise ExportError(
            f"{folder}: exists, and not as ehm export wrote it; choose another --triton or --set triton.name=NAME"
        )


def _write_model(bundle: Bundle, precision: Precision, folder: Path, config: TritonConfig, group: str) -> None:
    """Write the folder of one model; ``group`` says how many instances run on what."""
    (folder / "1").mkdir(parents=True)
    model = bundle.model(precision).name
    for name in (model, f"{model}.data"):
        if name in bundle.manifest.files:
            shutil.copyfile(bundle.path / name, folder / "1" / name)
    text = _write_config(bundle, precision, folder.name, config, group)
    (folder / "config.pbtxt").write_text(_OURS.format(precision) + text, encoding="utf-8")
    if bundle.manifest.output("logits"):
        lines = []
        for label in bundle.manifest.labels:
            lines.append(" ".join(label.split()) + "\n")  # one line each, whatever a label holds
        (folder / "labels.txt").write_text("".join(lines), encoding="utf-8")


def _write_config(bundle: Bundle, precision: Precision, name: str, config: TritonConfig, group: str) -> str:
    """Return a ModelConfig as protobuf text."""
    manifest = bundle.manifest
    batched = _takes_batches(manifest)
    outputs = []
    for output in manifest.outputs:
        labels = ' label_filename: "labels.txt"' if output.name == "logits" else ""
        outputs.append(f"  {{ {_describe_tensor(output, batched)}{labels} }}")
    warm_ups = []
    # the first batch of a size is slow: kernels are chosen and memory is taken
    for size in sorted({1, config.max_batch_size}) if batched else [1]:
        warm_ups.append(_describe_warm_up(manifest.input, manifest.preprocessing.image_size, size, batched))
    return f"""\
name: {_quote(name)}
platform: "onnxruntime_onnx"
backend: "onnxruntime"
default_model_filename: {_quote(bundle.model(precision).name)}
max_batch_size: {config.max_batch_size if batched else 0}
input [
  {{ {_describe_tensor(manifest.input, batched)} }}
]
output [
{_join_lines(outputs)}
]
{_describe_batching(config) if batched else ""}instance_group [
  {{ {group} }}
]
parameters {{ key: "intra_op_thread_count" value {{ string_value: "{config.threads}" }} }}
model_warmup [
{_join_lines(warm_ups)}
]
"""


def _takes_batches(manifest: Manifest) -> bool:
    """Return whether the first dimension of the network's input is a batch of any size."""
    return isinstance(manifest.input.shape[0], str)


def _describe_batching(config: TritonConfig) -> str:
    """Return how requests are put together to batches."""
    preferred = ""
    if config.preferred_batch_size:
        preferred = f"preferred_batch_size: {_format_list(config.preferred_batch_size)}\n  "
    return f"""\
dynamic_batching {{
  {preferred}max_queue_delay_microseconds: {config.max_queue_delay}
  default_queue_policy {{ max_queue_size: {config.max_queue_size} }}
}}
"""


def _describe_instances(config: TritonConfig, device: str) -> str:
    """Return an instance group; raises ConfigError for a device that Triton does not take."""
    kind, _, number = device.partition(":")
    if kind not in _KINDS or (number and (kind != "cuda" or not number.isdecimal())):
        raise ConfigError(f"--device {device}: Triton runs on auto, cpu, cuda or one GPU (cuda:1)")
    gpus = f" gpus: [ {number} ]" if number else ""
    return f"count: {config.instances} kind: {_KINDS[kind]}{gpus}"


def _describe_tensor(record: TensorRecord, batched: bool) -> str:
    dims = [-1 if isinstance(size, str) else size for size in record.shape[1 if batched else 0 :]]
    return f"name: {_quote(record.name)} data_type: {_TYPES[record.dtype]} dims: {_format_list(dims)}"


def _describe_warm_up(record: TensorRecord, image_size: tuple[int, int], batch: int, batched: bool) -> str:
    """Return a batch of zeros, of the model's own size if it takes any."""
    sides = iter(image_size)
    dims = []
    for size in record.shape[1 if batched else 0 :]:
        dims.append(next(sides) if isinstance(size, str) else size)  # height, then width
    value = f"data_type: {_TYPES[record.dtype]} dims: {_format_list(dims)} zero_data: true"
    return (
        f'  {{ name: "batch of {batch}" batch_size: {batch} '
        f"inputs {{ key: {_quote(record.name)} value {{ {value} }} }} }}"
    )


def _format_list(values: tuple[int, ...] | list[int]) -> str:
    return f"[ {', '.join(map(str, values))} ]"


def _join_lines(entries: list[str]) -> str:
    return ",\n".join(entries)


def _quote(value: str) -> str:
    """Return a string of protobuf's text format."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
