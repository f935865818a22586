"""A run that is killed for good (SIGKILL), again and again, ends with the weights of one that never was."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny import TINY

from ehm.storage.checkpoint import newest_checkpoint, open_checkpoint

SETTINGS = {
    **TINY,
    "optim.batch_size": 4,
    "optim.epochs": 30,
    "optim.warmup_epochs": 1,
    "optim.base_lr": 0.05,
    "optim.ema_decay": 0.9,
    "data.workers": 1,
    "run.log_every": 5,
    "run.checkpoint_every": 0.5,
    "run.trackers": "[]",
}


def command(images, out, *more):
    settings = [f"--set={key}={value}" for key, value in {**SETTINGS, "data.source": images}.items()]
    return [sys.executable, "-m", "ehm.cli", "train", "--device", "cpu", "--out", str(out), *settings, *more]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def kill_when(happened, images, out):
    """Start or resume the run, kill it the moment that ``happened`` says so; False if it ended before."""
    process = subprocess.Popen(
        command(images, out, "--resume") if (out / "config.yaml").exists() else command(images, out),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 120
        while not happened() and time.monotonic() < deadline:
            if process.poll() is not None:
                assert process.returncode == 0, process.stderr.read().decode()
                return False
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        return True
    finally:
        process.wait()
        process.stderr.close()


@pytest.mark.timeout(600)
def test_killed_run_ends_bit_for_bit_like_an_undisturbed_one(images, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(images, whole), env=ENVIRONMENT, check=True, capture_output=True)

    folder = killed / "checkpoints"

    def writing():
        return any(folder.glob(".step-*/model.safetensors"))

    def reached(step):
        return lambda: (newest := newest_checkpoint(folder)) is not None and newest.name >= f"step-{step:08d}"

    assert kill_when(writing, images, killed)  # in the middle of the very first write
    debris = list(folder.glob(".step-*"))
    assert kill_when(reached(20), images, killed)
    assert kill_when(writing, images, killed)
    debris += list(folder.glob(".step-*"))
    assert debris, "no kill hit a write: the test does not prove what it should"
    subprocess.run(command(images, killed, "--resume"), env=ENVIRONMENT, check=True, capture_output=True)

    opened = open_checkpoint(whole)
    first = opened.state
    meta = opened.metadata
    opened = open_checkpoint(killed)
    second = opened.state
    again = opened.metadata
    assert meta["step"] == again["step"] == 90
    for ours, theirs in ((first.model, second.model), (first.optimizer, second.optimizer)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert not list(folder.glob(".step-*"))
    whole_lines, killed_lines = ((out / "metrics.jsonl").read_text().count("\n") for out in (whole, killed))
    assert whole_lines == killed_lines
