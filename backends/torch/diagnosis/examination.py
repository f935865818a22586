"""A pretraining step that is looked into: where its numbers stop being finite, and how large they get.

It is taken twice from the same state: once with hooks on every module and every parameter, and once with torch's
anomaly detection, which stops at the operator whose gradient is not a number.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn

from ehm.backends.base import StepExamination
from ehm.backends.examination import StepNotes

__all__ = ["examine_step"]

_OPERATOR = re.compile(r"Function '(\w+?)(?:Backward\d*)?' returned nan")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in \w+\n\s*(.*)')


@contextmanager
def _observe(
    notes: StepNotes, modules: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter]
) -> Iterator[None]:
    """Note the outputs of ``modules`` and the gradients of ``parameters`` for a while."""
    handles = []
    for name, module in modules.items():
        handles.append(module.register_forward_hook(_make_output_hook(notes, name)))
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            handles.append(parameter.register_hook(_make_gradient_hook(notes, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _make_output_hook(notes: StepNotes, name: str) -> Callable[[nn.Module, Any, Any], None]:
    def look(module: nn.Module, inputs: Any, outputs: Any) -> None:
        tensors = list(_iterate_tensors(outputs))
        largest = None
        for tensor in tensors:
            finite = tensor.detach()[torch.isfinite(tensor)]
            if finite.numel():
                largest = max(largest or 0.0, float(finite.abs().max()))
        notes.add_output(name, largest, _are_finite(tensors), lambda: _are_finite(list(_iterate_tensors(inputs))))

    return look


def _make_gradient_hook(notes: StepNotes, name: str) -> Callable[[Tensor], None]:
    def look(gradient: Tensor) -> None:
        notes.add_gradient(name, _are_finite([gradient]))

    return look


def examine_step(
    learner: Any, take_step: Callable[[], Mapping[str, SupportsFloat]], models: Mapping[str, nn.Module]
) -> StepExamination:
    """Take a step of ``learner`` and return what there is to see; its state afterwards is not defined.

    ``take_step`` takes the step; ``models`` are the networks that take part, by the beginning of their modules' names.
    """
    before = learner.state()
    modules: dict[str, nn.Module] = {}
    parameters: dict[str, nn.Parameter] = {}
    for prefix, model in models.items():
        for name, module in model.named_modules():
            modules[f"{prefix}{name}".rstrip(".")] = module
        for name, parameter in model.named_parameters():
            parameters[f"{prefix}{name}"] = parameter
    notes = StepNotes()
    with _observe(notes, modules, parameters):
        metrics = {name: float(value) for name, value in take_step().items()}
    learner.load(before)
    return notes.describe(metrics, _detect_anomaly(take_step))


def _detect_anomaly(take_step: Callable[[], object]) -> str | None:
    """Return the operator that gave the first gradient that is no number, and the line that called it, in words."""
    # torch warns that this is slow, and gives the line that called the operator in a warning
    with warnings.catch_warnings(record=True) as caught, torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("always")
        try:
            take_step()
        except RuntimeError as error:
            match = _OPERATOR.search(str(error))
            if match is None:
                raise
            operator = match[1]
        else:
            return None
    for warning in caught:
        frames = _FRAME.findall(str(warning.message))
        if "Traceback of forward call" in str(warning.message) and frames:
            file, line, code = frames[-1]
            return f"{operator}, called by {file}, line {line}: {code.strip()}"
    return operator


def _iterate_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of numbers with a fraction in ``value``, however deep they lie."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _iterate_tensors(part)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from _iterate_tensors(part)


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
