"""The command line: one function a command, no logic. ``ehm COMMAND --help`` explains each.

A flag is a parameter of the command's function, ``--set`` is ``overrides``, and one that is not given is not passed on:
defaults are the functions'.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ehm import __version__
from ehm.errors import ConfigError, EhmError, WriteError
from ehm.processors import prepare_threads

__all__ = ["main"]


def train(**options: Any) -> None:
    """Pretrain an encoder on unlabelled images."""
    from ehm.training.pretrain import train

    train(**options)


def finetune(**options: Any) -> None:
    """Train an encoder for a task: classification, unless --task or the configuration says otherwise."""
    from ehm.tasks.finetune import finetune

    finetune(**options)


def probe(**options: Any) -> None:
    """Measure a frozen encoder by a linear probe and by nearest neighbours."""
    from ehm.tasks.classification.probe import probe

    probe(**options)


def evaluate(**options: Any) -> None:
    """Measure a fine-tuned model on labelled images."""
    from ehm.tasks.evaluate import evaluate

    evaluate(**options)


def export(**options: Any) -> None:
    """Write an ONNX bundle of a classifier, a detector or an encoder."""
    from ehm.deploy.export import export

    export(**options)


def predict(**options: Any) -> int:
    """Classify images, detect objects or extract features with an exported bundle and ONNX Runtime alone."""
    from ehm.deploy.predict.command import main

    return main(**options)


def bench(kind: str, **options: Any) -> None:
    """Measure the latency and throughput of an exported bundle, beside torch where it is installed."""
    from ehm.deploy.bench import bench_export

    bench_export(**options)


def serve(**options: Any) -> None:
    """Serve exported bundles over HTTP: the Open Inference Protocol v2, and image files."""
    from ehm.deploy.serve import serve

    serve(**options)


def inspect(**options: Any) -> None:
    """Draw hierarchies, masks or attention of an encoder, or attention distances and gradients of several."""
    from ehm.analysis.inspect import inspect

    inspect(**options)


def tokenizer(action: str, **options: Any) -> None:
    """Train the visual tokens that the objective beit needs, on unlabelled images."""
    from ehm.training.tokenizer import train_tokenizer

    train_tokenizer(**options)


def configs(**options: Any) -> None:
    """List the shipped configurations, and what they reproduce."""
    from ehm.config.listing import configs

    configs(**options)


def doctor(operators: bool = False, **options: Any) -> int:
    """Say what this machine offers and what is missing."""
    from ehm import doctor

    return doctor.operators(**options) if operators else doctor.doctor(**options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 1 on an error, 2 on a wrong configuration or argument, 130 when interrupted.

    A reader of the output that has gone away (``| head``) ends it quietly, with the status that shells give: 141.
    """
    options = vars(_parser().parse_args(argv))
    prepare_threads()
    run, command, debug = options.pop("run"), options.pop("command"), options.pop("debug", False)
    try:
        _refuse_settings(command, options.pop("unused", []))
        status = run(**options) or 0
        sys.stdout.flush()
        return status
    except EhmError as error:
        if debug:
            raise
        if isinstance(error, WriteError):
            _discard_output()
        print(f"ehm {command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:
        _discard_output()
        return 128 + signal.SIGPIPE
    except OSError as error:  # of a file that no reader or writer of ours names
        if debug:
            raise
        _discard_output()
        place = error.filename or "standard output, or a file without a name (--debug shows where)"
        print(f"ehm {command}: {place}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"ehm {command}: interrupted", file=sys.stderr)
        return 130


def _discard_output() -> None:
    """Drop what standard output could not take: flushing it at exit would fail once more, with a traceback."""
    try:
        sys.stdout.flush()
    except (OSError, WriteError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_settings(command: str, given: Sequence[str]) -> None:
    """Refuse ``--config`` and ``--set`` where they would change nothing, rather than ignore them."""
    if given:
        origin = "what --checkpoint names" if command == "inspect" else "the bundle"
        raise ConfigError(f"takes neither --config nor --set: its settings are its other flags and {origin}")


_DEVICES = "auto, cpu, cuda, npu or openvino, of ONNX Runtime; cuda:1 is one of several"
_PRECISIONS = "float32, float16 or int8: which of its networks (default: float32)"


def _parser() -> argparse.ArgumentParser:
    from ehm.deploy.serve.settings import add_flags as add_serve_flags

    parser = argparse.ArgumentParser(
        prog="ehm", description="Pretrain vision encoders with Evolved Hierarchical Masking, and use them."
    )
    parser.add_argument("--version", action="version", version=f"ehm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(function: Callable[..., int | None]) -> argparse.ArgumentParser:
        command = commands.add_parser(
            function.__name__,
            help=function.__doc__,
            description=function.__doc__,
            argument_default=argparse.SUPPRESS,  # of what is not given, the function has the default
        )
        command.set_defaults(run=function)
        command.add_argument("--debug", action="store_true", help="show a traceback on errors")
        return command

    for function, out in ((train, "pretrain"), (finetune, "finetune"), (probe, "probe"), (tokenizer, "tokenizer")):
        command = add(function)
        if function is tokenizer:
            command.add_argument("action", choices=["train"], help="what to do with it")
        _add_settings(command)
        _add_training_device(command)
        _add_out(command, f"runs/{out}")
        if function is not probe:
            command.add_argument("--resume", action="store_true", help="continue the run in --out")
        if function is finetune:
            command.add_argument("--task", help="what for (default: what the configuration says, or classification)")

    command = add(evaluate)
    command.add_argument("checkpoint", help="run or checkpoint folder of a fine-tuned model; with --task an encoder")
    command.add_argument("--task", help="retrieval: measure an encoder, timm:NAME too, that was not trained for it")
    _add_settings(command)
    _add_training_device(command)
    _add_out(command, "", "metrics.json")

    command = add(export)
    command.add_argument("checkpoint", help="run or checkpoint folder, weights file, timm:NAME, or a bundle")
    _add_settings(command)
    command.add_argument("--device", help=f"that runs the file to compare it: {_DEVICES} (default: auto, the CPU)")
    _add_out(command, "runs/export", "the bundle")
    heads = ["auto", "classifier", "features", "patches", "multi"]
    command.add_argument("--head", choices=heads, help="what to export; multi is all there is (default: auto)")
    targets = ["onnxruntime", "portable", "ascend"]
    command.add_argument("--target", choices=targets, help="what the graph is written for (default: portable)")
    command.add_argument("--triton", metavar="DIR", help="also write models of Triton's into this model repository")
    command.add_argument("--kserve", metavar="FILE", help="also write an InferenceService of KServe's")
    command.add_argument("--int8", action="store_true", help="write it in int8 too, calibrated on images")
    command.add_argument("--float16", action="store_true", help="write it in float16 too")

    command = add(predict)
    command.add_argument("bundle", help="folder that ehm export wrote")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="image file or folder")
    _refuse_later(command)
    command.add_argument("--device", help=f"{_DEVICES} (default: auto)")
    command.add_argument("--precision", help=_PRECISIONS)
    _add_out(command, "", "predictions.jsonl, features.npy, patches.npy")
    command.add_argument("--index", metavar="KIND", help="flat, hnsw or ivf: also a faiss index of the features")
    command.add_argument("--top", type=int, help="classes to print (default: 5)")
    command.add_argument("--json", action="store_true", help="one JSON object a line")

    command = add(bench)
    command.add_argument("kind", choices=["export"], help="what to measure")
    command.add_argument("bundle", help="folder that ehm export wrote")
    _refuse_later(command)
    command.add_argument("--batch", type=int, nargs="+", metavar="B", help="images a batch (default: 1 and 8)")
    command.add_argument("--device", nargs="+", help="cpu, cuda, npu or openvino (default: all there are)")
    command.add_argument("--images", nargs="+", metavar="IMAGE", help="files (default: random pictures)")
    command.add_argument("--rounds", type=int, help="runs of each (default: 20)")
    command.add_argument("--threads", type=int, help="of each network (default: one a core)")
    command.add_argument("--processor-time", action="store_true", help="of all threads, instead of the clock's")
    command.add_argument("--json", action="store_true", help="print JSON")
    _add_out(command, "", "bench.json")

    command = add(serve)
    command.add_argument("--config", metavar="FILE", help="YAML with these options by name; what is given here wins")
    add_serve_flags(command)

    command = add(inspect)
    command.add_argument(
        "kind", choices=["hierarchy", "masks", "attention", "distance", "gradients"], help="which picture"
    )
    command.add_argument("images", nargs="+", metavar="IMAGE", help="image file or folder")
    _refuse_later(command)
    _add_training_device(command)
    _add_out(command, "runs/inspect")
    named = "run or checkpoint folder, weights file, or timm:NAME; several for distance and gradients"
    command.add_argument("--checkpoint", required=True, nargs="+", metavar="CHECKPOINT", help=named)
    command.add_argument("--balance", choices=["none", "sinkhorn"], help="of the similarity (default: as in the run)")
    command.add_argument("--depths", type=float, nargs="+", metavar="D", help="of the partitions, each from 0 to 1")
    command.add_argument("--progress", type=float, nargs="+", metavar="P", help="of the masks, each from 0 to 1")
    command.add_argument("--patches", nargs="+", metavar="ROW,COLUMN", help="whose attention to draw")
    command.add_argument("--ratio", type=float, help="of masked patches (default: as in the run)")
    command.add_argument("--seed", type=int, help="of the masks, or of the images for gradients (default: 0)")

    command = add(configs)
    command.add_argument("name", nargs="?", help="list one folder of them, or show one, whole")
    command.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="SECTION",
        help="list the keys of configurations instead, with type, default and meaning: of all of them, or of a command "
        "(train), a task (detection), a section (optim) or a key (optim.betas)",
    )
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add(doctor)
    command.add_argument("--device", help="look at one device, and exit with 0 only if it can train (default: auto)")
    command.add_argument("--operators", action="store_true", help="list the operators of training that an NPU lacks")
    command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="FILE", help="YAML file, or a shipped one's name, which ehm configs lists")
    often = "override one key, as often as needed"
    command.add_argument("--set", metavar="KEY=VALUE", action="append", dest="overrides", help=often)


def _refuse_later(command: argparse.ArgumentParser) -> None:
    """Take ``--config`` and ``--set`` of a command without settings, to say so instead of "unrecognized"."""
    for flag in ("--config", "--set"):
        command.add_argument(flag, action="append", dest="unused", help=argparse.SUPPRESS)


def _add_training_device(command: argparse.ArgumentParser) -> None:
    known = "auto, cpu, cuda, npu, mindspore[:cpu|:ascend], or another that ehm doctor lists (default: auto)"
    command.add_argument("--device", help=known)


def _add_out(command: argparse.ArgumentParser, place: str, holds: str = "results") -> None:
    default = f"default: {place}" if place else "default: no files"
    command.add_argument("--out", metavar="DIR", help=f"folder for {holds} ({default})")


if __name__ == "__main__":
    sys.exit(main())
