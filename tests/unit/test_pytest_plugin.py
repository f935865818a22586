"""``pytest --npu-operators``: a run of pytest within this one, on tests that are written here."""

import sys
from pathlib import Path

import pytest
import tomllib

# a run within this one forgets what it imported, and torch cannot be imported twice
import ehm.backends.torch.diagnosis.operators  # noqa: F401

pytest_plugins = ["pytester"]

NETWORK = """
import torch

def lacking(x):
    return torch.nn.functional.huber_loss(x, x * 2)
"""
TESTS = """
import pytest
import torch
from network import lacking

@pytest.fixture
def built():
    return lacking(torch.ones(3, requires_grad=True))  # fixtures do not count

def test_native(built):
    x = torch.ones(3, requires_grad=True)
    torch.nn.functional.gelu(x).sum().backward()

def test_lacking():
    lacking(torch.ones(3, requires_grad=True)).backward()

def test_float64():
    assert torch.ones(3).double().sum() == 3

@pytest.mark.npu_operators_allowed("huber_loss", "huber_loss_backward")
def test_allowed():
    lacking(torch.ones(3, requires_grad=True)).backward()

@pytest.mark.npu_operators_allowed
def test_all_allowed():
    assert torch.ones(3).double().sum() == 3

def test_wrong():
    lacking(torch.ones(3))
    raise ValueError("its own failure")

@pytest.mark.xfail(strict=True)
def test_expected():
    lacking(torch.ones(3))
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run the tests with some options; the plug-in is loaded by name, as it need not be installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(network=NETWORK, test_it=TESTS)
    return lambda *options: pytester.runpytest_inprocess("-p", "ehm.pytest_plugin", "--strict-markers", *options)


def test_a_test_whose_operators_are_lacking_fails_and_names_them(run):
    result = run("--npu-operators")
    result.assert_outcomes(passed=3, failed=3, xfailed=1)
    text = result.stdout.str()
    for name, failure in {
        "lacking": "torch-npu lacks",
        "float64": "torch-npu lacks",
        "wrong": "its own failure",
    }.items():
        assert f"test_{name} " in text
        assert failure in text
    called = "no kernel in torch-npu 2.14; called at network.py:4"
    assert f"  huber_loss (float32): falls back, {called}" in text
    backward = "no kernel in torch-npu 2.14; called at backward (HuberLossBackward0)"
    assert f"  huber_loss_backward.out (float32): falls back, {backward}" in text
    assert (
        "  sum (float64, one float64): no float64, an NPU computes in float32 without a word; called at test_it.py:"
        in text
    )
    assert "operators: those of torch-npu" in text


def test_without_the_option_nothing_changes(run):
    result = run()
    result.assert_outcomes(passed=5, failed=2)  # one by its own failure, and the strict xfail
    assert "torch-npu" not in result.stdout.str()


def test_a_project_can_allow_operators(run, pytester):
    pytester.makeini("[pytest]\nnpu_operators_allowed =\n    huber_loss\n    huber_loss_backward.out\n")
    result = run("--npu-operators", "-k", "test_lacking or test_float64")
    result.assert_outcomes(passed=1, failed=1, deselected=5)


def test_it_is_an_entry_point_that_loads_neither_torch_nor_the_rest_of_ehm(pytester):
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["entry-points"]["pytest11"] == {"ehm": "ehm.pytest_plugin"}
    code = "import sys, ehm.pytest_plugin; print(*(name for name in sys.modules if name.startswith(('torch', 'ehm'))))"
    done = pytester.run(sys.executable, "-c", code)
    assert sorted(done.outlines[0].split()) == ["ehm", "ehm.pytest_plugin"]
