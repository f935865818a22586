"""`ehm doctor`: true about this machine, and standing when something beside it falls."""

import json
import os
import signal
import sys
from importlib.metadata import version

import pytest

from ehm.backends import ascend
from ehm.doctor import child, collect_findings, devices, doctor, findings
from ehm.errors import BackendError
from ehm.installation import build_install_command


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")


def row(name, device="auto"):
    return next(finding for finding in collect_findings(device) if finding.name == name)


def without(monkeypatch, *names):
    """Hide packages from the look-ups."""
    real_version, real_spec = findings.version, devices.find_spec

    def hidden_version(name):
        if name in names:
            raise findings.PackageNotFoundError(name)
        return real_version(name)

    for module in (findings, ascend):
        monkeypatch.setattr(module, "version", hidden_version)
    monkeypatch.setattr(devices, "find_spec", lambda name: None if name in names else real_spec(name))


def test_it_agrees_with_this_machine(capsys):
    import torch

    assert doctor() == 0
    text = capsys.readouterr().out
    for expected in (sys.version.split()[0], version("torch"), version("numba"), "CPUExecutionProvider", "float32"):
        assert expected in text
    (cuda,) = (line.split("│")[1:3] for line in text.splitlines() if line.startswith("│ cuda "))
    assert cuda[1].strip() == ("ok" if torch.cuda.is_available() else "absent")


def test_without_torch_it_says_what_to_install_and_exits_with_1(monkeypatch, capsys):
    without(monkeypatch, "torch", "mindspore")
    assert doctor() == 1
    text = capsys.readouterr().out
    assert build_install_command("torch") in text
    assert build_install_command("mindspore") in text.splitlines()[-1]
    assert "No device can train here" in text


def test_with_a_device_that_fails_it_does_not_say_to_install_the_framework_again(monkeypatch, capsys):
    monkeypatch.setattr(devices, "ASK_DEVICE", "import os; os.abort()")
    assert doctor() == 1
    sentence = capsys.readouterr().out.splitlines()[-1]
    assert sentence.startswith("No device can train here; the table says what is wrong with cpu, cuda")
    assert build_install_command("torch") not in sentence


def test_each_missing_package_has_its_command(monkeypatch):
    without(monkeypatch, *findings.EXTRAS)
    rows = {finding.name: finding for finding in collect_findings()}
    assert rows["elpv-dataset"].state == "missing"
    assert rows["elpv-dataset"].mend == build_install_command("elpv")
    assert rows["numba"].mend == "pip install numba"
    assert rows["cpu"].state == rows["cuda"].state == "missing"


def test_the_extras_it_names_exist():
    from importlib.metadata import metadata

    assert {extra for extra in findings.EXTRAS.values() if extra} <= set(metadata("ehm").get_all("Provides-Extra"))


def test_a_framework_that_crashes_is_a_row(monkeypatch):
    monkeypatch.setattr(devices, "ASK_DEVICE", "import os; os.abort()")
    cpu = row("cpu", "cpu")
    assert (cpu.state, cpu.detail) == ("broken", "ended by signal or status -6")
    assert doctor(json=True) == 1


def test_a_framework_that_cannot_be_imported_shows_its_reason(monkeypatch):
    monkeypatch.setattr(devices, "ASK_DEVICE", "raise ImportError('libascendcl.so: cannot open shared object file')")
    assert row("cpu", "cpu").detail == "ImportError: libascendcl.so: cannot open shared object file"


def test_a_framework_that_hangs_is_a_row(monkeypatch):
    monkeypatch.setattr(child, "PATIENCE", 0.2)
    monkeypatch.setattr(devices, "ASK_DEVICE", "import time; time.sleep(60)")
    cpu = row("cpu", "cpu")
    assert (cpu.state, cpu.detail) == ("unknown", "no answer within 0.2 seconds")
    assert "a busy machine can be why" in cpu.mend


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_device_that_takes_too_long_is_not_called_broken(monkeypatch, capsys, device):
    monkeypatch.setattr(child, "PATIENCE", 0.2)
    monkeypatch.setattr(devices, "PATIENCE", {})
    monkeypatch.setattr(devices, "ASK_DEVICE", "import time; time.sleep(60)")
    monkeypatch.setattr(findings, "ASK_PROVIDERS", "import time; time.sleep(60)")
    assert doctor(device) == 1
    text = capsys.readouterr().out
    assert "broken" not in text
    assert "reinstall" not in text
    assert text.splitlines()[-1].startswith("It is not known if cpu")
    assert "a busy machine can be why" in text.splitlines()[-1]


def test_what_a_child_starts_and_leaves_behind_is_not_waited_for():
    code = """
import json, subprocess, sys, time
left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(json.dumps(left.pid), flush=True)
time.sleep(float(sys.argv[1]))
"""
    pids = []
    assert child.ask_child(code, "0", tell=pids.append) == (pids[0], "")
    # long enough for the child to start its own, and far less than that one lives
    assert child.ask_child(code, "600", patience=2, tell=pids.append) == (None, "no answer within 2 seconds")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)  # which fails if it has ended, and was waited for


def test_devices_that_start_slowly_have_more_time(monkeypatch):
    waited = {}
    monkeypatch.setattr(devices, "find_spec", lambda name: True)

    def ask(code, name, patience):
        waited[name] = patience
        return None, "no answer"

    monkeypatch.setattr(devices, "ask_child", ask)
    for name in ("cpu", "cuda:1", "npu:1", "mindspore:ascend"):
        devices.examine_device(name, name)
    assert waited == {"cpu": None, "cuda:1": None, "npu:1": 600, "mindspore:ascend": 600}


def test_packages_that_cann_imports_are_looked_for_beside_it(monkeypatch, tmp_path):
    monkeypatch.setattr(findings, "ROOT", tmp_path)
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME", raising=False)
    assert "CANN's packages" not in {found.name for found in findings.examine_machine()}
    info = tmp_path / "usr/local/Ascend/cann/x86_64-linux/ascend_toolkit_install.info"
    info.parent.mkdir(parents=True)
    info.write_text("version=9.1.0\n")
    installed = {"numpy", "scipy"}
    monkeypatch.setattr(ascend, "_read_package_version", lambda name: "1" if name in installed else None)
    found = {each.name: each for each in findings.examine_machine()}["CANN's packages"]
    assert found.state == "missing"
    assert "decorator, protobuf" in found.detail
    assert found.mend.startswith("pip install absl-py attrs cffi cloudpickle decorator protobuf")
    installed |= set(ascend.COMPILER_PACKAGES)
    assert {each.name: each for each in findings.examine_machine()}["CANN's packages"].state == "ok"


def test_children_wake_no_plug_ins_and_wait_for_no_other_process(monkeypatch):
    names = ["TORCH_DEVICE_BACKEND_AUTOLOAD", "WORLD_SIZE", "MS_WORKER_NUM"]
    for name in names:
        monkeypatch.setenv(name, "2")
    code = "import json, os, sys; print(json.dumps([os.environ[name] for name in sys.argv[1:]]))"
    assert child.ask_child(code, *names) == (["0", "1", "1"], "")


def test_noise_on_standard_output_is_no_answer():
    assert child.ask_child("print('loading'); print('[1]'); print('[INFO] goodbye')") == ([1], "")
    assert child.ask_child("print('[INFO] nothing else')") == (None, "no answer")


def test_one_device_decides_the_status_when_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr(devices, "ASK_DEVICE", "import sys; sys.exit('--device cuda:1: there are 1, numbered from 0')")
    assert doctor(device="cuda:1") == 1
    text = capsys.readouterr().out
    assert "there are 1, numbered from 0" in text
    assert "--device cuda:1 cannot train here." in text
    assert "npu " not in text.partition("elpv-dataset")[2]


def test_json_is_json_and_nothing_else_and_a_device_that_works_is_enough(capsys):
    assert doctor(device="cpu", json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["device"], said["works"]) == ("cpu", True)
    rows = {found["name"]: found for found in said["findings"]}
    assert rows["cores"]["detail"] == str(os.cpu_count())
    assert rows["onnxruntime"]["facts"]["providers"]
    (cpu,) = (found for found in said["findings"] if found["kind"] == "device")
    assert (cpu["name"], cpu["state"]) == ("cpu", "ok")
    assert cpu["facts"]["memory_bytes"] == rows["memory"]["facts"]["bytes"]


def test_a_device_that_nobody_offers_is_one_sentence():
    with pytest.raises(BackendError, match="--device tpu: unknown; known are auto, cpu, cuda, npu"):
        doctor(device="tpu")


def test_variables_that_are_set_are_shown(monkeypatch):
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("HCCL_BUFFSIZE", raising=False)
    shown = {found.name: found.detail for found in findings.list_variables()}
    assert shown["ASCEND_RT_VISIBLE_DEVICES"] == "0,1"
    assert "HCCL_BUFFSIZE" not in shown


def test_drivers_are_read_from_files(monkeypatch, tmp_path):
    module = tmp_path / "proc/driver/nvidia"
    module.mkdir(parents=True)
    (module / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\nGCC version: 12\n"
    )
    driver = tmp_path / "usr/local/Ascend/driver"
    driver.mkdir(parents=True)
    (driver / "version.info").write_text("Version=25.2.0\nascendhal_version=7.35.23\n")
    monkeypatch.setattr(findings, "ROOT", tmp_path)
    rows = {found.name: found for found in findings.examine_machine()}
    assert (rows["NVIDIA driver"].state, rows["NVIDIA driver"].detail) == ("ok", "535.129.03")
    assert (rows["Ascend driver"].state, rows["Ascend driver"].detail) == ("ok", "25.2.0")
    assert rows["CANN"].state == "absent"


def test_cann_that_is_installed_but_not_active_has_its_command(monkeypatch, tmp_path):
    home = tmp_path / "usr/local/Ascend/cann"
    (home / "x86_64-linux").mkdir(parents=True)
    (home / "x86_64-linux/ascend_toolkit_install.info").write_text("package_name=Ascend-cann-toolkit\nversion=9.1.0\n")
    (home / "set_env.sh").touch()
    for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(findings, "ROOT", tmp_path)
    row = next(found for found in findings.examine_machine() if found.name == "CANN")
    assert (row.state, row.mend) == ("broken", f"source {home}/set_env.sh")


def versions(monkeypatch, **installed):
    """Let these be the packages that are installed."""

    def fake(name):
        try:
            return installed[name.replace("-", "_")]
        except KeyError:
            raise findings.PackageNotFoundError(name) from None

    for module in (findings, ascend):
        monkeypatch.setattr(module, "version", fake)


def test_mindspore_beside_a_numpy_that_it_cannot_use_is_broken(monkeypatch):
    versions(monkeypatch, mindspore="2.10.0", numpy="2.3.1")
    found = findings.examine_package("mindspore")
    assert (found.state, found.mend) == ("broken", "pip install 'numpy<2'")
    versions(monkeypatch, mindspore="2.10.0", numpy="1.26.4")
    assert findings.examine_package("mindspore").state == ("ok" if sys.version_info < (3, 13) else "broken")


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="MindSpore has no wheel for this Python, which comes first")
def test_mindspore_beside_another_cann_is_broken(monkeypatch, tmp_path):
    install_info = tmp_path / "usr/local/Ascend/cann/x86_64-linux/ascend_toolkit_install.info"
    install_info.parent.mkdir(parents=True)
    install_info.write_text("version=8.5.0\n")
    monkeypatch.setattr(findings, "ROOT", tmp_path)
    versions(monkeypatch, mindspore="2.10.0", numpy="1.26.4")
    found = findings.examine_package("mindspore")
    assert (found.state, found.mend) == ("broken", "install CANN 9.1.0")


def test_torch_npu_beside_another_torch_is_broken(monkeypatch):
    versions(monkeypatch, torch="2.14.0+cpu", torch_npu="2.12.0")
    found = findings.examine_package("torch-npu")
    assert found.state == "broken"
    assert found.detail == "torch-npu 2.12.0 goes with torch 2.12.0, but torch 2.14.0+cpu is installed"
    assert found.mend == "pip install torch==2.12.0"


def test_onnxruntime_counts_under_the_names_of_its_builds(monkeypatch):
    versions(monkeypatch, onnxruntime_cann="1.23.0")
    monkeypatch.setattr(findings, "ASK_PROVIDERS", """print('["CANNExecutionProvider", "CPUExecutionProvider"]')""")
    found = findings.examine_package("onnxruntime")
    assert found.detail == "1.23.0 with CANNExecutionProvider, CPUExecutionProvider"


def test_an_absent_npu_has_what_mends_it_in_a_column_of_its_own(monkeypatch, tmp_path):
    versions(monkeypatch, torch="2.12.0", torch_npu="2.12.0")
    monkeypatch.setattr(devices, "ROOT", tmp_path)
    said = ascend.explain_absence(ImportError("libhccl.so"), ascend.find_software(tmp_path, {}))
    monkeypatch.setattr(devices, "ask_child", lambda *arguments, patience: (None, f"--device npu: {said}"))
    found = devices.examine_device("npu", "")
    assert found.state == "absent"
    assert found.detail.startswith("CANN is not found")
    assert found.mend.startswith("install CANN")
    assert f"{found.detail}: {found.mend}" == said
