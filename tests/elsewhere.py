"""The environment that holds MindSpore and no torch; `make test` makes it and says where its Python is."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PYTHON = Path(os.environ.get("EHM_MINDSPORE_PYTHON") or ROOT / ".venv-mindspore/bin/python")

needs_mindspore = pytest.mark.skipif(
    not PYTHON.is_file(), reason=f"no environment with MindSpore at {PYTHON}: make test makes it"
)


def mark_full(cases, short):
    """Parameters of a test; all but the ``short`` ones are for changes of the MindSpore backend, if they run there."""
    return [case if case in short else pytest.param(case, marks=pytest.mark.full_for("mindspore")) for case in cases]


def run(*arguments, **options):
    """A Python process of that environment with ``arguments``; its output is text, and its status is not checked."""
    environment = {**os.environ, "PYTHONPATH": "", **options.pop("env", {})}
    return subprocess.run(
        [PYTHON, *map(str, arguments)], capture_output=True, text=True, timeout=280, env=environment, **options
    )


def ehm(*arguments, **options):
    """The command line of that environment, which has to succeed: its standard output."""
    done = run("-m", "ehm.cli", *arguments, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trained(weights):
    """Without the keys' biases: softmax does not see them, so that AdamW enlarges the rounding of their gradient."""
    for name, value in weights.items():
        if name.endswith("qkv.bias"):
            queries, _, values = np.split(value, 3)
            value = np.concatenate([queries, values])
        yield name, value
