"""Fixtures that several folders share, and how hypothesis chooses its examples."""

import gc
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

from ehm import backends
from ehm.config import TokenizerConfig
from ehm.storage.checkpoint import save_checkpoint

# "repeatable" takes the same examples every time, so that a check of a change fails by that change alone; "exploring"
# takes new ones. `make test` asks for the first by --hypothesis-profile, which wins over what is loaded here.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("exploring", derandomize=False, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable" if os.environ.get("CI") else "exploring")

# torch 2.14 keeps compiled code without noting the instructions that ATEN_CPU_CAPABILITY admits, and runs code of wider
# vectors under a narrower setting, which computes nonsense. So a run with that setting has a cache of its own.
if "ATEN_CPU_CAPABILITY" in os.environ:
    cache = f"torchinductor-{os.environ['ATEN_CPU_CAPABILITY']}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), cache))


def pytest_addoption(parser):
    parser.addoption(
        "--full", action="store_true", help="run what only changes of a backend need, too (the marker full_for)"
    )


@pytest.fixture
def images(tmp_path):
    """A folder of twelve small pictures: smooth colour gradients, so that patches differ."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        corners.resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture
def stripes(tmp_path):
    """48 small pictures of two classes that a small network learns at once: stripes across, and stripes down."""
    rng = np.random.default_rng(0)
    for name in ("across", "down"):
        folder = tmp_path / "stripes" / name
        folder.mkdir(parents=True)
        for index in range(24):
            wave = np.sin(np.arange(32) * rng.uniform(0.9, 1.4) + rng.uniform(0, 6))
            pattern = np.broadcast_to(wave[:, None] if name == "across" else wave[None], (32, 32))
            colour = rng.uniform(0.5, 1, 3)
            pixels = 127 + 100 * pattern[..., None] * colour + rng.normal(0, 10, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:02d}.png")
    return tmp_path / "stripes"


@pytest.fixture
def acl(monkeypatch):
    """The simulated pyACL, which nothing has used yet; after the test nothing of it is left."""
    from ehm.deploy.predict.ascend_device import close_devices

    spec = importlib.util.spec_from_file_location("acl", Path(__file__).parent / "simulated/acl.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "acl", module)
    spec.loader.exec_module(module)
    yield module
    module.fail.clear()
    gc.collect()
    close_devices()
    assert module.live() == {}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """An untrained tokenizer of visual tokens, where ehm tokenizer train would leave it."""
    device = "cpu" if importlib.util.find_spec("torch") else "mindspore:cpu"
    config = TokenizerConfig(vocabulary=16, width=8)
    meta = {"kind": "tokenizer", "step": 0, "epoch": 0, "config": config.model_dump(mode="json")}
    run = tmp_path_factory.mktemp("tokenizer")
    save_checkpoint(run / "checkpoints", backends.get(device).create_tokenizer(config).state(), meta)
    return run
