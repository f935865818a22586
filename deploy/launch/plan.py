"""A job before it is written: its checked settings, and the command of ehm that every process of it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ehm.cli import build_parser
from ehm.config import TrainConfig, load_config
from ehm.config.loading import shipped_configs
from ehm.deploy.launch.devices import ClusterDevice
from ehm.deploy.launch.volumes import Volume, find_volume
from ehm.errors import ConfigError

__all__ = ["JobPlan", "Kind", "check_plan", "parse_command", "parse_pairs"]

Kind = Literal["slurm", "kubeflow", "pytorchjob", "volcano"]
_ELASTIC = ("slurm", "pytorchjob")
"""Kinds whose jobs may start with fewer nodes than they ask for."""
_RESUMABLE = ("train", "finetune", "tokenizer")
"""Commands that go on from a checkpoint."""
_NEEDED = {
    "config": "a file or a name that ehm configs lists",
    "out": "a folder that all machines share",
}
"""Flags that a launched command must have, and what each takes."""


@dataclass(frozen=True)
class JobPlan:
    """The settings of a job; ``arguments`` are the whole command of ehm, and ``out`` the run's folder in it.

    ``nodes`` machines with ``per_node`` processes each, one for a device; ``min_nodes`` are enough to start. ``cpus``
    and ``memory`` are those of a machine. ``restarts`` counts how often processes that fail are started again.
    """

    kind: Kind
    name: str
    arguments: tuple[str, ...]
    out: str
    device: ClusterDevice
    nodes: int
    min_nodes: int
    per_node: int
    image: str | None
    volumes: tuple[Volume, ...]
    environment: Mapping[str, str]
    shm: str
    cpus: int | None
    memory: str | None
    restarts: int
    queue: str | None
    namespace: str | None
    time: str | None
    sbatch: Mapping[str, str]
    setup: tuple[str, ...]
    node_selector: Mapping[str, str]


def parse_command(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse a command of ehm as ``ehm`` itself would, and return its flags by name.

    Raises ConfigError for a command that cannot be resumed, or does not say where its configuration and its run are.
    """
    options = vars(build_parser(arguments[:1]).parse_args(list(arguments)))
    command = options["command"]
    if command not in _RESUMABLE:
        raise ConfigError(
            f"-- {command}: a cluster may stop a job at any moment; launch what can be resumed: train, finetune or "
            "tokenizer train"
        )
    if "device" in options:
        raise ConfigError(f"-- {command} --device {options['device']}: belongs before the --; the cluster needs it too")
    for flag, advice in _NEEDED.items():
        if flag not in options:
            raise ConfigError(f"-- {command}: a job that starts again has to find its run; add --{flag}, {advice}")
    return options


def parse_pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """Read ``KEY=VALUE`` of a flag that can be repeated."""
    pairs = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not key or not sign:
            raise ConfigError(f"--{flag} {text}: expected KEY=VALUE")
        pairs[key] = value
    return pairs


def check_plan(plan: JobPlan, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for settings that a cluster would refuse, or a run would fail with hours later."""
    if plan.kind not in get_args(Kind):
        raise ConfigError(f"--kind {plan.kind}: known are {', '.join(get_args(Kind))}")
    _check_count("nodes", plan.nodes, 1)
    _check_count("per-node", plan.per_node, 1)
    _check_count("restarts", plan.restarts, 0)
    if not 1 <= plan.min_nodes <= plan.nodes:
        raise ConfigError(f"--min-nodes {plan.min_nodes}: expected 1 to {plan.nodes}, the value of --nodes")
    if plan.min_nodes < plan.nodes and plan.kind not in _ELASTIC:
        raise ConfigError(
            f"--min-nodes: a job of kind {plan.kind} starts with all its nodes; slurm and pytorchjob can do with fewer"
        )
    if plan.kind == "pytorchjob" and plan.device.starter == "msrun":
        raise ConfigError(f"--kind pytorchjob: runs torch alone; kubeflow and volcano run --device {plan.device.name}")
    if plan.kind == "slurm":
        _check_slurm(plan)
    else:
        _check_pod(plan, options)
    if options["command"] == "train":
        _check_batches(plan, options)


def _check_count(flag: str, count: int, least: int) -> None:
    if count < least:
        raise ConfigError(f"--{flag} {count}: expected at least {least}")


def _check_slurm(plan: JobPlan) -> None:
    if plan.volumes and plan.image is None:
        raise ConfigError("--volume: needs --image; without a container, all paths are those of the machines")
    for volume in plan.volumes:
        if not volume.is_host_folder:
            raise ConfigError(
                f"--volume {volume.source}:{volume.path}: Slurm mounts folders of its machines: /FOLDER:/PATH"
            )
    if plan.namespace is not None or plan.node_selector:
        raise ConfigError("--namespace and --node-selector: are for Kubernetes; --sbatch sets Slurm's own options")


def _check_pod(plan: JobPlan, options: Mapping[str, Any]) -> None:
    if plan.image is None:
        raise ConfigError("--image: name an image that the cluster can pull (docker/README.md), as REGISTRY/ehm:npu")
    if plan.sbatch or plan.setup or plan.time is not None:
        raise ConfigError("--sbatch, --setup and --time: are for Slurm")
    volume = find_volume(plan.out, plan.volumes)
    if volume is None or volume.is_read_only:
        raise ConfigError(
            f"-- {options['command']} --out {plan.out}: is on no volume that can be written to, and would be lost with "
            "its pod; --volume CLAIM:/PATH mounts one"
        )
    config = str(options["config"])
    if config not in shipped_configs() and find_volume(config, plan.volumes) is None:
        raise ConfigError(
            f"-- {options['command']} --config {config}: is neither in the image nor on a volume; name one that "
            "ehm configs lists, or a file below a --volume"
        )


def _check_batches(plan: JobPlan, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for a configuration that is wrong, or whose batches the processes cannot share evenly."""
    config = options["config"]
    if plan.kind != "slurm" and config not in shipped_configs():
        return  # the file lies on a volume of the cluster, and cannot be read here
    optim = load_config(TrainConfig, config, options.get("overrides", ())).optim
    for nodes in sorted({plan.min_nodes, plan.nodes}):
        processes = nodes * plan.per_node
        if optim.batch_size % processes:
            raise ConfigError(
                f"optim.batch_size {optim.batch_size}: {processes} processes ({nodes} nodes of {plan.per_node}) cannot "
                "share it evenly"
            )
