"""Flags of the commands that write bundles and run them."""

from __future__ import annotations

import argparse

from ehm.commands.flags import CHECKPOINT_HELP, Parser, add_config_flags, add_out_flag, add_refused_flags

__all__ = ["add_bench_flags", "add_export_flags", "add_predict_flags", "add_serve_flags"]

_RUNTIME_DEVICES = "auto, cpu, cuda, npu or openvino; cuda:1 is the second of several"
_COMPILED_HELP = "tensorrt compiles for NVIDIA's GPUs; om runs the model.om of the bundle on an NPU of Ascend"
_PRECISION_HELP = "precision of the network to run: float32, float16 or int8 (default: float32)"
_BUNDLE_HELP = "folder that ehm export wrote"
_PREDICT_USAGE = """\
ehm predict BUNDLE IMAGE... [options]
       ehm predict SOURCE --bundle DIR --out DIR [--ray [ADDRESS]] [options]"""


def add_export_flags(parser: Parser) -> None:
    """Add the flags of ``ehm export``."""
    parser.add_argument("checkpoint", help=f"{CHECKPOINT_HELP}, or a bundle to export again")
    add_config_flags(parser)
    parser.add_argument(
        "--device",
        help="device on which ONNX Runtime runs the exported network to compare it with the framework's: "
        f"{_RUNTIME_DEVICES} (default: auto, which is the CPU)",
    )
    add_out_flag(parser, "write the bundle into this folder (default: runs/export)")
    parser.add_argument(
        "--head",
        choices=["auto", "classifier", "features", "patches", "multi"],
        help="outputs of the network: class scores, features of the image, features of the patches, or multi for all "
        "of them (default: auto, the scores if the checkpoint has a head, else the features)",
    )
    parser.add_argument(
        "--target",
        choices=["onnxruntime", "portable", "ascend"],
        help="runtime that the graph is written for: portable runs everywhere, onnxruntime has its own attention, "
        "ascend is for Ascend's converter (default: portable)",
    )
    parser.add_argument("--triton", metavar="DIR", help="also write the models into this model repository of Triton")
    parser.add_argument("--kserve", metavar="FILE", help="also write an InferenceService of KServe into this file")
    parser.add_argument("--int8", action="store_true", help="also write the network in int8, calibrated on images")
    parser.add_argument("--float16", action="store_true", help="also write the network in float16")


def add_bench_flags(parser: Parser) -> None:
    """Add the flags of ``ehm bench export``."""
    parser.add_argument("kind", choices=["export"], help="export: measure an exported bundle")
    parser.add_argument("bundle", help=_BUNDLE_HELP)
    add_refused_flags(parser)
    parser.add_argument(
        "--batch", type=int, nargs="+", metavar="N", help="batch sizes to measure, in images (default: 1 and 8)"
    )
    parser.add_argument(
        "--device",
        nargs="+",
        help=f"devices to measure: cpu, cuda, npu or openvino; {_COMPILED_HELP} (default: every one of ONNX Runtime's)",
    )
    parser.add_argument(
        "--images", nargs="+", metavar="IMAGE", help="image files to measure with (default: random pixels)"
    )
    parser.add_argument("--rounds", type=int, help="number of times that each batch is run (default: 20)")
    parser.add_argument("--threads", type=int, help="number of threads of each network (default: one for each core)")
    parser.add_argument(
        "--processor-time", action="store_true", help="report the processor time of all threads instead of elapsed time"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_out_flag(parser, "write bench.json into this folder (default: write no file)")


def add_predict_flags(parser: Parser) -> None:
    """Add the flags of ``ehm predict``."""
    parser.usage = _PREDICT_USAGE
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="BUNDLE IMAGE ... | SOURCE",
        help=f"{_BUNDLE_HELP}, and image files or folders of images; or with --bundle the source of all images to "
        "predict, anything that data.source takes",
    )
    parser.add_argument("--config", action="append", dest="refused", help=argparse.SUPPRESS)
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        dest="overrides",
        help="with --bundle: set how the source is read, for example data.columns.path=file (docs/data.md); can be "
        "repeated",
    )
    parser.add_argument(
        "--bundle", metavar="DIR", help=f"{_BUNDLE_HELP}; predict all images of a SOURCE into Parquet files below --out"
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="with --bundle: predict on the Ray cluster at ADDRESS, or on the one of this machine, which is started if "
        "none runs; give it behind SOURCE",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="with --ray: number of workers (default: as many as there is room for)"
    )
    parser.add_argument(
        "--cpus",
        type=int,
        metavar="N",
        help="with --bundle: threads of a worker, which read images and run the network (default: one for each "
        "processor, or with --ray 1)",
    )
    parser.add_argument(
        "--part-size", type=int, metavar="N", help="with --bundle: number of images in a Parquet file (default: 4096)"
    )
    parser.add_argument(
        "--device", help=f"device of ONNX Runtime: {_RUNTIME_DEVICES}; {_COMPILED_HELP} (default: auto)"
    )
    parser.add_argument("--precision", help=_PRECISION_HELP)
    add_out_flag(
        parser,
        "write predictions.jsonl, features.npy, patches.npy and visual_tokens.npy, as far as the bundle gives them, "
        "into this folder (default: write no files); with --bundle, Parquet files",
    )
    parser.add_argument(
        "--index", metavar="KIND", help="with --out, also write a faiss index of the features: flat, hnsw or ivf"
    )
    parser.add_argument("--top", type=int, help="number of classes to print for each image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each image, one on a line")


def add_serve_flags(parser: Parser) -> None:
    """Add the flags of ``ehm serve``."""
    # imported here: the settings are a pydantic model, which other commands need not load to parse their flags
    from ehm.deploy.serve.settings import add_flags

    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with any of these settings, by name; flags take precedence over it"
    )
    add_flags(parser)
