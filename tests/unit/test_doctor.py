"""`ehm doctor`: true about this machine, and standing when something beside it falls."""

import json
import os
import sys
from importlib.metadata import version

import pytest

from ehm import doctor as module
from ehm.doctor import doctor, examine


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")


def row(name):
    return next(finding for finding in examine() if finding.name == name)


def without(monkeypatch, *names):
    """Hide packages from the look-ups."""
    real_version, real_spec = module.version, module.find_spec

    def hidden_version(name):
        if name in names:
            raise module.PackageNotFoundError(name)
        return real_version(name)

    monkeypatch.setattr(module, "version", hidden_version)
    monkeypatch.setattr(module, "find_spec", lambda name: None if name in names else real_spec(name))


def test_it_agrees_with_this_machine(capsys):
    import torch

    assert doctor() == 0
    text = capsys.readouterr().out
    for expected in (sys.version.split()[0], version("torch"), version("numba"), "CPUExecutionProvider", "float32"):
        assert expected in text
    state = row("cuda").state
    assert state == ("ok" if torch.cuda.is_available() else "absent")


def test_json_is_json_and_nothing_else(capsys):
    assert doctor(json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["works"] is True
    rows = {finding["name"]: finding for finding in found["findings"]}
    assert rows["cores"]["detail"] == str(os.cpu_count())
    assert rows["cpu"]["state"] == "ok"


def test_without_torch_it_says_what_to_install_and_exits_with_1(monkeypatch, capsys):
    without(monkeypatch, "torch")
    assert doctor() == 1
    text = capsys.readouterr().out
    assert "pip install 'ehm[torch]'" in text
    assert "No device can train here" in text


def test_each_missing_package_has_its_command(monkeypatch):
    without(monkeypatch, *module.EXTRAS)
    rows = {finding.name: finding for finding in examine()}
    assert rows["elpv-dataset"].state == "missing"
    assert rows["elpv-dataset"].mend == "pip install 'ehm[elpv]'"
    assert rows["numba"].mend == "pip install numba"
    assert rows["cpu"].state == rows["cuda"].state == "missing"


def test_the_extras_it_names_exist():
    from importlib.metadata import metadata

    assert {extra for extra in module.EXTRAS.values() if extra} <= set(metadata("ehm").get_all("Provides-Extra"))


def test_a_framework_that_crashes_is_a_row(monkeypatch):
    monkeypatch.setattr(module, "ASK_DEVICE", "import os; os.abort()")
    assert (row("cpu").state, row("cpu").detail) == ("broken", "ended by signal or status -6")
    assert doctor(json=True) == 1


def test_a_framework_that_cannot_be_imported_shows_its_reason(monkeypatch):
    monkeypatch.setattr(module, "ASK_DEVICE", "raise ImportError('libascendcl.so: cannot open shared object file')")
    assert row("cpu").detail == "ImportError: libascendcl.so: cannot open shared object file"


def test_a_framework_that_hangs_is_a_row(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    monkeypatch.setattr(module, "ASK_DEVICE", "import time; time.sleep(60)")
    assert row("cpu").detail == "no answer within 0.2 seconds"


def test_children_do_not_wake_plug_ins(monkeypatch):
    answer, reason = module._ask("import json, os; print(json.dumps(os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD']))")
    assert (answer, reason) == ("0", "")


def test_noise_on_standard_output_is_no_answer():
    assert module._ask("print('loading'); print('[1]')") == ([1], "")
