"""The simulated NPU does what it claims: ``tests/simulated/checks.py``, in a process of its own.

Installing a device is for good, so that pytest's own process stays without it. What a call is compared with is the
CPU's kernel, called by torch itself.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SIMULATED = Path(__file__).parents[2] / "simulated"
CHECKS = re.findall(r"^def (\w+_\w+)\(\):", (SIMULATED / "checks.py").read_text(encoding="utf-8"), re.MULTILINE)


def run(*command, **variables):
    environment = {**os.environ, "PYTHONPATH": str(SIMULATED), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def outcome():
    done = run("-W", "error", str(SIMULATED / "checks.py"), EHM_SIMULATED_NPUS="2")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_it_keeps_its_promise(outcome, check):
    assert outcome[check] is None, outcome[check]


def test_every_check_was_run(outcome):
    assert sorted(outcome) == sorted(CHECKS)
    assert len(CHECKS) >= 12


def test_the_record_is_written_at_exit(tmp_path):
    code = "import torch, torch_npu; torch.ones(2, device='npu').exp()"
    done = run("-c", code, EHM_SIMULATED_NPU_LOG=str(tmp_path / "log"))
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("log.*")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {"operator": "exp", "dtypes": ["float32"], "site": "<string>:1", "calls": 1} in rows


def test_the_real_switch_against_fallbacks_works():
    code = "import torch, torch_npu; torch.poisson(torch.ones(2, device='npu'))"
    done = run("-c", code, TORCH_NPU_FALLBACK_CPU_DISABLE="1")
    assert done.returncode == 1
    assert "The operator 'aten::poisson' is not currently supported on the NPU backend (<string>:1)" in done.stderr


def test_it_stays_out_of_this_process():
    assert "torch_npu" not in sys.modules
