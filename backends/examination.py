"""Notes on the numbers of a step that is looked into, for every backend: each has hooks of its own to make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ehm.backends.base import StepExamination

__all__ = ["StepNotes"]

_SHOWN = 5
"""Modules whose outputs are reported, those of the largest."""


class StepNotes:
    """Notes on one step, made in the order in which its numbers are computed."""

    def __init__(self) -> None:
        self._largest: dict[str, float] = {}
        self._first_output: str | None = None
        self._has_finite_inputs = True
        self._first_gradient: str | None = None

    def add_output(
        self, module: str, largest: float | None, is_finite: bool, has_finite_inputs: Callable[[], bool]
    ) -> None:
        """Note the outputs of ``module``: the largest finite number in them, None without any, and if all are finite.

        ``has_finite_inputs`` looks at the module's inputs, and is called only if it is the first that is not finite.
        """
        if largest is not None:
            self._largest[module] = max(self._largest.get(module, 0.0), largest)
        # a module ends after those inside of it, so that the first one is the innermost
        if self._first_output is None and not is_finite:
            self._first_output = module
            self._has_finite_inputs = has_finite_inputs()

    def add_gradient(self, parameter: str, is_finite: bool) -> None:
        """Note the gradient of ``parameter``; the backward pass comes from the end of the network."""
        if self._first_gradient is None and not is_finite:
            self._first_gradient = parameter

    def describe(self, metrics: Mapping[str, float], operator: str | None = None) -> StepExamination:
        """Return what was seen in a step with these ``metrics``; for ``operator`` see :class:`StepExamination`."""
        largest = sorted(self._largest.items(), key=lambda item: item[1], reverse=True)
        return StepExamination(
            metrics=metrics,
            first_output=self._first_output,
            has_finite_inputs=self._has_finite_inputs,
            first_gradient=self._first_gradient,
            largest_outputs=tuple(largest[:_SHOWN]),
            operator=operator,
        )
