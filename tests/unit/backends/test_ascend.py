"""The explanation of an Ascend NPU that torch does not see, on trees of files like those that CANN writes."""

import os
import subprocess
import sys

import pytest

from ehm.backends import ascend
from ehm.backends.ascend import explain_absence, find_mismatch, find_software
from ehm.backends.ascend_releases import MINDSPORE, PAIRS, find_pair
from ehm.installation import build_install_command


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A machine on which all is well: packages, CANN 9.1.0 that is active, a driver and one NPU."""
    Host = type("Host", (), {})
    machine = Host()
    machine.root, machine.packages = tmp_path, {"torch": "2.12.0+cpu", "torch-npu": "2.12.0"}
    machine.cann = tmp_path / "usr/local/Ascend/cann-9.1.0"
    machine.environ = {"ASCEND_HOME_PATH": str(machine.cann)}
    write(
        machine.cann / "x86_64-linux/ascend_toolkit_install.info", "package_name=Ascend-cann-toolkit\nversion=9.1.0\n"
    )
    write(machine.cann / "set_env.sh", "")
    write(tmp_path / "usr/local/Ascend/driver/version.info", "Version=25.2.0\nascendhal_version=7.35.23\n")
    write(tmp_path / "dev/davinci0", "")
    write(tmp_path / "dev/davinci_manager", "")

    def version(name):
        if name not in machine.packages:
            raise ascend.PackageNotFoundError(name)
        return machine.packages[name]

    monkeypatch.setattr(ascend, "version", version)
    machine.explain = lambda error=None: explain_absence(error, find_software(machine.root, machine.environ))
    return machine


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_all_of_it_is_found(host):
    found = find_software(host.root, host.environ)
    assert (found.torch, found.torch_npu) == ("2.12.0+cpu", "2.12.0")
    assert (found.cann, found.cann_home, found.active) == ("9.1.0", host.cann, True)
    assert (found.driver, found.nodes, found.hidden) == ("25.2.0", (str(host.root / "dev/davinci0"),), ())
    assert ascend.find_problem(found) is None


def test_when_all_is_there_the_error_speaks(host):
    said = host.explain(ImportError("libfoo.so: undefined symbol\nand much more"))
    assert said.endswith("importing torch_npu fails: libfoo.so: undefined symbol")
    assert "torch-npu 2.12.0, CANN 9.1.0 and driver 25.2.0" in said


def test_when_all_is_there_and_nothing_failed_npu_smi_knows(host):
    assert "npu-smi info" in host.explain()
    host.environ["ASCEND_RT_VISIBLE_DEVICES"] = "9"
    assert host.explain().endswith("ASCEND_RT_VISIBLE_DEVICES=9 may hide it")


def test_without_torch_npu_it_names_the_pair_of_the_torch_that_is_there(host):
    host.packages = {"torch": "2.9.0"}
    command = f"{build_install_command('npu')} torch==2.9.0 torch-npu==2.9.0.post6"
    assert host.explain() == f"torch-npu is not installed: {command}, which go with CANN 9.1.0"


def test_for_a_torch_without_a_pair_it_names_the_newest_pair_and_says_so(host):
    host.packages = {"torch": "2.14.0"}
    said = host.explain()
    assert "torch==2.12.0 torch-npu==2.12.0.post2, which go with CANN 9.1.0" in said
    assert "no pair is published for torch 2.14.0" in said


@pytest.mark.parametrize(
    ("torch", "torch_npu", "command"),
    [
        ("2.14.0", "2.12.0", "torch==2.12.0"),
        ("2.12.0", "2.14.0.post1", "torch==2.14.0"),
        (None, "2.9.0", "torch==2.9.0"),
    ],
)
def test_torch_and_torch_npu_of_two_releases(host, torch, torch_npu, command):
    host.packages = {"torch-npu": torch_npu} | ({"torch": torch} if torch else {})
    assert host.explain(ImportError("undefined symbol")).endswith(f": pip install {command}")


def test_without_cann_it_says_which_one_goes_with_torch_npu(host, tmp_path):
    host.root, host.environ = tmp_path / "empty", {}
    said = host.explain(ImportError("libhccl.so: cannot open shared object file"))
    assert said.startswith("CANN is not found")
    assert "torch-npu 2.12.0 goes with CANN 9.1.0" in said


def test_for_a_torch_npu_newer_than_the_table_it_says_where_the_table_ends(host, tmp_path):
    host.root, host.environ = tmp_path / "empty", {}
    host.packages = {"torch": "2.14.0", "torch-npu": "2.14.0"}
    assert "end at torch-npu 2.12.0.post2, torch 2.12.0 and CANN 9.1.0" in host.explain()


@pytest.mark.parametrize("layout", ["cann", "ascend-toolkit/latest"])
def test_cann_that_is_not_active_has_its_script(host, layout):
    """Since 8.5 the script lies in CANN's folder, before it lay beside ``latest``."""
    home = host.root / "usr/local/Ascend" / layout
    write(home / "aarch64-linux/ascend_toolkit_install.info", "version=9.1.0\n")
    script = home / "set_env.sh" if layout == "cann" else home.parent / "set_env.sh"
    write(script, "")
    host.environ = {}
    assert host.explain() == f"CANN 9.1.0 in {home} is not active in this shell: source {script}"


def test_another_cann_says_what_goes_together_and_the_nearer_way_out(host):
    write(host.cann / "x86_64-linux/ascend_toolkit_install.info", "version=8.5.0\n")
    host.packages = {"torch": "2.9.0", "torch-npu": "2.9.0.post6"}
    said = host.explain()
    assert said.startswith("torch-npu 2.9.0.post6, torch 2.9.0 and CANN 9.1.0 go together, but CANN 8.5.0 is installed")
    assert said.endswith(": pip install torch-npu==2.9.0")
    host.packages = {"torch": "2.12.0", "torch-npu": "2.12.0"}
    assert host.explain().endswith(": install CANN 9.1.0")


@pytest.mark.parametrize("number", ["9.1.0", "9.1.0-beta.3", "9.1.0.1"])
def test_builds_of_a_release_are_that_release(host, number):
    write(host.cann / "x86_64-linux/ascend_toolkit_install.info", f"version={number}\n")
    assert find_mismatch(find_software(host.root, host.environ)) is None


def test_without_a_driver(host):
    (host.root / "usr/local/Ascend/driver/version.info").unlink()
    said = host.explain()
    assert said.startswith("the Ascend driver is not found")
    assert "version.info" in said.partition(": ")[2]


def test_a_driver_without_a_device_asks_for_those_of_a_container(host):
    (host.root / "dev/davinci0").unlink()
    said = host.explain()
    assert said.startswith("driver 25.2.0 is there, but no NPU")
    for name in ("davinci0", "davinci_manager", "devmm_svm", "hisi_hdc"):
        assert f"--device /dev/{name}" in said


def test_a_device_that_this_user_may_not_open(host, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert host.explain().endswith("make the user a member of the group HwHiAiUser")


def test_the_table_of_pairs_is_in_order():
    """:func:`find_pair` takes the first row that is not later: the newest first within a release of torch."""
    assert all(pair.torch_npu.startswith(pair.torch) for pair in PAIRS)
    order = [
        (pair.torch, int(pair.torch_npu.rpartition("post")[2]) if "post" in pair.torch_npu else 0) for pair in PAIRS
    ]
    for torch in {torch for torch, _ in order}:
        posts = [post for each, post in order if each == torch]
        assert posts == sorted(set(posts), reverse=True)


@pytest.mark.parametrize(
    ("torch_npu", "cann"),
    [
        ("2.12.0", "9.1.0"),
        ("2.12.0.post3", "9.1.0"),
        ("2.9.0.post2", "9.0.0"),
        ("2.9.0.post3", "9.0.0"),
        ("2.9.0", "8.5.0"),
        ("2.9.0.post2.dev20260724", "9.0.0"),
        ("2.9.0.post2+cpu", "9.0.0"),
    ],
)
def test_a_pair_is_found_for_the_releases_between_rows_too(torch_npu, cann):
    assert find_pair(torch_npu).cann == cann


@pytest.mark.parametrize("torch_npu", ["2.14.0", "2.13.0rc1", "2.5.1.post1"])
def test_no_pair_is_made_up(torch_npu):
    assert find_pair(torch_npu) is None


@pytest.mark.parametrize(("mindspore", "cann"), [("2.10.0", "8.5.0"), ("2.9.0", "9.1.0")])
def test_mindspore_beside_another_cann_says_which_goes_with_it(host, mindspore, cann):
    write(host.cann / "x86_64-linux/ascend_toolkit_install.info", f"version={cann}\n")
    said = str(ascend.find_mindspore_mismatch(mindspore, find_software(host.root, host.environ)))
    assert said.startswith(f"mindspore {mindspore} goes with CANN {MINDSPORE[mindspore]}, but CANN {cann} is")
    assert said.endswith(f": install CANN {MINDSPORE[mindspore]}")


def test_mindspore_and_its_own_cann_an_unknown_one_and_none_are_no_mismatch(host, tmp_path):
    found = find_software(host.root, host.environ)
    assert ascend.find_mindspore_mismatch("2.10.0", found) is None
    assert ascend.find_mindspore_mismatch("2.8.0", found) is None  # no source names its CANN
    assert ascend.find_mindspore_mismatch("2.10.0.post1", found) is None
    assert "goes with CANN 8.3.RC1" in str(ascend.find_mindspore_mismatch("2.7.1.post1", found))
    assert ascend.find_mindspore_mismatch("2.9.0", find_software(tmp_path / "empty", {})) is None


def test_asking_imports_no_framework():
    code = "import sys; from ehm.backends.ascend import explain_absence; explain_absence(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy"} & set(done.stdout.split())
