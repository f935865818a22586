"""The one kernel of the device: run the operator on the CPU memory, label what comes out."""

import functools

import torch

from ehm.backends.torch.diagnosis.recording import list_dtypes
from torch_npu import generator, npu, record, storage

aten = torch.ops.aten
_MIXES = {"copy_", "_copy_from", "_copy_from_and_resize", "index.Tensor", "index_put_", "_index_put_impl_", "set_"}
"""Operators that take a CPU tensor beside the device's; every other one takes single values only."""


class _Facts:
    """The facts about an operator that its schema states."""

    def __init__(self, operator):
        schema = operator._schema
        overload = f".{schema.overload_name}" if schema.overload_name else ""
        self.name = schema.name.removeprefix("aten::") + overload
        aliases = [value.alias_info for value in schema.returns]
        self.view = bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)
        self.written = [
            (index, argument.name)
            for index, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        self.random = torch.Tag.nondeterministic_seeded in operator.tags


_facts = functools.cache(_Facts)


def kernel(operator, *args, **kwargs):
    """Run ``operator`` for the device."""
    facts = _facts(operator)
    if facts.view:  # shapes only: the CPU's kernel works on the device's tensor itself
        record.note(facts.name, list_dtypes(args, kwargs))
        return operator.redispatch(storage.CPU, *args, **kwargs)

    pairs = []  # (tensor as given, tensor for the CPU)

    def down(value):
        if isinstance(value, torch.Tensor):
            if value.is_cpu and value.dim() and facts.name not in _MIXES:
                _refuse_mixture(facts.name)
            pairs.append((value, value if value.is_cpu else storage.to_cpu(value)))
            return pairs[-1][1]
        if isinstance(value, (list, tuple)):
            return [down(element) for element in value]
        if isinstance(value, torch.device):
            if value.type == "npu":
                npu.index_of(value)  # raises where there is no such one
            return torch.device("cpu")
        return value

    target = kwargs.get("device")
    stays = target is not None and torch.device(target).type == "cpu"  # empty_like(tensor, device="cpu")
    cpu_args, cpu_kwargs = [down(value) for value in args], {key: down(value) for key, value in kwargs.items()}
    if facts.name not in _MIXES:
        _refuse_cpu_output(facts, args, kwargs)

    run = generator.call if facts.random else (lambda operator, args, kwargs: operator(*args, **kwargs))
    result = run(operator, cpu_args, cpu_kwargs)

    labels = {ours.untyped_storage()._memory._cdata: ours.untyped_storage() for ours, _ in pairs if not ours.is_cpu}
    if facts.written:
        for ours, twin in pairs:
            if not ours.is_cpu:
                _follow(ours, twin, labels)

    def up(value):
        if isinstance(value, torch.Tensor):
            for ours, twin in pairs:
                if value is twin:
                    return ours
            return value if stays else storage.to_npu(value, labels.get(value.untyped_storage()._cdata))
        return type(value)(map(up, value)) if isinstance(value, (list, tuple)) else value

    result = up(result)
    dtypes = list_dtypes(args, kwargs, result)
    record.note(facts.name, dtypes)
    if "float64" in dtypes:
        _refuse_float64(facts.name, [*pairs, (result, None)])
    return result


def _follow(ours, twin, labels):
    """``resize_`` and ``out=`` change a tensor's layout, or the memory that it lies in."""
    held, memory = ours.untyped_storage(), twin.untyped_storage()
    if held.data_ptr() != memory.data_ptr() or held.nbytes() != memory.nbytes():
        held = labels[memory._cdata] = storage.label(memory)
    elif ours.size() == twin.size() and ours.stride() == twin.stride():
        return
    storage.relayout(ours, held, twin)


def _refuse_mixture(name):
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, npu:0 and cpu! "
        f"(aten::{name} at {record.find_call_site()})"
    )


def _refuse_cpu_output(facts, args, kwargs):
    for index, name in facts.written:
        value = kwargs.get(name, args[index] if index < len(args) else None)
        if isinstance(value, torch.Tensor) and value.is_cpu:
            _refuse_mixture(facts.name)


def _refuse_float64(name, values):
    for value, _ in values:
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            wide = isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64 and tensor.dim() > 0
            if wide and not tensor.is_cpu:
                raise RuntimeError(
                    f"float64 on the NPU: aten::{name} at {record.find_call_site()} "
                    "(the simulation refuses it; a real one gives float32 without a word)"
                )
