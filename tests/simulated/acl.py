"""A stand-in for pyACL: offline models of the stand-in for ATC (tests/fake_atc.py), run by ONNX Runtime on the CPU.

It is strict. A call without a context of the calling thread, with memory that is not the device's, or with a handle
that was released fails with a status of CANN's, as on an NPU. `fail` makes a function fail with a status, and `distort`
says how far outputs are off in a precision, as a share of their size. `live` tells what was not released, and ``SOC``
is the chip that the NPU claims to be. Signatures are those of CANN 8.0's reference.
"""

import ctypes
import json
import os
import threading
from collections import Counter
from itertools import count
from types import SimpleNamespace

import numpy as np
import onnxruntime

SOC = os.environ.get("SIMULATED_SOC", "Ascend910B3")
INVALID, UNINITIALISED, REPEATED, NO_CONTEXT, FAILURE = 100000, 100001, 100002, 107002, 500002
HOST, HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 1, 2
FLOAT, UINT64 = 0, 10
BATCH = "ascend_mbatch_shape_data"

fail = {}
distort = {}
calls = []
_live = {}
_message = ""
_own = threading.local()
_initialised = False
_numbers = count(1)


def live():
    """Count what was not released, by its kind."""
    return dict(Counter(kind for kind, _ in _live.values()))


def _keep(kind, what, number=None):
    number = number or next(_numbers)
    _live[number] = (kind, what)
    return number


def _find(kind, number):
    if _live.get(number, ("",))[0] != kind:
        raise _RefusedError(INVALID, f"{number} is no {kind} that is live")
    return _live[number][1]


class _RefusedError(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def _function(name, *, values=1, status=True, context=True):
    """Make a function of pyACL that gives a number of ``values``, and a status behind them if it has one."""

    def decorate(function):
        def call(*arguments):
            global _message
            calls.append(name)
            try:
                if name in fail:
                    raise _RefusedError(fail[name], f"E19999: {name} was made to fail")
                if not _initialised and name != "init":
                    raise _RefusedError(UNINITIALISED, "acl.init comes first")
                if context and getattr(_own, "context", None) not in _live:
                    raise _RefusedError(NO_CONTEXT, f"{name}: this thread has no context")
                value = function(*arguments)
                code = 0
            except _RefusedError as refused:
                if not status:  # it could not tell, and a real one would crash
                    raise
                value, code, _message = None, refused.status, str(refused)
            if not status:
                return value
            return (value, code) if values else code

        return call

    return decorate


@_function("init", values=0, context=False)
def init():
    global _initialised
    if _initialised:
        raise _RefusedError(REPEATED, "initialised before")
    _initialised = True


@_function("finalize", values=0, context=False)
def finalize():
    global _initialised
    assert not _live, f"finalised with {live()}"
    _initialised = False


def get_recent_err_msg():
    return _message


@_function("get_soc_name", status=False)
def get_soc_name():
    return SOC


@_function("rt.set_device", values=0, context=False)
def _set_device(number):
    if number != 0:
        raise _RefusedError(107001, f"there is no device {number}")
    _keep("device", number, f"device {number}")


@_function("rt.reset_device", values=0, context=False)
def _reset_device(number):
    _find("device", f"device {number}")
    assert set(live()) == {"device"}, f"reset with {live()}"
    del _live[f"device {number}"]


@_function("rt.create_context", context=False)
def _create_context(number):
    _find("device", f"device {number}")
    _own.context = _keep("context", number)
    return _own.context


@_function("rt.destroy_context", values=0)
def _destroy_context(context):
    _find("context", context)
    del _live[context]


@_function("rt.get_run_mode")
def _get_run_mode():
    return HOST


@_function("rt.malloc")
def _malloc(size, policy):
    if size <= 0 or policy not in (0, 1, 2):
        raise _RefusedError(INVALID, f"malloc of {size} bytes")
    memory = ctypes.create_string_buffer(size)
    return _keep("memory", memory, ctypes.addressof(memory))


@_function("rt.free", values=0)
def _free(pointer):
    _find("memory", pointer)
    for kind, what in _live.values():
        assert kind != "buffer" or what[0] != pointer, "freed below a data buffer"
    del _live[pointer]


@_function("rt.memcpy", values=0)
def _memcpy(target, capacity, source, size, kind):
    device, host = (target, source) if kind == HOST_TO_DEVICE else (source, target)
    if kind not in (HOST_TO_DEVICE, DEVICE_TO_HOST) or host in _live:
        raise _RefusedError(INVALID, f"memcpy of the kind {kind}")
    if size > capacity or size > len(_find("memory", device)):
        raise _RefusedError(INVALID, f"memcpy of {size} bytes, of which {capacity} have room")
    ctypes.memmove(target, source, size)


@_function("create_data_buffer", status=False)
def create_data_buffer(pointer, size):
    assert size <= len(_find("memory", pointer))
    return _keep("buffer", (pointer, size))


@_function("destroy_data_buffer", values=0)
def destroy_data_buffer(buffer):
    _find("buffer", buffer)
    del _live[buffer]


class _Model:
    """An ONNX graph of one input, with the batch sizes that it was compiled for."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.compiled = json.loads(file.readline())
            graph = file.read()
        if self.compiled["soc"] != SOC:
            raise _RefusedError(FAILURE, f"E10010: the model is for {self.compiled['soc']}, and the device an {SOC}")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        self.sizes = self.compiled["batch_sizes"]
        self.dynamic = len(self.sizes) > 1
        self.inputs = [(each.name, each.shape[1:]) for each in self.session.get_inputs()]
        self.outputs = [(each.name, each.shape[1:]) for each in self.session.get_outputs()]
        self.batches = {}  # the batch size that was set, by dataset

    def count_bytes(self, shape, batch=None):
        return int(np.prod(shape)) * 4 * (batch or max(self.sizes))


@_function("mdl.load_from_file")
def _load_from_file(path):
    return _keep("model", _Model(path))


@_function("mdl.unload", values=0)
def _unload(model):
    _find("model", model)
    del _live[model]


@_function("mdl.create_desc", status=False)
def _create_desc():
    return _keep("description", {})


@_function("mdl.destroy_desc", values=0)
def _destroy_desc(description):
    _find("description", description)
    del _live[description]


@_function("mdl.get_desc", values=0)
def _get_desc(description, model):
    _find("description", description)["model"] = _find("model", model)


def _described(description):
    return _find("description", description)["model"]


@_function("mdl.get_num_inputs", status=False)
def _get_num_inputs(description):
    model = _described(description)
    return len(model.inputs) + model.dynamic


@_function("mdl.get_num_outputs", status=False)
def _get_num_outputs(description):
    return len(_described(description).outputs)


@_function("mdl.get_input_name_by_index", status=False)
def _get_input_name(description, index):
    return [*(name for name, _ in _described(description).inputs), BATCH][index]


@_function("mdl.get_input_size_by_index", status=False)
def _get_input_size(description, index):
    model = _described(description)
    return model.count_bytes(model.inputs[index][1]) if index < len(model.inputs) else 8


@_function("mdl.get_output_size_by_index", status=False)
def _get_output_size(description, index):
    model = _described(description)
    return model.count_bytes(model.outputs[index][1])


@_function("mdl.get_input_data_type", status=False)
def _get_input_data_type(description, index):
    return FLOAT if index < len(_described(description).inputs) else UINT64


@_function("mdl.get_output_data_type", status=False)
def _get_output_data_type(description, index):
    assert index < len(_described(description).outputs)
    return FLOAT


@_function("mdl.get_input_dims")
def _get_input_dims(description, index):
    model = _described(description)
    name, shape = model.inputs[index]
    dims = [-1 if model.dynamic else model.sizes[0], *shape]
    return {"name": name, "dimCount": len(dims), "dims": dims}


@_function("mdl.get_dynamic_batch")
def _get_dynamic_batch(description):
    sizes = _described(description).sizes
    return {"batchCount": len(sizes), "batch": sizes}


@_function("mdl.create_dataset", status=False)
def _create_dataset():
    return _keep("dataset", [])


@_function("mdl.destroy_dataset", values=0)
def _destroy_dataset(dataset):
    _find("dataset", dataset)
    del _live[dataset]


@_function("mdl.add_dataset_buffer")
def _add_dataset_buffer(dataset, buffer):
    _find("buffer", buffer)
    _find("dataset", dataset).append(buffer)
    return dataset


@_function("mdl.set_dynamic_batch_size", values=0)
def _set_dynamic_batch_size(model, dataset, index, batch):
    found = _find("model", model)
    _find("dataset", dataset)
    if not found.dynamic or index != len(found.inputs) or batch not in found.sizes:
        raise _RefusedError(INVALID, f"a batch of {batch} at the input {index}")
    found.batches[dataset] = batch


@_function("mdl.execute", values=0)
def _execute(model, inputs, outputs):
    found = _find("model", model)
    if found.dynamic and inputs not in found.batches:
        raise _RefusedError(INVALID, "the size of the batch was not set")
    batch = found.batches[inputs] if found.dynamic else found.sizes[0]
    given, taken = [_find("dataset", dataset) for dataset in (inputs, outputs)]
    if (len(given), len(taken)) != (len(found.inputs) + found.dynamic, len(found.outputs)):
        raise _RefusedError(INVALID, f"{len(given)} inputs and {len(taken)} outputs")
    (name, shape), *_ = found.inputs
    pointer, size = _find("buffer", given[0])
    if size < found.count_bytes(shape, batch):
        raise _RefusedError(INVALID, f"an input of {size} bytes")
    images = np.frombuffer(_find("memory", pointer), np.float32, batch * int(np.prod(shape)))
    results = found.session.run(None, {name: images.reshape(batch, *shape)})
    for values, buffer in zip(results, taken, strict=True):
        error = distort.get(found.compiled["precision"], 0)
        if error:
            noise = np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
            values = values + error * np.sqrt(np.mean(values**2)) * noise
        pointer, size = _find("buffer", buffer)
        if size < values.nbytes:
            raise _RefusedError(INVALID, f"an output of {size} bytes")
        ctypes.memmove(pointer, np.ascontiguousarray(values).ctypes.data, values.nbytes)


rt = SimpleNamespace(
    set_device=_set_device,
    reset_device=_reset_device,
    create_context=_create_context,
    destroy_context=_destroy_context,
    get_run_mode=_get_run_mode,
    malloc=_malloc,
    free=_free,
    memcpy=_memcpy,
)
mdl = SimpleNamespace(
    load_from_file=_load_from_file,
    unload=_unload,
    create_desc=_create_desc,
    destroy_desc=_destroy_desc,
    get_desc=_get_desc,
    get_num_inputs=_get_num_inputs,
    get_num_outputs=_get_num_outputs,
    get_input_name_by_index=_get_input_name,
    get_input_size_by_index=_get_input_size,
    get_output_size_by_index=_get_output_size,
    get_input_data_type=_get_input_data_type,
    get_output_data_type=_get_output_data_type,
    get_input_dims=_get_input_dims,
    get_dynamic_batch=_get_dynamic_batch,
    create_dataset=_create_dataset,
    destroy_dataset=_destroy_dataset,
    add_dataset_buffer=_add_dataset_buffer,
    set_dynamic_batch_size=_set_dynamic_batch_size,
    execute=_execute,
)
