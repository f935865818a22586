"""A job of Slurm on two nodes, whose srun and scontrol are local processes: it fails, queues again and goes on."""

import os
import random
import signal
import socket

import fake_slurm
import numpy as np
import psutil
import pytest
from tiny import RUN, TINY
from waiting import wait_until

from ehm.deploy.launch.command import launch
from ehm.storage.checkpoint import newest_checkpoint, open_checkpoint

SETTINGS = {
    **TINY,
    **RUN,
    "optim.epochs": 40,
    "optim.ema_decay": 0.9,
    "run.checkpoint_every": 1,
    "run.max_steps": 100,
    "watch.every": 0,
}
STEPS = 100
LIMIT = 200
"""Seconds to wait at most for processes that train: they import torch, and may share the machine."""


def train_arguments(images, out):
    settings = [f"--set={key}={value}" for key, value in {**SETTINGS, "data.source": images}.items()]
    return ["train", "--config", "elpv/pretrain", "--out", str(out), *settings]


def job_port():
    """Return a free port among those that the batch file takes, which depend on the job's number."""
    while True:
        port = random.randrange(20000, 29000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def list_processes(state):
    """Return the process that trains on each node."""
    nodes = [psutil.Process(fake_slurm.node_process(state, node)) for node in range(fake_slurm.NODES)]
    return [process for node in nodes for process in node.children()]


@pytest.mark.timeout(600)
def test_a_job_that_fails_and_queues_again_ends_bit_for_bit_like_an_undisturbed_run(images, tmp_path, pair):
    assert "2 processes" in pair.run(*train_arguments(images, tmp_path / "whole"), "--device", "cpu")
    out = tmp_path / "launched"
    file = launch(train_arguments(images, out), kind="slurm", device="cpu", nodes=2, out=tmp_path / "jobs")
    commands = tmp_path / "commands"
    state = tmp_path / "state"
    fake_slurm.install(commands)

    job = fake_slurm.start_job(file, commands, state, job_port())
    wait_until(lambda: newest_checkpoint(out / "checkpoints"), LIMIT)
    # a process that dies: torchrun starts all of them again, on both nodes
    before = list_processes(state)
    before[1].kill()
    wait_until(lambda: len(again := list_processes(state)) == 2 and not {*again} & {*before}, LIMIT)
    assert newest_checkpoint(out / "checkpoints").name < f"step-{STEPS:08d}", "it ended before it could be disturbed"
    # the time limit: the batch file is told, and queues the job again, which takes it off the machines
    os.kill(job.pid, signal.SIGUSR1)
    assert job.wait(timeout=60) != 0
    assert (state / "requeued").read_text().startswith("requeue ")

    job = fake_slurm.start_job(file, commands, state, job_port(), restarts=1)
    assert job.wait(timeout=300) == 0, "".join(path.read_text() for path in state.glob("*.log"))
    said = (state / "node-0.log").read_text() + (state / "node-1.log").read_text()
    assert said.count("continuing step-") == 1

    whole = open_checkpoint(tmp_path / "whole")
    launched = open_checkpoint(out)
    assert launched.metadata["step"] == whole.metadata["step"] == STEPS
    for ours, theirs in ((launched.state.model, whole.state.model), (launched.state.optimizer, whole.state.optimizer)):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
