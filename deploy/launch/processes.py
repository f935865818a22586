"""The command line that starts the processes of one machine: torchrun for torch, msrun for MindSpore."""

from __future__ import annotations

from dataclasses import dataclass

from ehm.deploy.launch.plan import JobPlan

__all__ = ["NodePlace", "list_starter_words"]


@dataclass(frozen=True)
class NodePlace:
    """The place of a machine among those of its job, as values or as variables in the notation of the cluster.

    All machines meet at ``address`` and ``port`` of the first one, for which ``is_first`` is 1; empty leaves it to
    torchrun to find out. ``own_address`` is where the others reach this machine.
    """

    nodes: str
    rank: str
    address: str
    port: str
    own_address: str
    job: str
    is_first: str = ""


def list_starter_words(plan: JobPlan, place: NodePlace) -> list[str]:
    """Return the words that stand before the command of ehm."""
    if plan.device.starter == "msrun":
        return _list_msrun_words(plan, place)
    return _list_torchrun_words(plan, place)


def _list_torchrun_words(plan: JobPlan, place: NodePlace) -> list[str]:
    words = [
        "python", "-m", "torch.distributed.run",
        f"--nnodes={place.nodes}",
        f"--nproc-per-node={plan.per_node}",
        f"--max-restarts={plan.restarts}",
        # c10d alone tells the other machines when the processes of one start again
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={place.address}:{place.port}",
        f"--rdzv-id={place.job}",
        f"--local-addr={place.own_address}",
    ]  # fmt: skip
    if place.is_first:
        words.append(f"--rdzv-conf=is_host={place.is_first}")
    return [*words, "-m", "ehm.cli"]


def _list_msrun_words(plan: JobPlan, place: NodePlace) -> list[str]:
    workers = f"{plan.nodes * plan.per_node}"
    if plan.kind == "slurm":
        workers = f"$(({place.nodes} * {plan.per_node}))"  # of the machines that the job has got
    return [
        "python", "-m", "mindspore.parallel.cluster.run",
        f"--worker_num={workers}",
        f"--local_worker_num={plan.per_node}",
        f"--master_addr={place.address}",
        f"--master_port={place.port}",
        f"--node_rank={place.rank}",
        "--join=True",
        f"--log_dir={plan.out}/msrun",
        "python", "-m", "ehm.cli",
    ]  # fmt: skip
