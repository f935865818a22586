"""A bundle as models of Triton Inference Server, which batches requests and runs several instances of each.

    REPOSITORY/NAME/config.pbtxt     ModelConfig of Triton's model_config.proto, as protobuf text
               NAME/labels.txt       one class a line, where there are logits: Triton's classification extension
               NAME/1/model.onnx     the bundle's own file, unchanged (and its weights, where they lie beside it)
               NAME_int8/...         the same for every other kind of numbers in the bundle

Triton does not count the batch among the dimensions. What it runs on is its ``onnxruntime`` backend.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import get_args

from ehm.config import TritonConfig
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import Precision, TensorRecord
from ehm.errors import ConfigError, ExportError
from ehm.storage.writing import rename_all, report_write_errors

__all__ = ["check_triton", "model_name", "write_triton"]

_TYPES = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}
_KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU"}
_OURS = "# ehm export wrote this folder, a network in {}, and replaces it\n"
"""The first line of its configuration: another bundle may have the name of a variant of this one, ``cells_int8``."""


def write_triton(
    bundle: Bundle, repository: Path, config: TritonConfig | None = None, device: str = "auto"
) -> list[Path]:
    """Write ``bundle`` into the model repository ``repository`` and return the models' folders, float32 first.

    ``device`` is where Triton runs them: ``cpu``, ``cuda`` (``cuda:1``), or ``auto``, on GPUs where there are any.
    Models of an earlier export of the same name are replaced, all or none. Raises ExportError where another
    model has that name, ConfigError for a name or a device that Triton does not take.
    """
    config = config or TritonConfig()
    places = check_triton(bundle.path, repository, config, device)
    group = _instances(config, device)
    # beside the repository, which a running Triton may be watching
    repository = Path(os.path.abspath(repository))
    staging = repository.with_name(f".{repository.name}-partial")
    shutil.rmtree(staging, ignore_errors=True)
    moves: list[tuple[Path, Path]] = []
    try:
        with report_write_errors(repository):
            for precision in bundle.manifest.models:
                _write_model(bundle, precision, staging / places[precision].name, config, group)
            repository.mkdir(parents=True, exist_ok=True)
            for precision, place in places.items():
                if place.exists():
                    moves.append((place, staging / f"{place.name}-replaced"))
                if precision in bundle.manifest.models:
                    moves.append((staging / place.name, place))
            rename_all(moves)
    except BaseException:
        if not any(staging.glob("*-replaced")):  # an earlier model that could not be moved back stays there
            shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(staging, ignore_errors=True)
    return [places[precision] for precision in bundle.manifest.models]


def check_triton(bundle: Path, repository: Path, config: TritonConfig, device: str) -> dict[Precision, Path]:
    """Folders in ``repository`` of the models of a ``bundle`` that need not be there yet; errors of `write_triton`."""
    name = model_name(bundle, config)
    _instances(config, device)
    places = {precision: repository / _variant(name, precision) for precision in get_args(Precision)}
    for precision, place in places.items():
        _refuse_foreign(place, precision)
    return places


def model_name(bundle: Path, config: TritonConfig) -> str:
    """What clients call the model: ``triton.name``, or that of the bundle's folder where a URL can hold it."""
    name = config.name or Path(os.path.abspath(bundle)).name
    try:
        return TritonConfig(name=name).name
    except ValueError:
        raise ConfigError(
            f"{bundle}: the name of the folder is no model name; --set triton.name=NAME gives it one of letters, "
            "digits, '_', '-' and '.'"
        ) from None


def _variant(name: str, precision: Precision) -> str:
    return name if precision == "float32" else f"{name}_{precision}"


def _refuse_foreign(place: Path, precision: Precision) -> None:
    """Only what an earlier export wrote, in the same numbers, may be replaced."""
    if not place.exists() and not place.is_symlink():
        return
    file = place / "config.pbtxt"
    own = file.is_file() and file.read_text(encoding="utf-8", errors="replace").startswith(_OURS.format(precision))
    if not own or {path.name for path in place.iterdir()} - {"config.pbtxt", "labels.txt", "1"}:
        raise ExportError(
            f"{place}: exists, and not as ehm export wrote it; choose another --triton or --set triton.name=NAME"
        )


def _write_model(bundle: Bundle, precision: Precision, folder: Path, config: TritonConfig, group: str) -> None:
    (folder / "1").mkdir(parents=True)
    for name in (bundle.model(precision).name, f"{bundle.model(precision).name}.data"):
        if name in bundle.manifest.files:
            shutil.copyfile(bundle.path / name, folder / "1" / name)
    text = _config(bundle, precision, folder.name, config, group)
    (folder / "config.pbtxt").write_text(_OURS.format(precision) + text, encoding="utf-8")
    if bundle.manifest.output("logits"):
        labels = (" ".join(label.split()) for label in bundle.manifest.labels)  # a line each, whatever they hold
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def _config(bundle: Bundle, precision: Precision, name: str, config: TritonConfig, group: str) -> str:
    manifest = bundle.manifest
    outputs = ",\n".join(f"  {{ {_tensor(output)}{_labels(output)} }}" for output in manifest.outputs)
    sizes = config.preferred_batch_size
    preferred = f"preferred_batch_size: {_list(sizes)}\n  " if sizes else ""
    # the first batch of a size is slow: kernels are chosen and memory is taken
    warm = ",\n".join(_warm_up(manifest.input, manifest.preprocessing.image_size, size) for size in _sizes(config))
    return f"""\
name: {_text(name)}
platform: "onnxruntime_onnx"
backend: "onnxruntime"
default_model_filename: {_text(bundle.model(precision).name)}
max_batch_size: {config.max_batch_size}
input [
  {{ {_tensor(manifest.input)} }}
]
output [
{outputs}
]
dynamic_batching {{
  {preferred}max_queue_delay_microseconds: {config.max_queue_delay}
  default_queue_policy {{ max_queue_size: {config.max_queue_size} }}
}}
instance_group [
  {{ {group} }}
]
parameters {{ key: "intra_op_thread_count" value {{ string_value: "{config.threads}" }} }}
model_warmup [
{warm}
]
"""


def _instances(config: TritonConfig, device: str) -> str:
    kind, _, number = device.partition(":")
    if kind not in _KINDS or (number and (kind != "cuda" or not number.isdecimal())):
        raise ConfigError(f"--device {device}: Triton runs on auto, cpu, cuda or one GPU (cuda:1)")
    gpus = f" gpus: [ {number} ]" if number else ""
    return f"count: {config.instances} kind: {_KINDS[kind]}{gpus}"


def _sizes(config: TritonConfig) -> list[int]:
    return sorted({1, config.max_batch_size})


def _tensor(record: TensorRecord) -> str:
    dims = [-1 if isinstance(size, str) else size for size in record.shape[1:]]
    return f"name: {_text(record.name)} data_type: {_TYPES[record.dtype]} dims: {_list(dims)}"


def _labels(output: TensorRecord) -> str:
    return ' label_filename: "labels.txt"' if output.name == "logits" else ""


def _warm_up(record: TensorRecord, image_size: tuple[int, int], batch: int) -> str:
    """Zeros of the model's own size where it takes any."""
    sides = iter(image_size)
    dims = [next(sides) if isinstance(size, str) else size for size in record.shape[1:]]
    value = f"data_type: {_TYPES[record.dtype]} dims: {_list(dims)} zero_data: true"
    return (
        f'  {{ name: "batch of {batch}" batch_size: {batch} '
        f"inputs {{ key: {_text(record.name)} value {{ {value} }} }} }}"
    )


def _list(values: tuple[int, ...] | list[int]) -> str:
    return f"[ {', '.join(map(str, values))} ]"


def _text(value: str) -> str:
    """A string of protobuf's text format."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
