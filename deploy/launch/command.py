"""Writing and submitting a job, as a function and as the command ``ehm launch``."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ehm.console import console
from ehm.deploy.launch.devices import find_device
from ehm.deploy.launch.plan import JobPlan, Kind, check_plan, parse_command, parse_pairs
from ehm.deploy.launch.rendering import render_job
from ehm.deploy.launch.volumes import parse_volume
from ehm.errors import BackendError
from ehm.storage.names import make_dns_label
from ehm.storage.writing import write_text

__all__ = ["launch"]

_DEFAULT_OUT = "runs/launch"
_LONGEST_NAME = 40
"""Characters of a job's name: short enough for what clusters append to it."""
_SUBMITTERS = {"slurm": ("sbatch",)}
_KUBERNETES_SUBMITTER = ("kubectl", "apply", "-f")


def launch(
    arguments: Sequence[str],
    *,
    kind: Kind,
    device: str,
    nodes: int = 1,
    min_nodes: int | None = None,
    per_node: int = 1,
    name: str | None = None,
    image: str | None = None,
    volume: Sequence[str] = (),
    env: Sequence[str] = (),
    interface: str | None = None,
    shm: str = "16Gi",
    cpus: int | None = None,
    memory: str | None = None,
    restarts: int = 3,
    queue: str | None = None,
    namespace: str | None = None,
    node_selector: Sequence[str] = (),
    time: str | None = None,
    sbatch: Sequence[str] = (),
    setup: Sequence[str] = (),
    out: str | Path | None = None,
    submit: bool = False,
) -> Path:
    """Write the file of a job that runs ``ehm ARGUMENTS...`` on ``nodes`` machines, and return its path.

    ``arguments`` is a command that can be resumed (train, finetune, tokenizer train) with ``--config`` and ``--out``;
    ``--device`` and ``--resume`` are added, so that a job which starts again goes on from its newest checkpoint.
    ``kind`` is ``slurm`` (a batch file), ``kubeflow`` (a TrainJob of Trainer v2), ``pytorchjob`` (of the operator
    before it) or ``volcano``. The other parameters are the flags that ``ehm launch --help`` explains. ``submit`` hands
    the file to ``sbatch`` or ``kubectl``.

    Raises ConfigError for settings that the cluster would refuse or the run would fail with, and BackendError if the
    job cannot be submitted.
    """
    options = parse_command(arguments)
    cluster_device = find_device(device)
    run = str(options["out"])
    job = make_dns_label(name or Path(run).name, _LONGEST_NAME)
    environment = dict(cluster_device.environment)
    if interface is not None:
        environment |= dict.fromkeys(cluster_device.interface_variables, interface)
    flags = ["--device", device]
    if "resume" not in options:
        flags.append("--resume")
    plan = JobPlan(
        kind=kind,
        name=job,
        arguments=(*arguments, *flags),
        out=run,
        device=cluster_device,
        nodes=nodes,
        min_nodes=nodes if min_nodes is None else min_nodes,
        per_node=per_node,
        image=image,
        volumes=tuple(map(parse_volume, volume)),
        environment=environment | parse_pairs("env", env),
        shm=shm,
        cpus=cpus,
        memory=memory,
        restarts=restarts,
        queue=queue,
        namespace=namespace,
        time=time,
        sbatch=parse_pairs("sbatch", sbatch),
        setup=tuple(setup),
        node_selector=parse_pairs("node-selector", node_selector),
    )
    check_plan(plan, options)
    written_by = f"ehm launch --kind {kind} --nodes {nodes} --per-node {per_node} --device {device} -- ..."
    suffix = "sbatch" if kind == "slurm" else "yaml"
    file = write_text(Path(out or _DEFAULT_OUT) / f"{job}.{suffix}", render_job(plan, written_by))
    console.print(f"Job {job}: {nodes} x {per_node} processes of ehm {shlex.join(plan.arguments)}")
    console.print(f"File: {file}")
    submitter = [*_SUBMITTERS.get(kind, _KUBERNETES_SUBMITTER), str(file)]
    if submit:
        _submit(submitter)
    else:
        console.print(f"Submit it by: {shlex.join(submitter)}")
    return file


def _submit(words: Sequence[str]) -> None:
    """Run the cluster's own command, and print its answer."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BackendError(
            f"--submit: {words[0]} is not on this machine; copy the file to one that has it: {shlex.join(words)}"
        ) from None
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise BackendError(f"--submit: {shlex.join(words)}: {reason}")
    console.print(done.stdout.strip())
