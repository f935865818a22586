"""The command line: one function a command, no logic. ``ehm COMMAND --help`` explains each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from ehm import __version__
from ehm.errors import ConfigError, EhmError

__all__ = ["main"]


def train(args: argparse.Namespace) -> None:
    """Pretrain an encoder on unlabelled images."""
    from ehm.pretrain import train

    train(args.config, device=args.device, overrides=args.set, out=args.out, resume=args.resume)


def finetune(args: argparse.Namespace) -> None:
    """Train a classifier from a pretrained encoder."""
    from ehm.tasks.finetune import finetune

    finetune(args.config, device=args.device, overrides=args.set, out=args.out, resume=args.resume)


def probe(args: argparse.Namespace) -> None:
    """Measure a frozen encoder by a linear probe and by nearest neighbours."""
    from ehm.tasks.probe import probe

    probe(args.config, device=args.device, overrides=args.set, out=args.out)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate a fine-tuned classifier on labelled images."""
    from ehm.tasks.evaluate import evaluate

    evaluate(args.checkpoint, config=args.config, device=args.device, overrides=args.set, out=args.out)


def export(args: argparse.Namespace) -> None:
    """Write an ONNX bundle of a classifier or an encoder."""
    from ehm.deploy.export import export

    chosen = {"target": args.target, "int8": args.int8, "float16": args.float16}
    export(
        args.checkpoint,
        config=args.config,
        head=args.head,
        device=args.device,
        overrides=[*args.set, *(f"{key}={value}" for key, value in chosen.items() if value)],
        out=args.out,
        triton=args.triton,
        kserve=args.kserve,
    )


def predict(args: argparse.Namespace) -> int:
    """Classify images, or extract features, with an exported bundle and ONNX Runtime alone."""
    from ehm.deploy.predict import main

    _settled(args, "the bundle")
    return main(args.bundle, args.images, top=args.top, device=args.device, out=args.out, json=args.json)


def bench(args: argparse.Namespace) -> None:
    """Measure the latency and throughput of an exported bundle, beside torch where it is installed."""
    from ehm.deploy.bench import bench_export

    bench_export(
        args.bundle,
        batches=args.batch,
        devices=args.device,
        images=args.images,
        rounds=args.rounds,
        threads=args.threads,
        processor_time=args.processor_time,
        json=args.json,
        out=args.out,
    )


def serve(args: argparse.Namespace) -> None:
    """Serve exported bundles over HTTP: the Open Inference Protocol v2, and image files."""
    from ehm.deploy.serve import serve

    serve(
        args.bundles or None,
        config=args.config,
        host=args.host,
        port=args.port,
        device=args.device,
        precision=args.precision,
        threads=args.threads,
        max_batch=args.max_batch,
        max_delay=args.max_delay,
        queue=args.queue,
        timeout=args.timeout,
        drain=args.drain,
        max_bytes=args.max_bytes,
        max_pixels=args.max_pixels,
        max_memory=args.max_memory,
        poll=args.poll,
        index=args.index,
        api_key_file=args.api_key_file,
        model_control=args.model_control,
        log=args.log,
    )


def inspect(args: argparse.Namespace) -> None:
    """Draw hierarchies, masks or attention of a pretrained encoder as PNG pictures."""
    from ehm.analysis.inspect import DEPTHS, PROGRESS, inspect

    _settled(args, "--checkpoint")
    inspect(
        args.kind,
        args.images,
        checkpoint=args.checkpoint,
        device=args.device,
        out=args.out,
        balance=args.balance,
        depths=args.depths or DEPTHS,
        progress=args.progress or PROGRESS,
        patches=args.patches,
        ratio=args.ratio,
        seed=args.seed,
    )


def tokenizer(args: argparse.Namespace) -> None:
    """Train the visual tokens that the objective beit needs, on unlabelled images."""
    from ehm.tasks.tokenizer import train_tokenizer

    train_tokenizer(args.config, device=args.device, overrides=args.set, out=args.out, resume=args.resume)


def configs(args: argparse.Namespace) -> None:
    """List the shipped configurations, and what they reproduce."""
    from ehm.config.listing import configs

    configs(args.name, json=args.json)


def doctor(args: argparse.Namespace) -> int:
    """Say what this machine offers and what is missing."""
    from ehm.doctor import doctor, operators

    if args.operators:
        return operators(device=args.device, json=args.json)
    return doctor(json=args.json, device=args.device)


def _settled(args: argparse.Namespace, origin: str) -> None:
    """Refuse settings where they would change nothing, rather than ignore them."""
    if args.config or args.set:
        raise ConfigError(f"--{'config' if args.config else 'set'}: {args.command} takes its settings from {origin}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 1 on an error, 2 on a wrong configuration or argument, 130 when interrupted."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except EhmError as error:
        if args.debug:
            raise
        print(f"ehm {args.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print(f"ehm {args.command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ehm", description="Pretrain vision encoders with Evolved Hierarchical Masking, and use them."
    )
    parser.add_argument("--version", action="version", version=f"ehm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show a traceback on errors")

    common = argparse.ArgumentParser(add_help=False, parents=[debug])
    common.add_argument("--config", metavar="FILE", help="YAML file, or a shipped one's name, which ehm configs lists")
    common.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, npu, mindspore[:cpu|:ascend], or another that ehm doctor lists (default: auto)",
    )
    common.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="override one key, as often as needed"
    )
    common.add_argument("--out", metavar="DIR", help="folder for the results")

    def add(
        function: Callable[[argparse.Namespace], int | None], parents: list[argparse.ArgumentParser]
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            function.__name__, parents=parents, help=function.__doc__, description=function.__doc__
        )
        command.set_defaults(run=function)
        return command

    for function in (train, finetune):
        add(function, [common]).add_argument("--resume", action="store_true", help="continue the run in --out")
    add(probe, [common])
    add(evaluate, [common]).add_argument("checkpoint", help="run or checkpoint folder of a fine-tuned classifier")

    command = add(export, [common])
    command.add_argument("checkpoint", help="run or checkpoint folder, weights file, timm:NAME, or a bundle")
    heads = ["auto", "classifier", "features", "patches", "multi"]
    command.add_argument("--head", choices=heads, default="auto", help="what to export; multi is all there is")
    targets = ["onnxruntime", "portable", "ascend"]
    command.add_argument("--target", choices=targets, help="what the graph is written for (default: portable)")
    command.add_argument("--triton", metavar="DIR", help="also write models of Triton's into this model repository")
    command.add_argument("--kserve", metavar="FILE", help="also write an InferenceService of KServe's")
    command.add_argument("--int8", action="store_true", help="write it in int8 too, calibrated on images")
    command.add_argument("--float16", action="store_true", help="write it in float16 too")

    command = add(predict, [common])
    command.add_argument("bundle", help="folder that ehm export wrote")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="image file or folder")
    command.add_argument("--top", type=int, default=5, help="classes to print (default: 5)")
    command.add_argument("--json", action="store_true", help="one JSON object a line")

    command = add(bench, [debug])
    command.add_argument("kind", choices=["export"], help="what to measure")
    command.add_argument("bundle", help="folder that ehm export wrote")
    command.add_argument("--batch", type=int, nargs="+", metavar="B", default=[1, 8], help="images a batch (1 and 8)")
    command.add_argument("--device", nargs="+", default=[], help="cpu, cuda, npu or openvino (default: all there are)")
    command.add_argument("--images", nargs="+", metavar="IMAGE", default=[], help="files (default: random pictures)")
    command.add_argument("--rounds", type=int, default=20, help="runs of each (default: 20)")
    command.add_argument("--threads", type=int, default=0, help="of each network (default: one a core)")
    command.add_argument("--processor-time", action="store_true", help="of all threads, instead of the clock's")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--out", metavar="DIR", help="folder for bench.json")

    command = add(serve, [debug])
    command.add_argument("bundles", nargs="*", metavar="[NAME=]DIR", help="folder that ehm export wrote")
    command.add_argument("--config", metavar="FILE", help="YAML with these options' names as keys; options count first")
    command.add_argument("--host", help="address to listen at (default: this machine only)")
    command.add_argument("--port", type=int, help="0 takes a free one (default: 8000)")
    command.add_argument("--device", help="cpu, cuda, npu, openvino or auto (default: cpu)")
    command.add_argument("--precision", help="float32, float16 or int8 (default: float32)")
    command.add_argument("--threads", type=int, help="cores of one batch (default: all)")
    command.add_argument("--max-batch", type=int, metavar="N", help="images of a batch (default: 8)")
    command.add_argument("--max-delay", type=float, metavar="MS", help="wait for a batch (default: 2)")
    command.add_argument("--queue", type=int, metavar="N", help="requests that may wait (default: 128)")
    command.add_argument("--timeout", type=float, metavar="S", help="of a request (default: 10)")
    command.add_argument("--drain", type=float, metavar="S", help="to stop in (default: 30)")
    command.add_argument("--max-bytes", type=int, metavar="N", help="of a body (default: 16 MiB)")
    command.add_argument("--max-pixels", type=int, metavar="N", help="(default: 50 million)")
    command.add_argument("--max-memory", type=int, metavar="N", help="of all requests (default: 1 GiB)")
    command.add_argument("--poll", type=float, metavar="S", help="for replaced bundles (default: 1)")
    command.add_argument("--index", metavar="DIR", help="images to search, as ehm predict --out wrote them")
    command.add_argument("--api-key-file", metavar="FILE", help="(default: the variable EHM_API_KEY, if it is set)")
    command.add_argument(
        "--model-control", action=argparse.BooleanOptionalAction, help="let clients load and unload models"
    )
    command.add_argument("--log", help="text or json (default: text)")

    command = add(inspect, [common])
    command.add_argument("kind", choices=["hierarchy", "masks", "attention"], help="which picture")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="image file or folder")
    command.add_argument("--checkpoint", required=True, help="run or checkpoint folder, weights file, or timm:NAME")
    command.add_argument("--balance", choices=["none", "sinkhorn"], help="of the similarity (default: as in the run)")
    command.add_argument("--depths", type=float, nargs="+", metavar="D", help="of the partitions, each from 0 to 1")
    command.add_argument("--progress", type=float, nargs="+", metavar="P", help="of the masks, each from 0 to 1")
    command.add_argument("--patches", nargs="+", metavar="ROW,COLUMN", default=(), help="whose attention to draw")
    command.add_argument("--ratio", type=float, help="of masked patches (default: as in the run)")
    command.add_argument("--seed", type=int, default=0, help="of the masks (default: 0)")

    command = add(tokenizer, [common])
    command.add_argument("action", choices=["train"], help="what to do with it")
    command.add_argument("--resume", action="store_true", help="continue the run in --out")

    command = add(configs, [debug])
    command.add_argument("name", nargs="?", help="list one folder of them, or show one, whole")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add(doctor, [debug])
    command.add_argument("--device", default="auto", help="look at one device, and exit with 0 only if it can train")
    command.add_argument("--operators", action="store_true", help="list the operators of training that an NPU lacks")
    command.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
