"""The table and the files of ``ehm verify``: verdicts, exit status, and nothing that names a machine."""

import json
import warnings

import pytest

from ehm.cli import main
from ehm.errors import BackendError
from ehm.verification import command
from ehm.verification.check import Check, Measurement, Result, SkipError, run_checks
from ehm.verification.machine import hide_private
from ehm.verification.report import Verification, print_table, write_results
from ehm.verification.speed import Speed


def measure(value):
    yield Measurement("a figure", value, 1.0, "NumPy")


def fail(error):
    raise error


CHECKS = [
    Check("first", "good", 1, lambda: measure(0.5)),
    Check("first", "bad", 1, lambda: measure(1.5)),
    Check("first", "no number", 1, lambda: measure(float("nan"))),
    Check("second", "broken", 1, lambda: fail(RuntimeError("a kernel in /home/somebody/x.py\nsecond line"))),
    Check("second", "refused", 1, lambda: fail(BackendError("not here"))),
    Check("second", "absent", 1, lambda: fail(SkipError("there is one device"))),
]


def test_a_check_that_raises_fails_and_the_others_go_on(capsys):
    results = run_checks(CHECKS)
    assert [result.status for result in results] == ["pass", "fail", "fail", "fail", "fail", "skipped"]
    assert results[1].name == "bad: a figure"
    assert (results[2].measured, results[2].bound) == (None, 1.0)
    assert results[3].detail == "RuntimeError: a kernel in /home/somebody/x.py"
    assert results[5].detail == "there is one device"
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 6
    assert said[0].startswith("[1/6] first: good: pass; about ")


def verification(results, problems=()):
    speed = Speed("vit_small", "float32", "evolved", "host", 8, 12.345, 0.25, 10.0, 2.0, 100.0, 1.5)
    machine = {"device": "a chip", "cores": 2, "load": 1.0, "cann": None, "packages": {"torch": "2.14.1"}}
    return Verification("2026-01-02", "ehm verify --device cpu", 12.0, machine, results, [speed], list(problems))


def test_files_can_be_posted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("socket.gethostname", lambda: "node-17.lab")
    monkeypatch.setattr("getpass.getuser", lambda: "msmith")
    results = run_checks(CHECKS)
    found = verification([*results, Result("x", "y", "fail", detail="msmith on node-17.lab: ~/a/b.py")])
    print_table(found)
    values, text = write_results(found, tmp_path)
    for path in (values, text):
        written = path.read_text(encoding="utf-8")
        assert "USER on HOST: PATH" in written
        for private in ("node-17", "msmith", "/home", "somebody", "~"):
            assert private not in written
    stored = json.loads(values.read_text())
    assert stored["passed"] is False
    assert stored["summary"] == "FAILED: 1 within bounds, 5 failed, 1 skipped"
    assert stored["speeds"][0]["images_per_second"] == 12.345
    page = text.read_text()
    assert "| first | bad: a figure | fail | 1.5 | 1 | NumPy |" in page
    assert "| vit_small | float32 | evolved | host | 8 | 12.3 | 25% | 10 | 2 | 100 | 1.5 |" in page
    assert "| cann |" not in page
    assert "bad: a figure" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no such file: '/data/run 1/x.py'", "no such file: 'PATH'"),
        ("~/models/a.npz and C:\\Users\\me", "PATH and PATH"),
        ("a and/or b, 3/4 of 2/3, aten::add", "a and/or b, 3/4 of 2/3, aten::add"),
    ],
)
def test_places_are_hidden_and_nothing_else(text, shown):
    assert hide_private(text) == shown


@pytest.mark.parametrize(("wanted", "status"), [(CHECKS[:1], 0), (CHECKS[:2], 1), ([CHECKS[5]], 0)])
def test_the_status_says_whether_a_check_failed(wanted, status, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "list_checks", lambda *arguments: wanted)
    monkeypatch.setattr(command, "measure_speeds", lambda *arguments: ([], ["vit_base: no memory"]))
    assert main(["verify", "--device", "cpu", "--quick", "--out", str(tmp_path / "out")]) == status
    said = capsys.readouterr().out
    assert ("passed" if status == 0 else "FAILED") in said
    assert "not measured: vit_base: no memory" in said
    assert json.loads((tmp_path / "out/verify.json").read_text())["command"] == "ehm verify --device cpu --quick"


def test_what_falls_back_is_named():
    from ehm.backends.torch.diagnosis.fallbacks import find_fallbacks

    def work():
        warnings.warn("CAUTION: The operator 'aten::erfinv' is not currently supported on the NPU", stacklevel=1)
        warnings.warn("another warning", stacklevel=1)

    assert find_fallbacks(work) == ["aten::erfinv"]
    assert find_fallbacks(lambda: None) == []
