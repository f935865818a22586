"""Flags of the command that writes jobs for clusters."""

from __future__ import annotations

from ehm.commands.flags import RUN, Parser, add_out_flag, add_refused_flags

__all__ = ["add_launch_flags"]

_LAUNCH_USAGE = "ehm launch --kind KIND --device DEVICE [options] -- COMMAND ..."


def add_launch_flags(parser: Parser) -> None:
    """Add the flags of ``ehm launch``."""
    parser.usage = _LAUNCH_USAGE
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="COMMAND ...",
        help="Command of ehm to run, after --: train, finetune or tokenizer train, with --config and --out.",
    )
    add_refused_flags(parser)
    _add_job_flags(parser)
    _add_container_flags(parser)
    _add_slurm_flags(parser)
    parser.get_group(RUN).add_argument(
        "--device", required=True, help="Compute on this device: cpu, cuda, npu, mindspore or mindspore:cpu."
    )
    add_out_flag(parser, "Write the file into this folder (default: runs/launch).")
    parser.get_group(RUN).add_argument(
        "--submit", action="store_true", help="Submit the job too, by sbatch or kubectl."
    )


def _add_job_flags(parser: Parser) -> None:
    """Add the flags of jobs on every kind of cluster."""
    group = parser.get_group("job")
    group.add_argument(
        "--kind",
        required=True,
        choices=["slurm", "kubeflow", "pytorchjob", "volcano"],
        help="Write for this cluster: Slurm, Kubeflow Trainer v2 (a TrainJob), Kubeflow's training operator before it "
        "(a PyTorchJob), or Volcano.",
    )
    group.add_argument("--nodes", type=int, metavar="N", help="Run on N machines (default: 1).")
    group.add_argument(
        "--min-nodes",
        type=int,
        metavar="N",
        help="Start as soon as N machines are available, with slurm and pytorchjob (default: the number of --nodes).",
    )
    group.add_argument("--per-node", type=int, metavar="N", help="Use N devices of each machine (default: 1).")
    group.add_argument("--name", help="Name of the job (default: the last part of the command's --out).")
    group.add_argument(
        "--cpus",
        type=int,
        metavar="N",
        help="Request N processors of each machine (default: with slurm all of them).",
    )
    group.add_argument("--memory", metavar="SIZE", help="Request this much memory of each machine, for example 200Gi.")
    group.add_argument(
        "--restarts", type=int, metavar="N", help="Restart processes that fail up to N times (default: 3)."
    )
    group.add_argument("--queue", metavar="NAME", help="Submit to this partition of Slurm, or queue of Volcano.")
    group.add_argument(
        "--env",
        action="append",
        metavar="KEY=VALUE",
        help="Set this environment variable of the processes. Can be repeated.",
    )
    group.add_argument(
        "--interface",
        metavar="NAME",
        help="Let NCCL, HCCL and gloo use this network card of the machines, for example eth0.",
    )


def _add_container_flags(parser: Parser) -> None:
    """Add the flags of containers and of Kubernetes."""
    group = parser.get_group("containers and Kubernetes")
    group.add_argument(
        "--image", help="Run in this container image. It is optional with slurm, which needs pyxis for it."
    )
    group.add_argument(
        "--volume",
        action="append",
        metavar="SOURCE:PATH",
        help="Mount SOURCE at PATH in the container. SOURCE is a folder of the machines by its full path, or for "
        "Kubernetes a PersistentVolumeClaim; :ro at the end forbids writing. Can be repeated.",
    )
    group.add_argument(
        "--shm", metavar="SIZE", help="Give each container in Kubernetes this much shared memory (default: 16Gi)."
    )
    group.add_argument("--namespace", metavar="NAME", help="Use this namespace of Kubernetes.")
    group.add_argument(
        "--node-selector",
        action="append",
        metavar="KEY=VALUE",
        help="Use only machines with this label in Kubernetes. Can be repeated.",
    )


def _add_slurm_flags(parser: Parser) -> None:
    """Add the flags that only Slurm has."""
    group = parser.get_group("Slurm")
    group.add_argument(
        "--time", metavar="LIMIT", help="Limit the time of a job, for example to 24:00:00; it then queues again."
    )
    group.add_argument(
        "--sbatch",
        action="append",
        metavar="KEY=VALUE",
        help="Give sbatch this option, for example account=vision, in place of ehm's own if it has one. Can be "
        "repeated.",
    )
    group.add_argument(
        "--setup",
        action="append",
        metavar="LINE",
        help="Run this shell command at the beginning of the job, for example '. /shared/venv/bin/activate'. Can be "
        "repeated.",
    )
