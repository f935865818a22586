"""The operators of anybody's network: a function that returns a module and its inputs, named as MODULE:FUNCTION."""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ehm.backends.torch.diagnosis.recording import Call, record_operators
from ehm.errors import ConfigError

__all__ = ["record_callable"]

_WANTED = "(module, inputs), a torch.nn.Module and a tensor, a tuple or a dict of what it is called with"


def record_callable(target: str, device: torch.device) -> Counter[Call]:
    """Record the operators of the module that the function ``target`` = MODULE:FUNCTION returns, on ``device``.

    The module runs forward, and backward from every output that has a gradient, each with a gradient of ones. Raises
    ConfigError, which names the place, if anything of that fails.
    """
    function = _find_function(target)
    with _explain_errors(f"{target} raised"):
        returned = function()
    module, inputs = _check_returned(target, returned)
    with _explain_errors(f"{target}: moving the module and its inputs to {device} raised"):
        module.to(device)
        inputs = tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)
    own = os.path.join(os.getcwd(), "")
    with _explain_errors(f"{target}: the module raised"), record_operators(device.type, own) as forward:
        outputs = module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)
    differentiable = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    # made here, so that they are not among the operators
    ones = [torch.ones_like(leaf) for leaf in differentiable]
    with _explain_errors(f"{target}: the backward pass raised"), record_operators(device.type, own) as backward:
        if differentiable:
            torch.autograd.backward(differentiable, ones)
    return forward + backward


def _find_function(target: str) -> Callable[[], Any]:
    """Import the module of ``target`` from the current folder, or from what is installed; return the function."""
    name, _, path = target.partition(":")
    if not name or not path:
        raise ConfigError(f"{target}: write MODULE:FUNCTION, for example models.detector:build")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with _explain_errors(f"{target}: importing {name} raised", passing=ModuleNotFoundError):
            found: Any = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{target}: importing {name} raised {_describe_error(error)}") from None
        raise ConfigError(
            f"{target}: there is no module {error.name} in {os.getcwd()}, nor among the installed ones"
        ) from None
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise ConfigError(f"{target}: {name} has no {path}")
        found = getattr(found, attribute)
    if not callable(found) or isinstance(found, nn.Module):
        raise ConfigError(
            f"{target}: {path} is {_describe_value(found)}; it should be a function that returns {_WANTED}"
        )
    function: Callable[[], Any] = found
    return function


def _check_returned(target: str, returned: Any) -> tuple[nn.Module, Any]:
    """Return the module and its inputs, a tuple or a mapping; raises ConfigError if they are anything else."""
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise ConfigError(f"{target} returned {_describe_value(returned)}; it should return {_WANTED}")
    module, inputs = returned
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{target} returned {_describe_value(module)} as the module; it should return {_WANTED}")
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, (tuple, list, Mapping)):
        raise ConfigError(f"{target} returned {_describe_value(inputs)} as the inputs; it should return {_WANTED}")
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)  # others are not looked into
    return module, inputs


def _describe_value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} values"
    if value is None:
        return "None"
    return f"a value of type {type(value).__name__}"


@contextmanager
def _explain_errors(beginning: str, passing: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Turn whatever another's code raises into a ConfigError that says so, but for exceptions that are ``passing``."""
    try:
        yield
    except passing:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{beginning} {_describe_error(error)}") from error


def _describe_error(error: BaseException) -> str:
    """Return the kind of an error, its first line, and the place in the current folder that it came from."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    own = os.path.join(os.getcwd(), "")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(own) and frame.filename != __file__:
            return f"{text} ({frame.filename.removeprefix(own)}:{frame.lineno})"
    return text
