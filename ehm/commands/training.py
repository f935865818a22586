"""Flags of the commands that train encoders and models, and measure them on images."""

from __future__ import annotations

import argparse

from ehm.commands.flags import (
    CHECKPOINT_HELP,
    CONFIGURATION,
    Parser,
    add_config_flags,
    add_device_flag,
    add_out_flag,
    add_resume_flag,
    add_set_flag,
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
    parser.get_group("examination").add_argument(
        "--replay",
        metavar="DIR",
        help="Take a step whose loss was not finite again, and report where its numbers break. DIR is a folder "
        "broken/step-N of a run, which names the command; --set tries other settings.",
    )


def add_finetune_flags(parser: Parser) -> None:
    """Add the flags of ``ehm finetune``."""
    parser.get_group(CONFIGURATION).add_argument(
        "--task",
        help="Train for this task: classification, detection, segmentation, retrieval or vision_language (default: the "
        "task that the configuration names, or classification).",
    )
    add_training_flags(parser, "runs/finetune")
    add_resume_flag(parser)


def add_probe_flags(parser: Parser) -> None:
    """Add the flags of ``ehm probe``."""
    add_training_flags(parser, "runs/probe")
    parser.get_group("measurement").add_argument(
        "--only",
        metavar="FIGURES",
        help="Measure only these, separated by commas: knn, linear, rankme. Knn and rankme train nothing, and rankme "
        "needs no labels (default: all).",
    )


def add_evaluate_flags(parser: Parser) -> None:
    """Add the flags of ``ehm evaluate``."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help=f"Run or checkpoint folder of a fine-tuned model. With --task it can also be the encoder to measure: "
        f"{CHECKPOINT_HELP}.",
    )
    add_config_flags(parser)
    parser.get_group("measurement").add_argument(
        "--task",
        help="Measure an encoder that was not trained for the task, which retrieval allows (default: the task of the "
        "checkpoint).",
    )
    add_device_flag(parser)
    add_out_flag(parser, "Write metrics.json into this folder (default: write no file).")


def add_compare_flags(parser: Parser) -> None:
    """Add the flags of ``ehm compare``."""
    parser.add_argument(
        "encoders",
        nargs="*",
        metavar="ENCODER",
        default=argparse.SUPPRESS,
        help=f"Encoders to compare with the first of them: {CHECKPOINT_HELP}, hf:OWNER/NAME, or scratch for the "
        "architecture of the first with random weights.",
    )
    measurement = parser.get_group("measurement of encoders")
    measurement.add_argument(
        "--source",
        help="Measure on these labelled images: a folder, a data set or elpv, as for data.source (default: elpv).",
    )
    measurement.add_argument(
        "--figure",
        choices=["auto", "top1", "balanced_accuracy", "auc"],
        help="Compare by this figure (default: auto, which is auc for two classes, else top1).",
    )
    measurement.add_argument("--finetune", action="store_true", help="Also fine-tune each encoder for a few epochs.")
    add_set_flag(
        parser,
        "Set how encoders are measured, for example folds=10; ehm configs --keys compare lists the keys.",
    )
    _add_study_flags(parser)
    add_device_flag(parser)
    add_out_flag(parser, "Keep what is measured, and write the tables, into this folder (default: runs/compare).")


def _add_study_flags(parser: Parser) -> None:
    """Add the flags of ``ehm compare`` for studies."""
    study = parser.get_group("study")
    study.add_argument(
        "--train",
        metavar="FILE",
        help="Instead of comparing encoders, train and compare the arms of this study: a YAML file, or a name that ehm "
        "configs lists.",
    )
    study.add_argument("--arms", nargs="+", metavar="NAME", help="With --train, only train and compare these arms.")
    study.add_argument("--seeds", nargs="+", type=int, metavar="N", help="With --train, only train with these seeds.")
    study.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="With --train, train N runs side by side (default: one on each core or accelerator).",
    )
    study.add_argument(
        "--results",
        nargs="+",
        metavar="FILE",
        help="With --train, use the results in these files results.csv from other machines instead of training again.",
    )
    study.add_argument(
        "--measure-only",
        action="store_true",
        help="With --train, train nothing, and compare the runs that are complete.",
    )


def add_tokenizer_flags(parser: Parser) -> None:
    """Add the flags of ``ehm tokenizer train``."""
    parser.add_argument("action", choices=["train"], help="Train a tokenizer.")
    add_training_flags(parser, "runs/tokenizer")
    add_resume_flag(parser)


def add_language_flags(parser: Parser) -> None:
    """Add the flags of ``ehm language train``."""
    parser.add_argument("action", choices=["train"], help="Train a tiny language model.")
    add_training_flags(parser, "runs/language")
