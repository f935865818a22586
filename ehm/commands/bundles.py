"""Flags of the commands that write bundles and run them."""

from __future__ import annotations

import argparse

from ehm.commands.flags import (
    CHECKPOINT_HELP,
    CONFIGURATION,
    RUN,
    Parser,
    add_config_flags,
    add_json_flag,
    add_out_flag,
    add_refused_flags,
    add_set_flag,
)

__all__ = ["add_bench_flags", "add_export_flags", "add_predict_flags", "add_serve_flags"]

_RUNTIME_DEVICES = "auto, cpu, cuda, npu or openvino; cuda:1 is the second of several"
_COMPILED_HELP = "tensorrt compiles for NVIDIA's GPUs, and om runs the model.om of the bundle on an NPU of Ascend"
_PRECISION_HELP = "Run the network of this precision: float32, float16 or int8 (default: float32)."
_BUNDLE_HELP = "Folder that ehm export wrote"
_PREDICT_USAGE = """\
ehm predict BUNDLE IMAGE... [options]
       ehm predict SOURCE --bundle DIR --out DIR [--ray [ADDRESS]] [KEY=VALUE ...] [options]"""


def add_export_flags(parser: Parser) -> None:
    """Add the flags of ``ehm export``."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help=f"Model to export: {CHECKPOINT_HELP}, or a bundle to export again."
    )
    add_config_flags(parser)
    network = parser.get_group("network")
    network.add_argument(
        "--head",
        choices=["auto", "classifier", "features", "patches", "multi"],
        help="Give the network these outputs: class scores, features of the image, features of the patches, or multi "
        "for all of them (default: auto, the scores if the checkpoint has a head, else the features).",
    )
    network.add_argument(
        "--target",
        choices=["onnxruntime", "portable", "ascend"],
        help="Write the graph for this runtime: portable runs everywhere, onnxruntime has its own attention, ascend is "
        "for Ascend's converter (default: portable).",
    )
    network.add_argument("--int8", action="store_true", help="Also write the network in int8, calibrated on images.")
    network.add_argument("--float16", action="store_true", help="Also write the network in float16.")
    servers = parser.get_group("other servers")
    servers.add_argument("--triton", metavar="DIR", help="Also write the models into this model repository of Triton.")
    servers.add_argument("--kserve", metavar="FILE", help="Also write an InferenceService of KServe into this file.")
    parser.get_group(RUN).add_argument(
        "--device",
        help="Run the exported network on this device of ONNX Runtime, to compare it with the framework's: "
        f"{_RUNTIME_DEVICES} (default: auto, which is the CPU).",
    )
    add_out_flag(parser, "Write the bundle into this folder (default: runs/export).")


def add_bench_flags(parser: Parser) -> None:
    """Add the flags of ``ehm bench export``."""
    parser.add_argument("kind", choices=["export"], help="Measure an exported bundle.")
    parser.add_argument("bundle", metavar="BUNDLE", help=f"{_BUNDLE_HELP}.")
    add_refused_flags(parser)
    measurement = parser.get_group("measurement")
    measurement.add_argument(
        "--batch", type=int, nargs="+", metavar="N", help="Measure batches of N images (default: 1 and 8)."
    )
    measurement.add_argument(
        "--images", nargs="+", metavar="IMAGE", help="Measure with these image files (default: random pixels)."
    )
    measurement.add_argument("--rounds", type=int, metavar="N", help="Run each batch N times (default: 20).")
    measurement.add_argument(
        "--threads", type=int, metavar="N", help="Give each network N threads (default: one for each core)."
    )
    measurement.add_argument(
        "--processor-time",
        action="store_true",
        help="Report the processor time of all threads instead of elapsed time.",
    )
    parser.get_group(RUN).add_argument(
        "--device",
        nargs="+",
        help=f"Measure on these devices: cpu, cuda, npu or openvino; {_COMPILED_HELP} (default: every one of ONNX "
        "Runtime's).",
    )
    add_out_flag(parser, "Write bench.json into this folder (default: write no file).")
    add_json_flag(parser, "Print JSON instead of a table.")


def add_predict_flags(parser: Parser) -> None:
    """Add the flags of ``ehm predict``."""
    parser.usage = _PREDICT_USAGE
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="BUNDLE IMAGE ... | SOURCE",
        help=f"{_BUNDLE_HELP}, and image files or folders of images; or with --bundle the source of all images to "
        "predict, anything that data.source takes.",
    )
    prediction = parser.get_group("prediction")
    prediction.add_argument("--precision", help=_PRECISION_HELP)
    prediction.add_argument(
        "--top", type=int, metavar="N", help="Print the N most probable classes of each image (default: 5)."
    )
    prediction.add_argument(
        "--index",
        metavar="KIND",
        help="With --out, also write a faiss index of the features: flat, hnsw or ivf.",
    )
    _add_source_flags(parser)
    parser.add_argument("--config", action="append", dest="refused", help=argparse.SUPPRESS)
    add_set_flag(
        parser,
        "With --bundle, set how the source is read, for example data.columns.path=file (docs/data.md).",
    )
    parser.get_group(RUN).add_argument(
        "--device", help=f"Run on this device of ONNX Runtime: {_RUNTIME_DEVICES}; {_COMPILED_HELP} (default: auto)."
    )
    add_out_flag(
        parser,
        "Write predictions.jsonl, features.npy, patches.npy and visual_tokens.npy, as far as the bundle gives them, "
        "into this folder (default: write no files); with --bundle, Parquet files.",
    )
    add_json_flag(parser, "Print a JSON object for each image, one on a line; with --bundle, one for all of them.")


def _add_source_flags(parser: Parser) -> None:
    """Add the flags that predict all images of a source."""
    source = parser.get_group("all images of a source")
    source.add_argument(
        "--bundle",
        metavar="DIR",
        help="Predict all images of a SOURCE with this bundle, into Parquet files below --out.",
    )
    source.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="With --bundle, predict on the Ray cluster at ADDRESS, or on the one of this machine, which is started if "
        "none runs. Give this flag after SOURCE.",
    )
    source.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="With --ray, start N workers (default: as many as the cluster has room for).",
    )
    source.add_argument(
        "--cpus",
        type=int,
        metavar="N",
        help="With --bundle, give each worker N threads, which read images and run the network (default: one for "
        "each processor, or with --ray 1).",
    )
    source.add_argument(
        "--part-size",
        type=int,
        metavar="N",
        help="With --bundle, write N images into each Parquet file (default: 4096).",
    )


def add_serve_flags(parser: Parser) -> None:
    """Add the flags of ``ehm serve``."""
    # imported here: the settings are a pydantic model, which other commands need not load to parse their flags
    from ehm.deploy.serve.settings import add_flags

    parser.get_group(CONFIGURATION).add_argument(
        "--config",
        metavar="FILE",
        help="Read any of these settings, by name, from this YAML file; flags take precedence over it.",
    )
    add_flags(parser)
