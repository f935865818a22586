"""Devices of other packages in `ehm doctor`, and its comparison of their attention with NumPy's."""

from pathlib import Path

import numpy as np
import pytest

from ehm import backends
from ehm.doctor import attention, collect_findings, devices, doctor
from ehm.doctor.attention import TOLERANCE, measure_attention
from ehm.errors import BackendError
from ehm.reference import vit as reference

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

class Batch:
    def __init__(self, inner, how):
        self.inner, self.how = inner, how

    def compute_similarity(self):
        return (HOW[self.how](part) for part in self.inner.compute_similarity())

class Learner:
    def __init__(self, inner, how):
        self.inner, self.how = inner, how

    def prepare_batch(self, images):
        return Batch(self.inner.prepare_batch(images), self.how)

    def __getattr__(self, name):
        return getattr(self.inner, name)

class Backend:
    name, processes = "strange", ALONE

    def __init__(self, how):
        self.how = how

    def describe_device(self):
        return DeviceInfo("strange", "a strange device", 2, 2**30, ("float32",))

    def create_learner(self, config):
        return Learner(backends.get("cpu").create_learner(config), self.how)

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
    difference = measure_attention(backends.get("strange"), "float32").error
    assert difference is None if how == "nan" else difference > 5 * TOLERANCE


@pytest.mark.parametrize(("dtype", "off"), [("float32", 1e-5), ("bfloat16", TOLERANCE / 2), ("float16", TOLERANCE / 2)])
def test_rounding_is_inside_of_it(dtype, off):
    """In float32 the arithmetic of the reference in NumPy is torch's, and timm's blocks are those that compute."""
    assert 0 < measure_attention(backends.get("cpu"), dtype).error < off


@pytest.mark.parametrize("left_out", ["pos_embed", "blocks.0.mlp.fc2.weight", "blocks.1.attn.qkv.weight", "cls_token"])
def test_every_part_of_the_model_counts(monkeypatch, left_out):
    """Without one of them the reference is another model's: the comparison sees further than uniform attention."""
    real = reference.compute_similarity

    def similarity(config, model, images):
        return real(config, model | {left_out: np.zeros_like(model[left_out])}, images)

    monkeypatch.setattr(reference, "compute_similarity", similarity)
    assert measure_attention(backends.get("cpu"), "float32").error > 1e-3


def test_it_looks_at_attention_that_is_far_from_uniform(monkeypatch):
    """Else a uniform one would hardly differ: 17 tokens, so that a uniform row has 1/17 everywhere."""
    seen = []
    real = reference.compute_similarity
    monkeypatch.setattr(reference, "compute_similarity", lambda *arguments: seen.append(real(*arguments)) or seen[-1])
    measure_attention(backends.get("cpu"), "float32")
    (part,) = seen
    assert part.shape == (2, 16, 16)
    assert np.abs(part - 1 / 17).max() > 1 / 17


def test_a_device_of_another_package_is_a_row_that_names_it(strange):
    strange("right")
    found = next(row for row in collect_findings("strange") if row.kind == "device")
    assert found.state == "ok", found.detail
    assert found.detail.startswith("2 x a strange device, 1.0 GiB; float32")
    assert "by strange:backend" in found.detail
    assert "attention right within" in found.detail
    assert found.facts["attention"]["float32"] < 1e-5


def test_uniform_attention_breaks_a_device(strange, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setattr(devices, "ask_child", lambda code, name, patience: (devices.describe_device(name), ""))
    strange("uniform")
    assert doctor(device="strange") == 1
    text = capsys.readouterr().out
    assert "attention is wrong: off by " in text
    assert "in float32, where rounding stays below 0.1" in text


def test_the_simulated_npu_is_a_device_like_a_real_one(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "simulated"))
    found = next(row for row in collect_findings("npu") if row.kind == "device")
    assert found.state == "ok", found.detail
    assert "(simulated)" in found.detail
    assert set(found.facts["attention"]) == {"bfloat16", "float32", "float16"}
    assert max(found.facts["attention"].values()) < TOLERANCE / 2


def test_two_packages_that_claim_one_name_are_a_row(monkeypatch):
    def fails():
        raise BackendError("device cpu is claimed twice")

    monkeypatch.setattr(backends, "list_devices", fails)
    monkeypatch.setattr(devices, "ASK_DEVICE", "import sys; sys.exit('--device: none')")
    rows = {found.name: found for found in collect_findings()}
    assert (rows["other packages"].state, rows["other packages"].detail) == ("broken", "device cpu is claimed twice")
    assert {"cpu", "cuda", "npu"} <= set(rows)


def test_the_time_of_compiling_is_what_a_first_pass_takes_longer_than_the_next(monkeypatch):
    """By a clock that the test sets: 7 seconds for the first pass, and 2 for the second."""
    clock = iter([100.0, 107.0, 200.0, 202.0])
    monkeypatch.setattr(attention, "perf_counter", lambda: next(clock))
    assert measure_attention(backends.get("cpu"), "float32").compile_seconds == 5.0


def test_compiling_is_mentioned_if_it_takes_longer_than_to_load_kernels():
    assert devices._describe_compiling({"float32": 0.1}) == ""
    assert "a graph of two blocks compiles in 5.0 s" in devices._describe_compiling({"float32": 0.1, "float16": 5.0})
