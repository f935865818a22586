"""`ehm doctor --operators`: what a child reports becomes a table, JSON, and an exit status."""

import json

import pytest

from ehm.cli import main
from ehm.doctor.operators import report_operators
from ehm.errors import BackendError

NATIVE = ("aten::mm", ("bfloat16",), "native", "backends/torch/objectives/mae.py:10 in forward", "")
NEUTRAL = ("aten::t", ("float32",), "neutral", "backends/torch/objectives/mae.py:11 in forward", "a view")
WAITS = (
    "aten::nonzero",
    ("bool",),
    "synchronises",
    "backends/torch/learners/pretraining.py:5 in step",
    "waits for the device",
)
FALLS = (
    "aten::linalg_eigh",
    ("float32",),
    "falls back",
    "backends/torch/learners/pretraining.py:7 in step",
    "no kernel [of its own]",
)


@pytest.fixture
def reported(monkeypatch):
    """Let the child report rows, and print something before."""
    module = __import__("ehm.doctor.operators", fromlist=["ASK_OPERATORS"])
    monkeypatch.setenv("COLUMNS", "300")

    def set_rows(*rows):
        names = ("operator", "dtypes", "verdict", "site", "reason")
        text = json.dumps([dict(zip(names, row, strict=True)) for row in rows])
        monkeypatch.setattr(module, "ASK_OPERATORS", f"import sys; print('noise', sys.argv[1]); print({text!r})")

    set_rows.module = module
    return set_rows


def test_all_native_is_status_0(reported, capsys):
    reported(NATIVE, NEUTRAL, WAITS)
    assert report_operators() == 0
    text = capsys.readouterr().out
    assert "3 operators; none falls back to the CPU." in text
    assert text.index("aten::nonzero") < text.index("aten::t ") < text.index("aten::mm")


def test_one_that_falls_back_is_status_1_on_top_with_its_place(reported, capsys):
    reported(NATIVE, FALLS)
    assert report_operators() == 1
    text = capsys.readouterr().out
    assert "2 operators; fall back to the CPU: aten::linalg_eigh." in text
    assert text.index("aten::linalg_eigh") < text.index("aten::mm")
    assert "backends/torch/learners/pretraining.py:7 in step" in text
    assert "no kernel [of its own]" in text  # rich would take the brackets for a style


def test_an_operator_that_is_all_right_is_one_row_and_each_bad_call_is_its_own(reported, capsys):
    elsewhere = ("backends/torch/engine/optim.py:1 in f", "")
    reported(NATIVE, ("aten::mm", ("float32",), "native", *elsewhere), FALLS, (*FALLS[:3], *elsewhere))
    assert report_operators() == 1
    text = capsys.readouterr().out
    (mm,) = (line for line in text.splitlines() if "aten::mm" in line)
    assert "bfloat16, float32" in mm
    assert "mae.py:10 in forward and 1 more" in mm
    assert text.count("aten::linalg_eigh") == 2 + 1  # each call, and the last line
    assert "2 operators; fall back to the CPU: aten::linalg_eigh." in text


def test_json_carries_the_rows(reported, capsys):
    reported(NATIVE, FALLS)
    assert main(["doctor", "--operators", "--device", "npu", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["device"], said["works"]) == ("npu", False)
    assert [row["operator"] for row in said["operators"]] == ["aten::mm", "aten::linalg_eigh"]
    assert said["operators"][1]["verdict"] == "falls back"


def test_a_report_that_cannot_be_made_is_one_sentence(reported, monkeypatch, capsys):
    monkeypatch.setattr(
        reported.module, "ASK_OPERATORS", "import sys; sys.exit('--device npu: torch-npu is not installed')"
    )
    assert main(["doctor", "--operators", "--device", "npu"]) == 1
    assert capsys.readouterr().err == "ehm doctor: --operators: --device npu: torch-npu is not installed\n"
    with pytest.raises(BackendError):
        report_operators("npu")


def test_without_torch_there_are_none_to_record(reported, monkeypatch, capsys):
    monkeypatch.setattr(reported.module, "find_spec", lambda name: None)
    assert main(["doctor", "--operators"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ehm doctor: --operators: ")
    assert said.endswith("it is not installed; pip install 'ehm[torch]' installs it\n")


@pytest.mark.parametrize("device", ["mindspore", "mindspore:cpu", "tpu"])
def test_a_device_that_is_not_torchs_is_one_sentence(device, capsys):
    assert main(["doctor", "--operators", "--device", device]) == 1
    said = f"--operators --device {device}: torch's are recorded, on auto, cpu, cuda, npu"
    assert capsys.readouterr().err == f"ehm doctor: {said}\n"
