"""The Open Inference Protocol v2 over HTTP: request bodies to arrays, and arrays to response bodies.

The protocol: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md). Its
extensions, of https://github.com/triton-inference-server/server (docs/protocol): ``binary_tensor_data``, with raw
binary requests, and ``classification``. No web framework in here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.bundle.manifest import Manifest, TensorRecord
from ehm.deploy.serve.routes.json_numbers import dump_numbers, parse_numbers
from ehm.deploy.serve.routes.json_request import InferenceRequest, Input, Output, Parameters, parse_request
from ehm.errors import RequestError

__all__ = ["InferRequest", "OutputRequest", "decode_request", "describe_model", "encode_response"]

_DATATYPES = {"float32": "FP32", "uint8": "UINT8", "uint16": "UINT16", "int64": "INT64"}


@dataclass(frozen=True)
class OutputRequest:
    """An output that was asked for: in binary or JSON, and as values or as that number of ``classes``."""

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A request that fits the model: ``images`` (B, ...), B at least 1, and ``timeout`` in seconds."""

    images: NDArray[Any]
    outputs: tuple[OutputRequest, ...]
    id: str | None = None
    timeout: float | None = None


def describe_model(manifest: Manifest, name: str, version: str) -> dict[str, Any]:
    """Return ``$metadata_model_response``; dynamic dimensions are -1."""
    return {
        "name": name,
        "versions": [version],
        "platform": "onnx_onnxv1",
        "inputs": [_describe_tensor(manifest.input)],
        "outputs": list(map(_describe_tensor, manifest.outputs)),
    }


def decode_request(body: bytes, header_length: int | None, manifest: Manifest) -> InferRequest:
    """Read a request for the model of ``manifest``; raises RequestError (400) that says what would be right.

    ``header_length`` is the Inference-Header-Content-Length: how much of the body is JSON, all of it by default. 0
    says that the body is the input of one image in binary, and that all outputs shall be.
    """
    if header_length == 0:
        images = _read_binary(body, [1, *_list_fixed_sizes(manifest.input)], manifest.input)
        return InferRequest(images, tuple(OutputRequest(name, binary=True) for name in manifest.output_names))
    if header_length is not None and not 0 < header_length <= len(body):
        raise RequestError(400, f"Inference-Header-Content-Length: {header_length}, but the body has {len(body)} bytes")
    request, numbers = parse_request(body[:header_length])
    # bundles have one input
    if [given.name for given in request.inputs] != [manifest.input.name]:
        raise RequestError(400, f"inputs: expected one, named {manifest.input.name!r}")
    tail = b"" if header_length is None else body[header_length:]
    return InferRequest(
        images=_read_tensor(request.inputs[0], numbers, tail, manifest),
        outputs=_read_outputs(request, manifest),
        id=request.id,
        timeout=_read_timeout(_drop_null(request.parameters)),
    )


def encode_response(
    request: InferRequest,
    outputs: Mapping[str, NDArray[np.float32]],
    model: str,
    version: str,
    labels: Sequence[str] = (),
) -> tuple[bytes, int | None]:
    """Return the body of the response, and how much of it is JSON if binary data follow, else None."""
    described: list[str] = []
    tail: list[bytes] = []
    for wanted in request.outputs:
        values = outputs[wanted.name]
        entry: dict[str, Any] = {"name": wanted.name}
        numbers = ""
        texts: list[str] = []
        if wanted.classes:
            # labels belong to logits: the numbers of other outputs' values are no classes
            texts = _rank_classes(values, wanted.classes, labels if wanted.name == "logits" else ())
            entry |= {"datatype": "BYTES", "shape": [len(values), len(texts) // len(values)]}
        else:
            entry |= {"datatype": _DATATYPES[str(values.dtype)], "shape": list(values.shape)}
        if wanted.binary:
            raw = b"".join(map(_encode_text, texts)) if wanted.classes else _encode_values(values)
            entry["parameters"] = {"binary_data_size": len(raw)}
            tail.append(raw)
        elif wanted.classes:
            entry["data"] = texts
        elif np.isfinite(values).all():
            # many numbers are written in small steps, and put behind the rest of the entry as text
            numbers = f',"data":{dump_numbers(values)}'
        else:
            raise RequestError(400, f"outputs: {wanted.name} is not finite, which JSON cannot say; ask for binary_data")
        described.append(f"{_dump_json(entry)[:-1]}{numbers}}}")
    answer = {"model_name": model, "model_version": version}
    if request.id is not None:
        answer["id"] = request.id
    head = f'{_dump_json(answer)[:-1]},"outputs":[{",".join(described)}]}}'.encode()
    return head + b"".join(tail), len(head) if tail else None


def _describe_tensor(record: TensorRecord) -> dict[str, Any]:
    return {"name": record.name, "datatype": _DATATYPES[record.dtype], "shape": _describe_shape(record)}


def _describe_shape(record: TensorRecord) -> list[int]:
    """Return the sizes of a tensor as the protocol writes them: -1 for a dynamic one."""
    return [size if isinstance(size, int) else -1 for size in record.shape]


def _encode_values(values: NDArray[Any]) -> bytes:
    """Return values in binary, in the protocol's byte order."""
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _encode_text(text: str) -> bytes:
    """Return a text as an element of a BYTES tensor: its length in four bytes, and UTF-8."""
    encoded = text.encode()
    return len(encoded).to_bytes(4, "little") + encoded


def _dump_json(value: dict[str, Any]) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _read_tensor(given: Input, numbers: str, tail: bytes, manifest: Manifest) -> NDArray[Any]:
    """Return the images of an input; ``numbers`` were cut out of its JSON, ``tail`` follows the JSON."""
    expected = manifest.input
    datatype = _DATATYPES[expected.dtype]
    if given.datatype != datatype:
        raise RequestError(400, f"inputs.0.datatype: expected {datatype}, not {given.datatype[:20]!r}")
    if not _fits_shape(given.shape, expected.shape):
        wanted = _describe_shape(expected)
        raise RequestError(400, f"inputs.0.shape: expected {wanted}, at least one image, not {given.shape[:8]}")
    # a convolution of patches fails on less than one
    if expected.smallest and min(given.shape[2:]) < expected.smallest:
        raise RequestError(
            400, f"inputs.0.shape: expected at least {expected.smallest} pixels each way, as a patch has"
        )
    parameters = _drop_null(given.parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        # shared memory would let clients read and write the server's
        if "shared_memory_region" in parameters:
            raise RequestError(400, "inputs.0.parameters: shared memory is not supported; send the data")
        if tail:
            raise RequestError(400, f"{len(tail)} bytes follow the JSON that no input's binary_data_size accounts for")
        return _read_json(given, numbers, expected)
    if given.data is not None:
        raise RequestError(400, "inputs.0: either data or binary_data_size, not both")
    if size != len(tail):
        raise RequestError(400, f"inputs.0.parameters.binary_data_size: {len(tail)} bytes follow the JSON")
    return _read_binary(tail, given.shape, expected)


def _fits_shape(shape: Sequence[int], expected: Sequence[int | str]) -> bool:
    """Return whether the sizes are those of the network; a dynamic one takes any but 0."""
    if len(shape) != len(expected):
        return False
    for size, wanted in zip(shape, expected, strict=True):
        if size != wanted and (isinstance(wanted, int) or size == 0):
            return False
    return True


def _read_binary(raw: bytes, shape: Sequence[int], expected: TensorRecord) -> NDArray[Any]:
    dtype = np.dtype(expected.dtype).newbyteorder("<")
    wanted = math.prod(shape) * dtype.itemsize
    if len(raw) != wanted:
        raise RequestError(400, f"{expected.name}: {list(shape)} takes {wanted} bytes, but {len(raw)} were sent")
    images = np.frombuffer(raw, dtype).reshape(shape).astype(expected.dtype, copy=False)
    if not np.isfinite(images).all():  # refused as in JSON: nothing but NaN could come of it
        raise RequestError(400, f"{expected.name}: expected finite numbers, but some are NaN or infinite")
    return images


def _read_json(given: Input, numbers: str, expected: TensorRecord) -> NDArray[Any]:
    if given.data is None:
        raise RequestError(400, "inputs.0.data: missing, and no binary_data_size either")
    integers_wanted = expected.dtype != "float32"
    kinds = "iu" if integers_wanted else "iuf"
    most = np.iinfo(expected.dtype).max if integers_wanted else math.inf
    try:
        # the numbers were cut out of this input if they left it empty
        values = parse_numbers(numbers) if numbers and not given.data else np.asarray(given.data)
    except (ValueError, OverflowError, RecursionError):  # no numbers, ragged, or too deep
        values = np.empty(0, object)
    # NumPy makes an array of another kind of texts, objects, and true and false
    if values.dtype.kind not in kinds or (integers_wanted and (values.min() < 0 or values.max() > most)):
        what = f"integers from 0 to {most}" if integers_wanted else "numbers"
        raise RequestError(400, f"inputs.0.data: expected {what}, flat or nested as the shape says")
    if values.size != math.prod(given.shape):
        raise RequestError(
            400, f"inputs.0.data: {given.shape} takes {math.prod(given.shape)} values, not {values.size}"
        )
    with np.errstate(over="ignore"):
        images: NDArray[Any] = values.astype(expected.dtype).reshape(given.shape)
    if not np.isfinite(images).all():
        raise RequestError(400, "inputs.0.data: a number is too large for FP32")
    return images


def _list_fixed_sizes(record: TensorRecord) -> list[int]:
    """Return the sizes behind the batch; raises RequestError (400) if one of them is dynamic."""
    sizes = [size for size in record.shape[1:] if isinstance(size, int)]
    if len(sizes) + 1 < len(record.shape):
        raise RequestError(400, "a raw binary request does not say the image's size, which this model needs")
    return sizes


def _read_outputs(request: InferenceRequest, manifest: Manifest) -> tuple[OutputRequest, ...]:
    """Return the outputs that a request asks for, by default all."""
    known = manifest.output_names
    binary = _read_flag(_drop_null(request.parameters), "binary_data_output", False)
    found = []
    for index, wanted in enumerate(request.outputs or [Output(name=name) for name in known]):
        if wanted.name not in known:
            raise RequestError(400, f"outputs.{index}.name: expected one of {', '.join(known)}")
        parameters = _drop_null(wanted.parameters)
        if "shared_memory_region" in parameters:
            raise RequestError(400, f"outputs.{index}.parameters: shared memory is not supported")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:  # a bool is an int too
            raise RequestError(400, f"outputs.{index}.parameters.classification: expected a number of classes")
        found.append(OutputRequest(wanted.name, _read_flag(parameters, "binary_data", binary), classes))
    # an answer names outputs, so that each can be there once
    if len({output.name for output in found}) < len(found):
        raise RequestError(400, "outputs: the same name twice")
    return tuple(found)


def _drop_null(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters that have a value."""
    return {name: value for name, value in (parameters or {}).items() if value is not None}


def _read_flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(400, f"parameters.{name}: expected true or false")
    return value


def _read_timeout(parameters: dict[str, Any]) -> float | None:
    """Return Triton's ``timeout``, in microseconds, in seconds; None stands for the server's own."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or value < 0:
        raise RequestError(400, "parameters.timeout: expected microseconds, a whole number")
    return value / 1e6 if value else None


def _rank_classes(values: NDArray[np.float32], count: int, labels: Sequence[str]) -> list[str]:
    """Return the ``count`` highest values of each row (B, ...) as ``value:index[:label]``, row after row.

    Values are written as C++'s std::to_string does, which Triton uses.
    """
    rows = values.reshape(len(values), -1)
    best = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    texts = []
    for row, order in zip(rows, best, strict=True):
        for index in order:
            label = f":{labels[index]}" if labels and labels[index] else ""
            texts.append(f"{row[index]:f}:{index}{label}")
    return texts
