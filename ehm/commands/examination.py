"""Flags of the commands that look at data, models, runs, configurations and machines."""

from __future__ import annotations

from ehm.commands.flags import CHECKPOINT_HELP, Parser, add_device_flag, add_out_flag, add_refused_flags

__all__ = [
    "add_configs_flags",
    "add_data_flags",
    "add_doctor_flags",
    "add_inspect_flags",
    "add_report_flags",
    "add_verify_flags",
]


def add_data_flags(parser: Parser) -> None:
    """Add the flags of ``ehm data stats``."""
    parser.add_argument("action", choices=["stats"], help="stats: measure the images of a source")
    parser.add_argument("source", metavar="SOURCE", help="images, whatever data.source takes")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        dest="overrides",
        help="set how images are read, for example data.channels=7, data.depth=16 or data.workers=8 (default: as most "
        "images are)",
    )
    add_out_flag(
        parser, "write statistics.json, statistics.yaml and thumbnails.png into this folder (default: runs/data)"
    )


def add_inspect_flags(parser: Parser) -> None:
    """Add the flags of ``ehm inspect``."""
    parser.add_argument(
        "kind",
        choices=["hierarchy", "masks", "reconstruction", "attention", "answers", "distance", "gradients"],
        help="picture to draw; distance and gradients compare the layers of several encoders in a chart",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image file, or folder of images; for answers also a set of questions",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        nargs="+",
        metavar="CHECKPOINT",
        help=f"encoder to look at: {CHECKPOINT_HELP}; several for distance and gradients",
    )
    add_refused_flags(parser)
    add_device_flag(parser)
    add_out_flag(parser, "write the pictures into this folder (default: runs/inspect)")
    parser.add_argument(
        "--balance",
        choices=["none", "sinkhorn"],
        help="balancing of the similarity (default: as in the run behind the checkpoint)",
    )
    parser.add_argument(
        "--depths",
        type=float,
        nargs="+",
        metavar="DEPTH",
        help="for hierarchy: depths at which to cut the trees, each from 0 to 1",
    )
    parser.add_argument(
        "--progress",
        type=float,
        nargs="+",
        metavar="PROGRESS",
        help="for masks and reconstruction: moments of training to draw masks for, each from 0 (start) to 1 (end)",
    )
    parser.add_argument(
        "--patches",
        nargs="+",
        metavar="ROW,COLUMN",
        help="for attention: patches whose attention to draw, counted from 0",
    )
    parser.add_argument(
        "--ratio",
        type=float,
        help="for masks and reconstruction: share of masked patches (default: as in the run behind the checkpoint)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="seed of the masks, or of the choice of images for gradients and of questions for answers (default: 0)",
    )
    parser.add_argument("--question", metavar="TEXT", help="for answers: question to ask about every image")


def add_report_flags(parser: Parser) -> None:
    """Add the flags of ``ehm report``."""
    parser.add_argument(
        "run", metavar="RUN", help="folder of a run, complete or not, which report.html is written into"
    )


def add_configs_flags(parser: Parser) -> None:
    """Add the flags of ``ehm configs``."""
    parser.add_argument("name", nargs="?", help="folder of configurations to list, or one configuration to show")
    parser.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="SECTION",
        help="list the keys of configurations instead, with type, default and meaning: all keys, or those of a command "
        "(train), a task (detection), a section (optim), or one key (optim.betas)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def add_doctor_flags(parser: Parser) -> None:
    """Add the flags of ``ehm doctor``."""
    parser.add_argument(
        "--device",
        help="device to examine alone; the exit status is 0 only if it can train (default: auto, any device)",
    )
    parser.add_argument(
        "--operators",
        nargs="?",
        const=True,
        metavar="PART",
        help="list the operators that ehm runs, and whether an NPU has each of them: all, or those of a part (mae, "
        "detection, inspect), or with MODULE:FUNCTION those of a network of yours; the exit status is 1 if one falls "
        "back to the CPU (docs/operators.md)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def add_verify_flags(parser: Parser) -> None:
    """Add the flags of ``ehm verify``."""
    add_device_flag(parser)
    parser.add_argument("--quick", action="store_true", help="take about two minutes instead of fifteen")
    add_out_flag(parser, "write verify.json and verify.md into this folder (default: runs/verify)")
