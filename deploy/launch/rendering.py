"""The file of a job, rendered from the template of its kind."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined

from ehm.deploy.launch.plan import JobPlan
from ehm.deploy.launch.pods import describe_container, describe_pod, list_labels
from ehm.deploy.launch.processes import NodePlace, list_starter_words

__all__ = ["render_job"]

_TEMPLATES = files("ehm.deploy.launch") / "templates"
_NOTICE = 120
"""Seconds before a job's time limit at which Slurm tells it to queue again."""
_SLURM_PLACE = NodePlace(
    nodes="$SLURM_JOB_NUM_NODES",
    rank="$SLURM_NODEID",
    address="$FIRST_NODE",
    port="$PORT",
    own_address="$SLURMD_NODENAME",
    job="$SLURM_JOB_ID",
    is_first="$((SLURM_NODEID == 0))",
)


def render_job(plan: JobPlan, written_by: str) -> str:
    """Return the text of the job's file; ``written_by`` is the command that a comment in it names."""
    environment = Environment(
        loader=FunctionLoader(lambda name: (_TEMPLATES / name).read_text(encoding="utf-8")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["shell"] = shlex.quote
    environment.filters["yaml"] = _dump_yaml
    template = environment.get_template(f"{plan.kind}{'.sbatch' if plan.kind == 'slurm' else '.yaml'}.j2")
    values = _describe_batch(plan) if plan.kind == "slurm" else _describe_pods(plan)
    return template.render(plan=plan, written_by=written_by, **values)


def _describe_batch(plan: JobPlan) -> dict[str, Any]:
    """Return what the template of Slurm shows besides the plan."""
    command = [_quote_variables(list_starter_words(plan, _SLURM_PLACE)), *map(shlex.quote, plan.arguments)]
    return {"options": _list_batch_options(plan), "step_flags": _list_step_flags(plan), "command": " ".join(command)}


def _list_batch_options(plan: JobPlan) -> dict[str, str]:
    """Return the options of ``sbatch``; those of ``--sbatch`` replace ours."""
    nodes = str(plan.nodes) if plan.min_nodes == plan.nodes else f"{plan.min_nodes}-{plan.nodes}"
    options = {"job-name": plan.name, "nodes": nodes, "ntasks-per-node": "1"}
    if plan.device.gres:
        options["gres"] = f"{plan.device.gres}:{plan.per_node}"
    if plan.cpus is None:
        options["exclusive"] = ""  # a task would get one processor
    else:
        options["cpus-per-task"] = str(plan.cpus)
    if plan.memory is not None:
        options["mem"] = plan.memory.removesuffix("i")  # Slurm's G is what Kubernetes calls Gi
    if plan.queue is not None:
        options["partition"] = plan.queue
    if plan.time is not None:
        options["time"] = plan.time
    options |= {"requeue": "", "open-mode": "append", "output": "%x-%j.log", "signal": f"B:USR1@{_NOTICE}"}
    return options | dict(plan.sbatch)


def _list_step_flags(plan: JobPlan) -> list[str]:
    """Return the flags of ``srun``, those of the container among them (NVIDIA's pyxis)."""
    flags = ["--kill-on-bad-exit=1"]
    if plan.cpus is not None:
        flags.append(f"--cpus-per-task={plan.cpus}")  # which srun does not take over from sbatch
    if plan.image is not None:
        flags.append(f"--container-image={plan.image}")
    if plan.volumes:
        mounts = []
        for volume in plan.volumes:
            mounts.append(f"{volume.source}:{volume.path}" + (":ro" if volume.is_read_only else ""))
        flags.append(f"--container-mounts={','.join(mounts)}")
    return flags


def _describe_pods(plan: JobPlan) -> dict[str, Any]:
    """Return what the templates of Kubernetes show besides the plan."""
    metadata: dict[str, Any] = {"name": plan.name}
    if plan.namespace is not None:
        metadata["namespace"] = plan.namespace
    container = describe_container(plan)
    values: dict[str, Any] = {"metadata": metadata, "labels": list_labels(plan)}
    if plan.kind == "kubeflow":
        # a TrainJob says itself what its container runs, and its runtime the rest
        values["trainer"] = {key: container.pop(key) for key in ("command", "args", "resources")}
    values["pod"] = describe_pod(plan, container)
    return values


def _quote_variables(words: Iterable[str]) -> str:
    """Return words for the shell, in which variables are replaced and nothing is split."""
    return " ".join(f'"{word}"' if "$" in word else shlex.quote(word) for word in words)


def _dump_yaml(value: Any) -> str:
    """Return ``value`` as YAML on lines of their own."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000).rstrip("\n")
