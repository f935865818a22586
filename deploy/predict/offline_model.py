"""An offline model of Ascend (``model.om``) behind the methods of a session of ONNX Runtime.

ATC compiles it for one kind of chip and a few batch sizes. A batch of another size is padded with zeros, or cut.

Shapes: B images of a batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.deploy.bundle.manifest import Manifest, TensorRecord
from ehm.deploy.predict.ascend_device import AscendDevice
from ehm.errors import BackendError, ExportError

__all__ = ["OfflineSession"]

_BATCH_INPUT = "ascend_mbatch_shape_data"
"""The input that ATC adds if there are several batch sizes: it takes the size of the next run."""
_HUGE_PAGES_FIRST = 0
"""pyACL's number of the kind of memory to take: in huge pages if there are some, else in normal ones."""
_TYPES: dict[int, type[np.generic]] = {0: np.float32, 1: np.float16}
"""NumPy's types by the numbers of pyACL's."""


@dataclass(frozen=True)
class _Buffers:
    """Memory of the NPU for the inputs or the outputs of a model, as large as the largest batch needs."""

    dataset: int
    pointers: tuple[int, ...]
    sizes: tuple[int, ...]


class OfflineSession:
    """The offline model in ``path``, which has the input and the outputs of ``manifest``, on ``device``.

    It may be shared between threads: its runs take turns. Its memory on the NPU goes with it. Raises ExportError if
    the file cannot be loaded there, or has other inputs and outputs.
    """

    def __init__(self, device: AscendDevice, path: Path, manifest: Manifest) -> None:
        self._device = device
        self._outputs = manifest.outputs
        self._image_shape = manifest.input.shape[1:]
        self._model = device.run(partial(_load_model, device, path, manifest))
        device.keep(id(self._model), self._model.release)
        weakref.finalize(self, device.drop, id(self._model)).atexit = False  # the device releases it at exit

    @property
    def chip(self) -> str:
        """The kind of NPU that the model runs on."""
        return self._device.chip

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that the file was compiled for, the smallest first."""
        return self._model.batch_sizes

    def get_providers(self) -> list[str]:
        """Return the name of what runs the model, as a session of ONNX Runtime returns those of its providers."""
        return ["AscendCL"]

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Return the outputs of those names for images (B, ...) of any number, which ``feeds`` has by their name."""
        (images,) = feeds.values()
        if images.shape[1:] != self._image_shape or images.dtype != np.float32:
            raise ValueError(
                f"the input has the shape {list(images.shape[1:])} and the type {images.dtype}, and model.om takes "
                f"{list(self._image_shape)} in float32"
            )
        largest = self.batch_sizes[-1]
        parts = []
        for start in range(0, len(images), largest):
            parts.append(self._run_padded(images[start : start + largest]))
        by_name = {}
        for record, *values in zip(self._outputs, *parts, strict=True):
            by_name[record.name] = np.concatenate(values)
        return [by_name[name] for name in names]

    def _run_padded(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Run up to the largest batch of images in the smallest batch that holds them."""
        size = next(size for size in self.batch_sizes if size >= len(images))
        batch = np.zeros((size, *images.shape[1:]), np.float32)
        batch[: len(images)] = images
        outputs = self._device.run(partial(self._model.execute, batch))
        return [values[: len(images)].astype(np.float32, copy=False) for values in outputs]


@dataclass(frozen=True, eq=False)
class _Model:
    """A model in the memory of an NPU; its methods are for the device's thread.

    ``row_shapes`` and ``types`` are those of each output, without the batch. ``batch_input`` is the number of the input
    that takes the size of a batch; None if the model has one size only.
    """

    device: AscendDevice
    number: int
    inputs: _Buffers
    outputs: _Buffers
    image_input: int
    batch_input: int | None
    batch_sizes: tuple[int, ...]
    row_shapes: tuple[tuple[int, ...], ...]
    types: tuple[type[np.generic], ...]
    resources: ExitStack

    def execute(self, batch: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Return every output for a contiguous batch of one of the compiled sizes."""
        target = self.inputs.pointers[self.image_input]
        capacity = self.inputs.sizes[self.image_input]
        self.device.copy_to_device(target, capacity, batch.ctypes.data, batch.nbytes)
        if self.batch_input is not None:
            dataset = self.inputs.dataset
            self.device.call("mdl.set_dynamic_batch_size", self.number, dataset, self.batch_input, len(batch))
        self.device.call("mdl.execute", self.number, self.inputs.dataset, self.outputs.dataset)
        outputs = []
        for shape, kind, pointer in zip(self.row_shapes, self.types, self.outputs.pointers, strict=True):
            values: NDArray[Any] = np.empty((len(batch), *shape), kind)
            self.device.copy_to_host(values.ctypes.data, pointer, values.nbytes)
            outputs.append(values)
        return outputs

    def release(self) -> None:
        """Give back the model and its memory."""
        self.resources.close()


def _load_model(device: AscendDevice, path: Path, manifest: Manifest) -> _Model:
    """Load a file on the device's thread, and take the memory for its largest batch."""
    with ExitStack() as resources:
        try:
            number = device.call("mdl.load_from_file", str(path))
        except BackendError as error:
            raise ExportError(_describe_refusal(path, manifest, device.chip, error)) from None
        resources.callback(device.call, "mdl.unload", number)
        description = device.ask("mdl.create_desc")
        resources.callback(device.call, "mdl.destroy_desc", description)
        device.call("mdl.get_desc", description, number)
        names = []
        for index in range(device.ask("mdl.get_num_inputs", description)):
            names.append(device.ask("mdl.get_input_name_by_index", description, index))
        batch_input = names.index(_BATCH_INPUT) if _BATCH_INPUT in names else None
        images = [index for index in range(len(names)) if index != batch_input]
        count = device.ask("mdl.get_num_outputs", description)
        if len(images) != 1 or count != len(manifest.outputs):
            raise ExportError(
                f"{path}: has {len(images)} inputs and {count} outputs, and the bundle's network 1 and "
                f"{len(manifest.outputs)}: it was made of another network"
            )
        batch_sizes = _read_batch_sizes(device, description, images[0], dynamic=batch_input is not None)
        inputs = _take_memory(device, description, "input", len(names), resources)
        outputs = _take_memory(device, description, "output", count, resources)
        _check_tensor(device, description, path, "input", images[0], manifest.input, batch_sizes[-1], inputs)
        types = []
        for index, record in enumerate(manifest.outputs):
            found = _check_tensor(device, description, path, "output", index, record, batch_sizes[-1], outputs)
            types.append(found)
        row_shapes = tuple(_find_row_shape(record) for record in manifest.outputs)
        return _Model(
            device,
            number,
            inputs,
            outputs,
            images[0],
            batch_input,
            batch_sizes,
            row_shapes,
            tuple(types),
            resources.pop_all(),
        )


def _describe_refusal(path: Path, manifest: Manifest, chip: str, error: BackendError) -> str:
    """Say why a file cannot be loaded: most often it was compiled for another chip."""
    compiled_for = manifest.ascend.soc_version if manifest.ascend else chip
    if compiled_for != chip:
        return (
            f"{path}: was compiled for {compiled_for}, and this NPU is an {chip}: {error}; export with "
            f"--set ascend.soc_version={chip}"
        )
    return f"{path}: cannot be loaded on this {chip}: {error}"


def _read_batch_sizes(device: AscendDevice, description: int, images: int, *, dynamic: bool) -> tuple[int, ...]:
    """Return the batch sizes that a model was compiled for, the smallest first."""
    if dynamic:
        found = device.call("mdl.get_dynamic_batch", description)
        return tuple(sorted(found["batch"][: found["batchCount"]]))
    return (device.call("mdl.get_input_dims", description, images)["dims"][0],)


def _take_memory(device: AscendDevice, description: int, kind: str, count: int, resources: ExitStack) -> _Buffers:
    """Return memory for all inputs or all outputs of a model, as ``kind`` says; ``resources`` gives it back."""
    dataset = device.ask("mdl.create_dataset")
    resources.callback(device.call, "mdl.destroy_dataset", dataset)
    pointers = []
    sizes = []
    for index in range(count):
        size = device.ask(f"mdl.get_{kind}_size_by_index", description, index)
        pointer = device.call("rt.malloc", size, _HUGE_PAGES_FIRST)
        resources.callback(device.call, "rt.free", pointer)
        buffer = device.ask("create_data_buffer", pointer, size)
        resources.callback(device.call, "destroy_data_buffer", buffer)
        device.call("mdl.add_dataset_buffer", dataset, buffer)
        pointers.append(pointer)
        sizes.append(size)
    return _Buffers(dataset, tuple(pointers), tuple(sizes))


def _check_tensor(
    device: AscendDevice,
    description: int,
    path: Path,
    kind: str,
    index: int,
    record: TensorRecord,
    batch: int,
    buffers: _Buffers,
) -> type[np.generic]:
    """Return the type of an input or output; raises ExportError if it is not what the bundle says of it."""
    number = device.ask(f"mdl.get_{kind}_data_type", description, index)
    if number not in _TYPES or (kind == "input" and _TYPES[number] is not np.float32):
        raise ExportError(f"{path}: the {kind} {record.name} has pyACL's type {number}, and float32 is what is read")
    needed = batch * prod(_find_row_shape(record)) * np.dtype(_TYPES[number]).itemsize
    if buffers.sizes[index] < needed:
        raise ExportError(
            f"{path}: the {kind} {record.name} has {buffers.sizes[index]} bytes in a batch of {batch}, and the "
            f"bundle's has {needed}: it was made of another network"
        )
    return _TYPES[number]


def _find_row_shape(record: TensorRecord) -> tuple[int, ...]:
    """Return the shape of one image's share; ATC takes no network in which it changes."""
    return tuple(int(size) for size in record.shape[1:])
