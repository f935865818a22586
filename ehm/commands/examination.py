"""Flags of the commands that examine data, models, runs, configurations and machines."""

from __future__ import annotations

from ehm.commands.flags import (
    CHECKPOINT_HELP,
    Parser,
    add_device_flag,
    add_json_flag,
    add_out_flag,
    add_refused_flags,
    add_set_flag,
)

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
    parser.add_argument("action", choices=["stats"], help="Measure the images of a source.")
    parser.add_argument("source", metavar="SOURCE", help="Images to measure: anything that data.source takes.")
    add_set_flag(
        parser,
        "Set how images are read, for example data.channels=7, data.depth=16 or data.workers=8 (default: the channels "
        "and depth of most images).",
    )
    add_out_flag(
        parser, "Write statistics.json, statistics.yaml and thumbnails.png into this folder (default: runs/data)."
    )


def add_inspect_flags(parser: Parser) -> None:
    """Add the flags of ``ehm inspect``."""
    parser.add_argument(
        "kind",
        choices=["hierarchy", "masks", "reconstruction", "attention", "answers", "distance", "gradients"],
        help="Picture to draw; distance and gradients compare the layers of several encoders in a chart.",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="Image file, or folder of images; for answers also a set of questions.",
    )
    add_refused_flags(parser)
    model = parser.get_group("model")
    model.add_argument(
        "--checkpoint",
        required=True,
        nargs="+",
        metavar="CHECKPOINT",
        help=f"Inspect this encoder: {CHECKPOINT_HELP}. For distance and gradients there may be several.",
    )
    model.add_argument(
        "--balance",
        choices=["none", "sinkhorn"],
        help="Balance the similarity in this way (default: as in the run behind the checkpoint).",
    )
    _add_picture_flags(parser)
    add_device_flag(parser)
    add_out_flag(parser, "Write the pictures into this folder (default: runs/inspect).")


def _add_picture_flags(parser: Parser) -> None:
    """Add the flags of ``ehm inspect`` that only apply to some kinds of pictures."""
    picture = parser.get_group("picture")
    picture.add_argument(
        "--depths",
        type=float,
        nargs="+",
        metavar="DEPTH",
        help="For hierarchy, cut the trees at these depths, each from 0 to 1.",
    )
    picture.add_argument(
        "--progress",
        type=float,
        nargs="+",
        metavar="PROGRESS",
        help="For masks and reconstruction, draw masks for these moments of training, each from 0 (start) to 1 (end).",
    )
    picture.add_argument(
        "--patches",
        nargs="+",
        metavar="ROW,COLUMN",
        help="For attention, draw the attention of these patches, counted from 0.",
    )
    picture.add_argument(
        "--ratio",
        type=float,
        help="For masks and reconstruction, mask this share of the patches (default: as in the run behind the "
        "checkpoint).",
    )
    picture.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="Draw masks, images for gradients, or questions for answers with this seed (default: 0).",
    )
    picture.add_argument("--question", metavar="TEXT", help="For answers, ask this question about every image.")


def add_report_flags(parser: Parser) -> None:
    """Add the flags of ``ehm report``."""
    parser.add_argument(
        "run", metavar="RUN", help="Folder of a run, complete or not, which report.html is written into."
    )


def add_configs_flags(parser: Parser) -> None:
    """Add the flags of ``ehm configs``."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="Folder of configurations to list, or one configuration to show."
    )
    parser.get_group("keys").add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="SECTION",
        help="List the keys of configurations instead, with type, default and meaning: all keys, or those of a command "
        "(train), a task (detection), a section (optim), or one key (optim.betas).",
    )
    add_json_flag(parser, "Print JSON instead of a table.")


def add_doctor_flags(parser: Parser) -> None:
    """Add the flags of ``ehm doctor``."""
    group = parser.get_group("examination")
    group.add_argument(
        "--device",
        help="Examine only this device; the exit status is 0 only if it can train (default: auto, any device).",
    )
    group.add_argument(
        "--operators",
        nargs="?",
        const=True,
        metavar="PART",
        help="List the operators that ehm runs, and whether an NPU has each of them: all, or those of a part (mae, "
        "detection, inspect), or with MODULE:FUNCTION those of a network of yours. The exit status is 1 if one falls "
        "back to the CPU (docs/operators.md).",
    )
    add_json_flag(parser, "Print JSON instead of a table.")


def add_verify_flags(parser: Parser) -> None:
    """Add the flags of ``ehm verify``."""
    parser.get_group("examination").add_argument(
        "--quick", action="store_true", help="Take about two minutes instead of fifteen."
    )
    add_device_flag(parser)
    add_out_flag(parser, "Write verify.json and verify.md into this folder (default: runs/verify).")
    add_json_flag(parser, "Print the contents of verify.json, and all else to standard error.")
