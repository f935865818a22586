"""The oldest ONNX Runtime that pyproject.toml admits, in an environment of its own, which `make test` makes."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
RUN = """
import sys, json, numpy, onnxruntime
for model, given, found in json.loads(sys.argv[1]):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (images,) = session.get_inputs()
    numpy.savez(found, **dict(zip(names, session.run(names, {images.name: numpy.load(given)}))))
print(onnxruntime.__version__)
"""


def run_in_oldest(models, inputs, folder):
    """Outputs by name of each of `models`, for `inputs` alike; the test is skipped if the environment is not there."""
    python = Path(os.environ.get("EHM_OLDEST_ONNXRUNTIME_PYTHON", ROOT / ".venv-onnxruntime/bin/python"))
    if not python.is_file():
        pytest.skip(f"no environment with the oldest ONNX Runtime at {python}: make test makes it, up to Python 3.12")
    work = []
    for number, (model, images) in enumerate(zip(models, inputs, strict=True)):
        np.save(folder / f"{number}.npy", images)
        work.append([str(model), str(folder / f"{number}.npy"), str(folder / f"{number}.npz")])
    done = subprocess.run([python, "-c", RUN, json.dumps(work)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (oldest,) = set(re.findall(r'"onnxruntime>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    assert f"{done.stdout.strip()}.".startswith(f"{oldest}.")
    return [dict(np.load(found)) for _, _, found in work]
