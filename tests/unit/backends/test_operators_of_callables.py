"""The operators of a network of anybody's: ``ehm doctor --operators MODULE:FUNCTION``.

What the record on the CPU says an NPU lacks is compared with what the simulated NPU cannot run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from operator_samples import SAMPLES

from ehm.backends.torch.diagnosis.callables import record_callable
from ehm.backends.torch.diagnosis.report import print_report, report_callable
from ehm.errors import ConfigError

TESTS = Path(__file__).parents[2]
WANTED = (
    "it should return (module, inputs), a torch.nn.Module and a tensor, a tuple or a dict of what it is called with"
)
NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, y=None):
        z = self.layer(x if y is None else x + y)
        return {"loss": nn.functional.huber_loss(z, torch.zeros_like(z)), "scores": [z.detach()]}

x = torch.ones(2, 4)

class Builders:
    @staticmethod
    def tensor():
        return Net(), x

def pair():
    return Net(), (x, x)

def named():
    return Net(), {"x": x, "y": x}

def plain():
    return nn.Sequential(nn.Linear(4, 4), nn.GELU()), x

def frozen():
    return Net().requires_grad_(False), x

def one():
    return Net()

def three():
    return 1, 2, 3

def no_module():
    return len, x

def no_inputs():
    return Net(), 3

def nothing():
    pass

def misfit():
    return Net(), torch.ones(2, 5)

def broken():
    raise ValueError("no weights\\nhere")

def leaving():
    raise SystemExit(3)

net = Net()
"""


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """A module of networks in the current folder, under a name of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"networks_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(NETWORKS)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("function", ["Builders.tensor", "pair", "named"])
def test_forward_and_backward_are_recorded_with_the_users_lines(networks, function):
    rows = report_callable(f"{networks}:{function}", "cpu")
    verdicts = {(row.operator, row.verdict, row.site.partition(":")[0]) for row in rows}
    assert ("huber_loss", "falls back", f"{networks}.py") in verdicts
    assert ("huber_loss_backward.out", "falls back", "backward (HuberLossBackward0)") in verdicts
    assert ("addmm", "native", f"{networks}.py") in verdicts


def test_a_network_of_torchs_own_modules_has_no_line_to_name(networks):
    rows = report_callable(f"{networks}:plain", "cpu")
    assert {row.site for row in rows if row.operator in ("addmm", "gelu")} == {"the module"}
    assert {row.verdict for row in rows} == {"native", "neutral"}


def test_without_gradients_there_is_no_backward_pass(networks):
    operators = {call.operator for call in record_callable(f"{networks}:frozen", torch.device("cpu"))}
    assert "huber_loss" in operators
    assert not any("backward" in operator for operator in operators)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("one", f"returned a value of type Net; {WANTED}"),
        ("three", f"returned a tuple of 3 values; {WANTED}"),
        ("nothing", f"returned None; {WANTED}"),
        ("no_module", f"returned a value of type builtin_function_or_method as the module; {WANTED}"),
        ("no_inputs", f"returned a value of type int as the inputs; {WANTED}"),
        ("broken", "raised ValueError: no weights (MODULE.py:52)"),
        ("leaving", "raised SystemExit: 3 (MODULE.py:55)"),
        (
            "misfit",
            ": the module raised RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 4x4) (MODULE.py:11)",
        ),
        (
            "net",
            f": net is a value of type Net; {WANTED.replace('should return', 'should be a function that returns')}",
        ),
        ("absent", ": MODULE has no absent"),
    ],
)
def test_what_is_wrong_is_one_sentence(networks, function, said):
    with pytest.raises(ConfigError) as caught:
        report_callable(f"{networks}:{function}", "cpu")
    text = str(caught.value).replace(networks, "MODULE")
    separator = "" if said.startswith(":") else " "
    assert text == f"MODULE:{function}{separator}{said}"


@pytest.mark.parametrize("target", [":build", "networks:"])
def test_a_name_without_both_halves_is_refused(target):
    with pytest.raises(ConfigError, match="write MODULE:FUNCTION, for example"):
        report_callable(target, "cpu")


def test_a_module_that_cannot_be_imported_is_one_sentence(networks, tmp_path):
    with pytest.raises(ConfigError, match=rf"^nowhere:build: there is no module nowhere in {tmp_path}, nor among"):
        report_callable("nowhere:build", "cpu")
    Path(f"needing_{tmp_path.name}.py").write_text("import not_installed_anywhere")
    with pytest.raises(ConfigError, match="raised ModuleNotFoundError: No module named 'not_installed_anywhere'"):
        report_callable(f"needing_{tmp_path.name}:build", "cpu")
    Path(f"torn_{tmp_path.name}.py").write_text("1 / 0")
    with pytest.raises(
        ConfigError, match=r"importing torn_\S+ raised ZeroDivisionError: division by zero \(torn_\S+:1\)$"
    ):
        report_callable(f"torn_{tmp_path.name}:build", "cpu")


def test_the_answer_is_the_last_line(networks, capsys):
    print_report("cpu", f"{networks}:one")
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer == {"error": f"{networks}:one returned a value of type Net; {WANTED}", "is_config_error": True}
    print_report("cpu", f"{networks}:frozen")
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "huber_loss" in {row["operator"] for row in answer["operators"]}


def test_what_falls_back_is_what_the_simulated_npu_cannot_run():
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS / "simulated"), str(TESTS.parent)]),
        "TORCH_NPU_FALLBACK_CPU_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", str(TESTS / "operator_samples.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["lacking"] == said["refused"]
    assert set(said["complete"]) == set(SAMPLES) - set(said["refused"])
    assert {"huber", "log_cumulative", "double", "poisson"} <= set(said["refused"])
    assert {"attention", "convolution", "indices", "smooth"}.isdisjoint(said["refused"])
