"""Flags of the commands that train encoders and models, and measure them on images."""

from __future__ import annotations

import argparse

from ehm.commands.flags import (
    CHECKPOINT_HELP,
    Parser,
    add_config_flags,
    add_device_flag,
    add_out_flag,
    add_resume_flag,
    add_training_flags,
)

__all__ = [
    "add_compare_flags",
    "add_evaluate_flags",
    "add_finetune_flags",
    "add_language_flags",
    "add_probe_flags",
    "add_tokenizer_flags",
    "add_train_flags",
]


def add_train_flags(parser: Parser) -> None:
    """Add the flags of ``ehm train``."""
    add_training_flags(parser, "runs/pretrain")
    add_resume_flag(parser)
    parser.add_argument(
        "--replay",
        metavar="DIR",
        help="take a step whose loss was not finite again, and report where its numbers break: a folder broken/step-… "
        "of a run, which names the command; --set tries other settings",
    )


def add_finetune_flags(parser: Parser) -> None:
    """Add the flags of ``ehm finetune``."""
    parser.add_argument(
        "--task",
        help="task to train for: classification, detection, segmentation, retrieval or vision_language (default: the "
        "task that the configuration names, or classification)",
    )
    add_training_flags(parser, "runs/finetune")
    add_resume_flag(parser)


def add_probe_flags(parser: Parser) -> None:
    """Add the flags of ``ehm probe``."""
    add_training_flags(parser, "runs/probe")
    parser.add_argument(
        "--only",
        metavar="FIGURES",
        help="measure these alone, separated by commas: knn, linear, rankme; knn and rankme train nothing, and rankme "
        "needs no labels (default: all)",
    )


def add_evaluate_flags(parser: Parser) -> None:
    """Add the flags of ``ehm evaluate``."""
    parser.add_argument(
        "checkpoint",
        help=f"run or checkpoint folder of a fine-tuned model; with --task also the encoder to measure: "
        f"{CHECKPOINT_HELP}",
    )
    parser.add_argument(
        "--task", help="retrieval measures an encoder that was not trained for it (default: the task of the checkpoint)"
    )
    add_config_flags(parser)
    add_device_flag(parser)
    add_out_flag(parser, "write metrics.json into this folder (default: write no file)")


def add_compare_flags(parser: Parser) -> None:
    """Add the flags of ``ehm compare``."""
    parser.add_argument(
        "encoders",
        nargs="*",
        metavar="ENCODER",
        default=argparse.SUPPRESS,
        help=f"encoder to compare, the first with all others: {CHECKPOINT_HELP}, hf:OWNER/NAME, or scratch for the "
        "first one's architecture with random weights",
    )
    parser.add_argument(
        "--source", help="labelled images, as for data.source: a folder, a data set or elpv (default: elpv)"
    )
    parser.add_argument(
        "--figure",
        choices=["auto", "top1", "balanced_accuracy", "auc"],
        help="figure to compare by (default: auto, which is auc for two classes, else top1)",
    )
    parser.add_argument("--finetune", action="store_true", help="also fine-tune each encoder for a few epochs")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        dest="overrides",
        help="set how encoders are measured, for example folds=10; ehm configs --keys compare lists the keys",
    )
    parser.add_argument(
        "--train",
        metavar="FILE",
        help="instead of encoders: train and compare the arms of this study, a YAML file or a name that ehm configs "
        "lists",
    )
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="with --train: take these arms only")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="with --train: take these seeds only")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="with --train: runs side by side (default: one a core or an accelerator)"
    )
    parser.add_argument(
        "--results",
        nargs="+",
        metavar="FILE",
        help="with --train: results.csv of another machine, whose runs are not trained again",
    )
    parser.add_argument(
        "--measure-only",
        action="store_true",
        help="with --train: train nothing, and compare the runs that are complete",
    )
    add_device_flag(parser)
    add_out_flag(parser, "keep what is measured, and write the tables, into this folder (default: runs/compare)")


def add_tokenizer_flags(parser: Parser) -> None:
    """Add the flags of ``ehm tokenizer train``."""
    parser.add_argument("action", choices=["train"], help="train: train a tokenizer")
    add_training_flags(parser, "runs/tokenizer")
    add_resume_flag(parser)


def add_language_flags(parser: Parser) -> None:
    """Add the flags of ``ehm language train``."""
    parser.add_argument("action", choices=["train"], help="train: train a tiny language model")
    add_training_flags(parser, "runs/language")
