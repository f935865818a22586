"""Stand-ins for srun and scontrol: the two nodes of a job are two groups of processes on this machine."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

NODES = 2
_PROGRAM = """#!{python}
import sys
sys.path.insert(0, {folder!r})
import fake_slurm
sys.exit(fake_slurm.{function}(sys.argv[1:]))
"""


def install(folder):
    """Write the two commands into ``folder``, for PATH."""
    folder.mkdir()
    for name in ("srun", "scontrol"):
        program = folder / name
        program.write_text(
            _PROGRAM.format(python=sys.executable, folder=str(Path(__file__).parent), function=f"run_{name}")
        )
        program.chmod(0o755)


def start_job(batch_file, commands, state, port, restarts=0):
    """Start a batch file as Slurm would; what the nodes print goes to files in ``state``."""
    environment = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "FAKE_SLURM_STATE": str(state),
        "SLURM_JOB_ID": str(port - 20000),  # of which the batch file makes the port
        "SLURM_JOB_NUM_NODES": str(NODES),
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    state.mkdir(exist_ok=True)
    return subprocess.Popen(["bash", str(batch_file)], env=environment, start_new_session=True)


def node_process(state, node):
    """Return the id of the process that leads a node's group."""
    return int((state / f"node-{node}.pid").read_text())


def run_srun(arguments):
    """Run the command on every node and return the worst status; a node that fails ends the others."""
    while arguments[0].startswith("--"):
        arguments.pop(0)
    state = Path(os.environ["FAKE_SLURM_STATE"])
    nodes = []
    for node in range(NODES):
        own = {"SLURM_NODEID": str(node), "SLURMD_NODENAME": "127.0.0.1"}
        with (state / f"node-{node}.log").open("a") as log:
            process = subprocess.Popen(
                arguments, env={**os.environ, **own}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        (state / f"node-{node}.pid").write_text(str(process.pid))
        nodes.append(process)
    while any(node.poll() is None for node in nodes):
        if any(node.poll() for node in nodes):
            end_nodes(state)
        time.sleep(0.05)
    return max(abs(node.returncode) for node in nodes)


def run_scontrol(arguments):
    """Name the nodes of the job, or take the job off the machines, as before it is queued again."""
    if arguments[:2] == ["show", "hostnames"]:
        print("127.0.0.1\n" * NODES, end="")
        return 0
    state = Path(os.environ["FAKE_SLURM_STATE"])
    (state / "requeued").write_text(" ".join(arguments))
    end_nodes(state)
    return 0


def end_nodes(state):
    """Kill the processes of all nodes for good, as a node that fails would end them.

    They are known by their environment: torchrun's workers are in groups of their own, and outlive a torchrun that has
    been killed, while Slurm ends whatever a job has started.
    """
    for process in psutil.process_iter():
        # others may have ended by now, or belong to another user
        with suppress(psutil.Error):
            environment = process.environ()
            if environment.get("FAKE_SLURM_STATE") == str(state) and "SLURM_NODEID" in environment:
                process.kill()
