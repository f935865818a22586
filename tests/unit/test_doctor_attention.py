"""Devices of other packages in `ehm doctor`, and its comparison of their attention with the CPU's."""

from pathlib import Path

import numpy as np
import pytest

from ehm import backends
from ehm.doctor import devices, doctor, examine
from ehm.doctor.attention import TOLERANCE, compare
from ehm.errors import BackendError

STRANGE = '''
"""A device of another package: the CPU, but for what it does to similarities."""
import os
import numpy as np
from ehm import backends
from ehm.backends.base import ALONE, DeviceInfo

HOW = {
    "right": lambda part: part,
    "uniform": lambda part: np.full_like(part, 1 / part.shape[1]),
    "nan": lambda part: part * np.nan,
    "shuffled": lambda part: part[:, ::-1],
}

class Learner:
    def __init__(self, inner, how):
        self.inner, self.how = inner, how

    def similarity(self, images):
        return (HOW[self.how](part) for part in self.inner.similarity(images))

    def __getattr__(self, name):
        return getattr(self.inner, name)

class Backend:
    name, processes = "strange", ALONE

    def __init__(self, how):
        self.how = how

    def info(self):
        return DeviceInfo("strange", "a strange device", 2, 2**30, ("float32",))

    def learner(self, config):
        return Learner(backends.get("cpu").learner(config), self.how)

def backend(device):
    return Backend(os.environ["STRANGE"])
'''


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """Install the package; gives the function that says how it computes."""
    (tmp_path / "strange.py").write_text(STRANGE)
    info = tmp_path / "strange-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ehm.backends]\nstrange = strange:backend\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda how: monkeypatch.setenv("STRANGE", how)


@pytest.mark.parametrize("how", ["uniform", "nan", "shuffled"])
def test_attention_that_is_wrong_is_outside_the_tolerance(strange, how):
    strange(how)
    difference = compare(backends.get("strange"), backends.get("cpu"), "float32")
    assert difference is None if how == "nan" else difference > 5 * TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rounding_is_inside_of_it(dtype):
    difference = compare(backends.get("cpu"), backends.get("cpu"), dtype)
    assert difference <= TOLERANCE / 2
    assert (difference == 0) == (dtype == "float32")


def test_it_looks_at_attention_that_is_far_from_uniform(monkeypatch):
    """Else a uniform one would hardly differ: 17 tokens, so that a uniform row has 1/17 everywhere."""
    seen = []
    learner = backends.get("cpu").learner

    class Spy:
        def learner(self, config):
            made = learner(config)
            real = made.similarity
            made.similarity = lambda images: [seen.append(part) or part for part in real(images)]
            return made

    compare(Spy(), Spy(), "float32")
    for part in seen:
        assert np.abs(part - 1 / 17).max() > 1 / 17


def test_a_device_of_another_package_is_a_row_that_names_it(strange):
    strange("right")
    found = next(row for row in examine("strange") if row.kind == "device")
    assert found.state == "ok", found.detail
    assert found.detail.startswith("2 x a strange device, 1.0 GiB; float32")
    assert "by strange:backend" in found.detail
    assert "attention as on the CPU" in found.detail
    assert found.facts["attention"] == {"float32": 0.0}


def test_uniform_attention_breaks_a_device(strange, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setattr(devices, "ask", lambda code, name: (devices.answer(name), ""))
    strange("uniform")
    assert doctor(device="strange") == 1
    text = capsys.readouterr().out
    assert "attention is not the CPU's: off by " in text
    assert "in float32, where rounding stays below 0.1" in text


def test_the_simulated_npu_is_a_device_like_a_real_one(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "simulated"))
    found = next(row for row in examine("npu") if row.kind == "device")
    assert found.state == "ok", found.detail
    assert "(simulated)" in found.detail
    assert set(found.facts["attention"]) == {"bfloat16", "float32", "float16"}
    assert max(found.facts["attention"].values()) < TOLERANCE / 2


def test_without_a_cpu_to_compare_with_the_device_still_counts(monkeypatch):
    said = {
        "memory_bytes": None,
        "versions": {},
        "count": 1,
        "description": "x",
        "dtypes": ["float32"],
        "attention": {},
    }
    monkeypatch.setattr(devices, "ask", lambda *arguments: ({**said, "unchecked": "torch is not installed"}, ""))
    found = devices.device("strange", "strange:backend")
    assert (found.state, found.detail.rpartition("; ")[2]) == ("ok", "attention not compared: torch is not installed")


def test_two_packages_that_claim_one_name_are_a_row(monkeypatch):
    def fails():
        raise BackendError("device cpu is claimed twice")

    monkeypatch.setattr(backends, "devices", fails)
    monkeypatch.setattr(devices, "ASK_DEVICE", "import sys; sys.exit('--device: none')")
    rows = {found.name: found for found in examine()}
    assert (rows["other packages"].state, rows["other packages"].detail) == ("broken", "device cpu is claimed twice")
    assert {"cpu", "cuda", "npu"} <= set(rows)
