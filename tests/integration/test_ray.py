"""Bulk prediction on a Ray of two workers, one of which is killed: nothing is lost, and nothing is there twice."""

import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from made_bundles import make_bundle
from PIL import Image
from pyarrow import parquet

import ehm

IMAGES = 36
PART = 3


@pytest.fixture
def photographs(tmp_path):
    """Photographs that take a while to decode, so that a worker is killed in the middle of a part."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (900, 900, 3), np.uint8)
    for number in range(IMAGES):
        Image.fromarray(np.roll(noise, number) // (1 + number % 5)).save(folder / f"{number:02d}.png", compress_level=1)
    return folder


def list_workers(process):
    """Return the processes of Ray that hold a network."""
    found = []
    for child in process.children(recursive=True):
        try:
            title = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and "Map" in title:
            found.append(child)
    return found


@pytest.mark.timeout(600)
def test_a_killed_worker_loses_nothing_and_repeats_nothing(photographs, tmp_path):
    bundle = make_bundle(tmp_path / "bundle", outputs=("logits", "features")).path
    out = tmp_path / "out"
    line = [sys.executable, "-m", "ehm.cli", "predict", str(photographs), "--bundle", str(bundle), "--out", str(out)]
    line += ["--part-size", str(PART), "--device", "cpu", "--workers", "2", "--ray", "local"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    parts = IMAGES // PART
    killed_after = None
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(line, env=environment, stdout=said, stderr=subprocess.STDOUT) as job,
    ):
        while job.poll() is None:
            done = len(list(out.glob("part-*.parquet")))
            if done and killed_after is None:
                workers = list_workers(psutil.Process(job.pid))
                # the first may finish a part before the second has started
                if len(workers) == 2:
                    workers[0].kill()
                    killed_after = done
            time.sleep(0.02)
    text = (tmp_path / "said").read_text()
    assert job.returncode == 0, text
    assert killed_after is not None, "there were never two workers"
    assert killed_after < parts - 2, "too late to kill a worker"
    assert f"{parts} parts of {PART} images, 0 of them done" in text
    assert f"{IMAGES} images in" in text
    assert not list(out.glob(".*"))
    ehm.predict_source(photographs, bundle=bundle, out=tmp_path / "alone", part_size=PART, device="cpu", cpus=1)
    assert parquet.read_table(out).equals(parquet.read_table(tmp_path / "alone"))
