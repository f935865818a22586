"""`ehm doctor --operators`: what a child reports becomes a table, JSON, and an exit status."""

import json

import pytest

from ehm.cli import main
from ehm.doctor.operators import report_operators
from ehm.errors import BackendError
from ehm.installation import build_install_command

NATIVE = ("aten::mm", ("bfloat16",), "native", "backends/torch/objectives/mae.py:10", "", ("mae",))
NEUTRAL = ("aten::t", ("float32",), "neutral", "backends/torch/objectives/mae.py:11", "a view", ("mae",))
WAITS = (
    *("aten::nonzero", ("bool",), "synchronises", "backends/torch/learners/pretraining.py:5"),
    *("waits for the device", ("beit", "mae")),
)
FALLS = (
    *("aten::linalg_eigh", ("float32",), "falls back", "backends/torch/learners/pretraining.py:7"),
    *("no kernel [of its own]", ("mae",)),
)
UNDOCUMENTED = ("aten::sort", ("bfloat16",), "not documented", "x.py:1", "", ("mae",))
ON_AICPU = ("aten::gather", ("bool",), "aicpu", "x.py:2", "", ("mae",))
DOUBLE = ("aten::sum", ("float64",), "no float64", "x.py:3", "", ("mae",))


@pytest.fixture
def reported(monkeypatch):
    """Let the child report rows, and print something before."""
    module = __import__("ehm.doctor.operators", fromlist=["ASK_OPERATORS"])
    monkeypatch.setenv("COLUMNS", "300")

    def set_rows(*rows, omissions=()):
        names = ("operator", "dtypes", "verdict", "site", "reason", "parts")
        answer = {"operators": [dict(zip(names, row, strict=True)) for row in rows], "omissions": list(omissions)}
        progress = json.dumps({"now": "mae in float32", "done": 0, "total": 1})
        lines = f"print('noise', *sys.argv[1:]); print({progress!r}); print({json.dumps(answer)!r})"
        monkeypatch.setattr(module, "ASK_OPERATORS", f"import sys; {lines}")

    set_rows.module = module
    return set_rows


def test_all_native_is_status_0(reported, capsys):
    reported(NATIVE, NEUTRAL, WAITS)
    assert report_operators() == 0
    text = capsys.readouterr().out
    assert "3 operators.\n1 that the host waits for: aten::nonzero.\n1 native.\n1 composed of others.\n" in text
    assert text.endswith("None falls back to the CPU.\n")
    assert text.index("aten::nonzero") < text.index("aten::mm") < text.index("aten::t ")
    assert "waits for the device (beit, mae)" in text


@pytest.mark.parametrize("row", [UNDOCUMENTED, ON_AICPU])
def test_what_runs_on_the_npu_somehow_is_no_failure(reported, capsys, row):
    reported(NATIVE, row)
    assert report_operators() == 0
    text = capsys.readouterr().out
    assert f"{row[0]}.\n" in text
    assert "None falls back to the CPU." in text


def test_float64_is_a_failure_with_words_of_its_own(reported, capsys):
    reported(NATIVE, DOUBLE)
    assert report_operators() == 1
    text = capsys.readouterr().out
    assert "1 computed in float32 instead of float64: aten::sum." in text
    assert "falls back" not in text


def test_one_that_falls_back_is_status_1_on_top_with_its_place(reported, capsys):
    reported(NATIVE, FALLS)
    assert report_operators() == 1
    text = capsys.readouterr().out
    assert "2 operators.\n1 falling back to the CPU: aten::linalg_eigh." in text
    assert text.index("aten::linalg_eigh") < text.index("aten::mm")
    assert "backends/torch/learners/pretraining.py:7" in text
    assert "no kernel [of its own] (mae)" in text  # rich would take the brackets for a style


def test_an_operator_that_is_all_right_is_one_row_and_each_bad_call_is_its_own(reported, capsys):
    elsewhere = ("backends/torch/engine/optim.py:1", "", ("mae",))
    reported(NATIVE, ("aten::mm", ("float32",), "native", *elsewhere), FALLS, (*FALLS[:3], *elsewhere))
    assert report_operators() == 1
    text = capsys.readouterr().out
    (mm,) = (line for line in text.splitlines() if "aten::mm" in line)
    assert "bfloat16, float32" in mm
    assert "mae.py:10 and 1 more" in mm
    assert text.count("aten::linalg_eigh") == 2 + 1  # each call, and the summary


def test_what_is_left_out_is_said(reported, capsys):
    reported(NATIVE, omissions=["Low-rank updates are left out."])
    assert report_operators() == 0
    assert capsys.readouterr().out.endswith("Low-rank updates are left out.\n")


def test_json_carries_the_rows(reported, capsys):
    reported(NATIVE, FALLS)
    assert main(["doctor", "--operators", "--device", "npu", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["device"], said["subject"], said["works"]) == ("npu", "", False)
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


@pytest.mark.parametrize(("is_config_error", "status"), [(True, 2), (False, 1)])
def test_an_error_of_the_report_has_the_status_of_its_kind(reported, monkeypatch, capsys, is_config_error, status):
    answer = json.dumps({"error": "nets:build returned None", "is_config_error": is_config_error})
    monkeypatch.setattr(reported.module, "ASK_OPERATORS", f"print({answer!r})")
    assert main(["doctor", "--operators", "nets:build"]) == status
    assert capsys.readouterr().err == "ehm doctor: --operators nets:build returned None\n"


@pytest.mark.parametrize(("argument", "subject"), [((), ""), (("mae",), "mae"), (("nets:build",), "nets:build")])
def test_the_child_is_asked_for_the_part_or_the_function(reported, monkeypatch, capsys, argument, subject):
    code = "import json, sys; print(json.dumps({'operators': [], 'omissions': sys.argv[1:]}))"
    monkeypatch.setattr(reported.module, "ASK_OPERATORS", code)
    assert main(["doctor", "--operators", *argument, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["omissions"] == ["cpu", subject]


def test_without_torch_there_are_none_to_record(reported, monkeypatch, capsys):
    monkeypatch.setattr(reported.module, "find_spec", lambda name: None)
    assert main(["doctor", "--operators"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ehm doctor: --operators: ")
    assert said.endswith(f"it is not installed; {build_install_command('torch')} installs it\n")


@pytest.mark.parametrize("device", ["mindspore", "mindspore:cpu", "tpu"])
def test_a_device_that_is_not_torchs_is_one_sentence(device, capsys):
    assert main(["doctor", "--operators", "--device", device]) == 1
    said = f"--operators --device {device}: torch's are recorded, on auto, cpu, cuda, npu"
    assert capsys.readouterr().err == f"ehm doctor: {said}\n"
