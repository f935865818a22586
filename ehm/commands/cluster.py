"""Flags of the command that writes the jobs of clusters."""

from __future__ import annotations

from ehm.commands.flags import Parser, add_out_flag, add_refused_flags

__all__ = ["add_launch_flags"]

_LAUNCH_USAGE = "ehm launch --kind KIND --device DEVICE [options] -- COMMAND ..."


def add_launch_flags(parser: Parser) -> None:
    """Add the flags of ``ehm launch``."""
    parser.usage = _LAUNCH_USAGE
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="COMMAND ...",
        help="command of ehm to run, behind --: train, finetune or tokenizer train, with --config and --out",
    )
    add_refused_flags(parser)
    parser.add_argument(
        "--kind",
        required=True,
        choices=["slurm", "kubeflow", "pytorchjob", "volcano"],
        help="cluster to write for: Slurm, Kubeflow Trainer v2 (a TrainJob), Kubeflow's training operator before it (a "
        "PyTorchJob), or Volcano",
    )
    parser.add_argument(
        "--device", required=True, help="device to compute on: cpu, cuda, npu, mindspore or mindspore:cpu"
    )
    parser.add_argument("--nodes", type=int, metavar="N", help="number of machines (default: 1)")
    parser.add_argument(
        "--min-nodes",
        type=int,
        metavar="N",
        help="number of machines that are enough to start, for slurm and pytorchjob (default: the number of --nodes)",
    )
    parser.add_argument("--per-node", type=int, metavar="N", help="number of devices of a machine (default: 1)")
    parser.add_argument("--name", help="name of the job (default: the last part of the command's --out)")
    parser.add_argument("--image", help="image of the container; with slurm, which needs pyxis for it, optional")
    parser.add_argument(
        "--volume",
        action="append",
        metavar="SOURCE:PATH",
        help="mount SOURCE at PATH in the container; SOURCE is a folder of the machines by its full path, or for "
        "Kubernetes a PersistentVolumeClaim; :ro at the end forbids writing; can be repeated",
    )
    parser.add_argument(
        "--env", action="append", metavar="KEY=VALUE", help="environment variable of the processes; can be repeated"
    )
    parser.add_argument(
        "--interface", metavar="NAME", help="network card of the machines for NCCL, HCCL and gloo, for example eth0"
    )
    parser.add_argument("--shm", metavar="SIZE", help="shared memory of a container in Kubernetes (default: 16Gi)")
    parser.add_argument(
        "--cpus", type=int, metavar="N", help="processors of a machine to request (default: with slurm all of them)"
    )
    parser.add_argument("--memory", metavar="SIZE", help="memory of a machine to request, for example 200Gi")
    parser.add_argument(
        "--restarts", type=int, metavar="N", help="how often processes that fail are started again (default: 3)"
    )
    parser.add_argument("--queue", metavar="NAME", help="partition of Slurm, or queue of Volcano")
    parser.add_argument("--namespace", metavar="NAME", help="namespace of Kubernetes")
    parser.add_argument(
        "--node-selector",
        action="append",
        metavar="KEY=VALUE",
        help="label of the machines to take in Kubernetes; can be repeated",
    )
    parser.add_argument(
        "--time", metavar="LIMIT", help="time limit of a job of Slurm, for example 24:00:00; it then queues again"
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        metavar="KEY=VALUE",
        help="option of sbatch, for example account=vision, in place of ehm's own if it has one; can be repeated",
    )
    parser.add_argument(
        "--setup",
        action="append",
        metavar="LINE",
        help="line of shell to run first in a job of Slurm, for example '. /shared/venv/bin/activate'; can be repeated",
    )
    add_out_flag(parser, "write the file into this folder (default: runs/launch)")
    parser.add_argument("--submit", action="store_true", help="submit the job too, by sbatch or kubectl")
