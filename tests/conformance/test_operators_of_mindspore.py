"""MindSpore's own documentation names the targets of each operator: ours have to be on its CPU and on Ascend."""

import ast
import re
from pathlib import Path

import pytest

ms = pytest.importorskip("mindspore", reason="MindSpore has an environment of its own")

BACKEND = Path(__file__).parents[2] / "backends/mindspore"
NO_OPERATORS = {"Cell", "CellList", "SequentialCell", "HyperMap", "partial", "constexpr"}
"""Names that arrange operators."""
ASCEND_ALONE = {"ops.flash_attention_score"}
"""Operators behind a fact of the target; test_target_of_mindspore.py holds their arguments and types to their pages."""


def used():
    """Names after ``ops.`` and ``nn.`` in the backend, each with the file that uses it."""
    found = {}
    for path in sorted(BACKEND.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("ops", "nn"):
                found[f"{node.value.id}.{node.attr}"] = path.name
    return found


def platforms(name):
    """Return an operator's platforms as documented, or those of the operator to which its text refers."""
    module, _, attribute = name.partition(".")
    documented = getattr(getattr(ms, module), attribute).__doc__ or ""
    if line := re.search(r"Supported Platforms:\s*\n\s*(.*)", documented):
        return set(re.findall(r"``(\w+)``", line[1]))
    other = re.search(r"Refer to :func:`mindspore\.(ops\.\w+)`", documented)
    return platforms(other[1]) if other else set()


OPERATORS = {name: file for name, file in used().items() if name.partition(".")[2] not in NO_OPERATORS}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_there_on_both_targets_mindspore(name):
    wanted = {"Ascend"} if name in ASCEND_ALONE else {"Ascend", "CPU"}
    assert platforms(name) >= wanted, f"{name} in {OPERATORS[name]}: {platforms(name)}"


def test_operators_are_found_and_others_told_apart_mindspore():
    assert {"ops.MatMul", "ops.AdamWeightDecay", "ops.gather"} <= OPERATORS.keys()
    assert platforms("ops.lgamma") == {"GPU", "CPU"}
