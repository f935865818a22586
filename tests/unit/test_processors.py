"""The processors of this process, and the way that OpenMP threads wait, as libraries report it themselves."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from ehm import backends, processors
from ehm.config import DataConfig
from ehm.data import Loader, TrainTransform, open_source
from ehm.data.threads import map_in_threads
from ehm.masking import _parallel
from ehm.processors import (
    WAITING,
    count_available_processors,
    count_physical_cores,
    count_shared_processors,
    prepare_threads,
)

DECIDING = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"]
CHOSEN = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of eight processors whose control groups and cores are files below ``tmp_path``."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(processors, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(processors, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(processors, "_TOPOLOGY", tmp_path / "cpus")
    return tmp_path


def settings():
    return {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_", "KMP_"))}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_threads_sleep_unless_the_environment_says_otherwise(machine):
    prepare_threads()
    assert settings() == CHOSEN == WAITING
    prepare_threads()
    assert settings() == CHOSEN


@pytest.mark.parametrize("name", DECIDING)
def test_an_environment_that_says_how_threads_wait_is_left_as_it_is(machine, name):
    os.environ[name] = "1"
    prepare_threads()
    assert settings() == {name: "1"}


@pytest.mark.parametrize(
    ("files", "own", "allowed"),
    [
        ({}, "0::/", 8),
        ({"cpu.max": "max 100000\n"}, "0::/", 8),
        ({"cpu.max": "200000 100000\n"}, "0::/", 2),
        ({"cpu.max": "150000 100000\n"}, "0::/", 2),
        ({"cpu.max": "10000 100000\n"}, "0::/", 1),
        ({"cpu.max": "6400000 100000\n"}, "0::/", 8),
        ({"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b", 3),
        ({"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "100000 100000\n"}, "0::/a/b", 1),
        ({"cpu.max": "300000 100000\n"}, "0::/the/hosts/path", 3),
        (
            {"cpu,cpuacct/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/cpu.cfs_period_us": "50000\n"},
            "4:cpu,cpuacct:/",
            5,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "1:cpu:/\n0::/", 8),
        ({"cpuset/cpu.cfs_quota_us": "100\n"}, "3:cpuset:/", 8),
        ({"cpu.max": "nonsense\n"}, "0::/", 8),
    ],
)
def test_a_control_group_bounds_the_processors(machine, files, own, allowed):
    write(machine / "own", own)
    for name, text in files.items():
        write(machine / "cgroup" / name, text)
    assert count_available_processors() == allowed
    prepare_threads()
    assert os.environ.get("OMP_NUM_THREADS") == (None if allowed == 8 else str(allowed))


def test_a_number_of_threads_that_is_set_stays(machine):
    write(machine / "own", "0::/")
    write(machine / "cgroup/cpu.max", "200000 100000\n")
    os.environ["OMP_NUM_THREADS"] = "5"
    prepare_threads()
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_processors_that_share_a_core_count_once(machine):
    assert count_physical_cores() == 8  # nothing is known about them
    for number in range(8):
        write(machine / f"cpus/cpu{number}/topology/thread_siblings_list", f"{number % 4},{number % 4 + 4}\n")
    assert count_physical_cores() == 4
    write(machine / "own", "0::/")
    write(machine / "cgroup/cpu.max", "300000 100000\n")
    assert count_physical_cores() == 3


HALVES = [("a", list(range(4))), ("a", list(range(4, 8)))]


@pytest.mark.parametrize(
    ("everyone", "counts"),
    [
        ([("a", list(range(8)))], [8]),
        ([("a", list(range(8)))] * 2, [4, 4]),
        ([("a", list(range(8)))] * 3, [2, 2, 2]),
        ([("a", [0])] * 3, [1, 1, 1]),
        (HALVES, [4, 4]),
        ([*HALVES, ("b", list(range(8)))], [4, 4, 8]),
        ([("a", [0, 1, 2, 3]), ("a", [2, 3]), ("a", [3])], [2, 1, 1]),  # 2 + 1/2 + 1/3, 1/2 + 1/3, 1/3
    ],
)
def test_processes_share_the_processors_that_they_have_in_common(machine, everyone, counts):
    assert [count_shared_processors(everyone, rank) for rank in range(len(everyone))] == counts


def test_a_control_group_is_shared_by_its_processes(machine):
    write(machine / "own", "0::/")
    write(machine / "cgroup/cpu.max", "600000 100000\n")
    assert count_shared_processors(HALVES, 0) == 3


@pytest.fixture
def pinned(monkeypatch):
    """A thread in which a plug-in has opened a device and pinned the thread to one of the machine's processors."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors and a system that binds threads to them")
    monkeypatch.setattr(processors, "_kept", set())
    monkeypatch.setattr(processors, "_pinned_to", set())
    monkeypatch.setattr(_parallel, "_pool", None)  # its threads may run already
    whole = os.sched_getaffinity(0)

    def open_device(device):
        os.sched_setaffinity(0, {min(whole)})

    monkeypatch.setitem(sys.modules, "pinning", SimpleNamespace(backend=open_device))
    monkeypatch.setattr(backends, "list_devices", lambda: {**backends.DEVICES, "pinning": "pinning:backend"})
    # of its own, so that the other tests keep their processors
    with ThreadPoolExecutor(1) as thread:
        thread.submit(backends.get, "pinning").result()
        assert thread.submit(os.sched_getaffinity, 0).result() == {min(whole)}
        yield thread


def test_a_plug_in_that_pins_its_thread_leaves_the_process_its_processors(pinned):
    whole = os.sched_getaffinity(0)
    assert pinned.submit(count_available_processors).result() == count_available_processors()
    pinned.submit(backends.get, "pinning").result()  # a second run in the same process
    assert pinned.submit(count_available_processors).result() == count_available_processors()

    def build_trees():
        seen = []

        def kernel(part):
            seen.append(os.sched_getaffinity(0))

        _parallel.run_over_batch(kernel, np.zeros((8, 1)), entries=10**6, threads=2)
        return seen

    trees = pinned.submit(build_trees).result()
    assert whole in trees  # beside the pinned thread itself
    readers = pinned.submit(lambda: list(map_in_threads(os.sched_getaffinity, [0] * 4, 2))).result()
    assert readers == [whole] * 4


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to look into another process")
def test_data_workers_of_a_pinned_thread_run_everywhere(pinned, images):
    source = open_source(DataConfig(source=str(images)), "train")

    def read_workers_affinity():
        options = {"batch_size": 4, "seed": 0, "shuffle": False, "drop_last": True, "workers": 1}
        with Loader(source, TrainTransform((8, 8)), **options) as loader:
            next(batches := loader.batches(0, 2))
            affinity = os.sched_getaffinity(loader._executor._pools[0]._workers[0].process.pid)
            batches.close()
        return affinity, os.sched_getaffinity(0)

    worker, own = pinned.submit(read_workers_affinity).result()
    assert worker == os.sched_getaffinity(0)
    assert len(own) == 1  # as the plug-in wants it


def test_a_plug_in_that_gives_the_process_several_processors_is_obeyed(monkeypatch):
    monkeypatch.setattr(processors, "_kept", set())
    allowed = set(range(8))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed), raising=False)
    with processors.keep_processors():
        allowed -= {0, 1, 2, 3}
    assert count_available_processors() <= 4
    processors.spread_thread()
    assert processors._list_processors() == {4, 5, 6, 7}


def reported(code, **variables):
    """Return the settings that GNU's OpenMP library reports once ``code`` has loaded it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    said = dict(re.findall(r"(\w+) = '(\w+)'", done.stderr))
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("torch has another OpenMP library here than GNU's, which reports its settings otherwise")
    return said


@pytest.mark.parametrize(
    "code",
    [
        "import ehm.backends.torch",
        "from ehm.cli import main; main(['train', '--device=cpu', '--out=runs', '--set=data.source=nowhere'])",
    ],
    ids=["Python", "command line"],
)
def test_torch_is_loaded_with_threads_that_sleep(code, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="its OpenMP library is asked")
    monkeypatch.chdir(tmp_path)
    assert reported(code)["GOMP_SPINCOUNT"] == "0"


def test_torch_is_loaded_with_what_the_user_chose():
    pytest.importorskip("torch", reason="its OpenMP library is asked")
    assert reported("import ehm.backends.torch", GOMP_SPINCOUNT="77")["GOMP_SPINCOUNT"] == "77"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to look into another process")
def test_data_workers_inherit_it(images):
    source = open_source(DataConfig(source=str(images)), "train")
    options = {"batch_size": 4, "seed": 0, "shuffle": False, "drop_last": True, "workers": 1}
    with Loader(source, TrainTransform((8, 8)), **options) as loader:
        next(batches := loader.batches(0, 2))
        worker = loader._executor._pools[0]._workers[0].process
        with open(f"/proc/{worker.pid}/environ", "rb") as file:
            entries = file.read().decode().split("\0")
        batches.close()
    assert f"OMP_WAIT_POLICY={os.environ['OMP_WAIT_POLICY']}" in entries
    assert "OMP_NUM_THREADS=1" in entries
