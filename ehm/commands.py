"""The commands of ``ehm``: the function behind each, its help and its flags.

A flag is a parameter of the command's function, and ``--set`` is ``overrides``. A flag that is not given is not passed
on, so that each default stands in one place, the function. Nothing heavy is imported here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["COMMANDS", "Command"]

_TRAINING_DEVICES = "auto, cpu, cuda, npu, mindspore[:cpu|:ascend], or another device that ehm doctor lists"
_RUNTIME_DEVICES = "auto, cpu, cuda, npu or openvino; cuda:1 is the second of several"
_COMPILED_HELP = "tensorrt compiles for NVIDIA's GPUs; om runs the model.om of the bundle on an NPU of Ascend"
_PRECISION_HELP = "precision of the network to run: float32, float16 or int8 (default: float32)"
_BUNDLE_HELP = "folder that ehm export wrote"
_CHECKPOINT_HELP = "run folder, checkpoint folder, weights file or timm:NAME"
_PREDICT_USAGE = """\
ehm predict BUNDLE IMAGE... [options]
       ehm predict SOURCE --bundle DIR --out DIR [--ray [ADDRESS]] [options]"""
_LAUNCH_USAGE = "ehm launch --kind KIND --device DEVICE [options] -- COMMAND ..."

Parser = argparse.ArgumentParser


@dataclass(frozen=True)
class Command:
    """A command: ``function`` is "module:name", and ``selectors`` are arguments that it is not passed."""

    function: str
    help: str
    add_flags: Callable[[Parser], None]
    selectors: tuple[str, ...] = ()

    def run(self, options: Mapping[str, Any]) -> int:
        """Call the function with ``options`` and return the exit status: its own if it has one, or else success."""
        module, _, name = self.function.partition(":")
        arguments = {key: value for key, value in options.items() if key not in self.selectors}
        result = getattr(import_module(module), name)(**arguments)
        return result if isinstance(result, int) else 0


def _add_train_flags(parser: Parser) -> None:
    _add_training_flags(parser, "runs/pretrain")
    _add_resume_flag(parser)
    parser.add_argument(
        "--replay",
        metavar="DIR",
        help="take a step whose loss was not finite again, and report where its numbers break: a folder broken/step-… "
        "of a run, which names the command; --set tries other settings",
    )


def _add_finetune_flags(parser: Parser) -> None:
    parser.add_argument(
        "--task",
        help="task to train for: classification, detection, segmentation, retrieval or vision_language (default: the "
        "task that the configuration names, or classification)",
    )
    _add_training_flags(parser, "runs/finetune")
    _add_resume_flag(parser)


def _add_probe_flags(parser: Parser) -> None:
    _add_training_flags(parser, "runs/probe")
    parser.add_argument(
        "--only",
        metavar="FIGURES",
        help="measure these alone, separated by commas: knn, linear, rankme; knn and rankme train nothing, and rankme "
        "needs no labels (default: all)",
    )


def _add_data_flags(parser: Parser) -> None:
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
    _add_out_flag(
        parser, "write statistics.json, statistics.yaml and thumbnails.png into this folder (default: runs/data)"
    )


def _add_tokenizer_flags(parser: Parser) -> None:
    parser.add_argument("action", choices=["train"], help="train: train a tokenizer")
    _add_training_flags(parser, "runs/tokenizer")
    _add_resume_flag(parser)


def _add_language_flags(parser: Parser) -> None:
    parser.add_argument("action", choices=["train"], help="train: train a tiny language model")
    _add_training_flags(parser, "runs/language")


def _add_compare_flags(parser: Parser) -> None:
    parser.add_argument(
        "encoders",
        nargs="*",
        metavar="ENCODER",
        default=argparse.SUPPRESS,
        help=f"encoder to compare, the first with all others: {_CHECKPOINT_HELP}, hf:OWNER/NAME, or scratch for the "
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
    _add_device_flag(parser)
    _add_out_flag(parser, "keep what is measured, and write the tables, into this folder (default: runs/compare)")


def _add_evaluate_flags(parser: Parser) -> None:
    parser.add_argument(
        "checkpoint",
        help=f"run or checkpoint folder of a fine-tuned model; with --task also the encoder to measure: "
        f"{_CHECKPOINT_HELP}",
    )
    parser.add_argument(
        "--task", help="retrieval measures an encoder that was not trained for it (default: the task of the checkpoint)"
    )
    _add_config_flags(parser)
    _add_device_flag(parser)
    _add_out_flag(parser, "write metrics.json into this folder (default: write no file)")


def _add_export_flags(parser: Parser) -> None:
    parser.add_argument("checkpoint", help=f"{_CHECKPOINT_HELP}, or a bundle to export again")
    _add_config_flags(parser)
    parser.add_argument(
        "--device",
        help="device on which ONNX Runtime runs the exported network to compare it with the framework's: "
        f"{_RUNTIME_DEVICES} (default: auto, which is the CPU)",
    )
    _add_out_flag(parser, "write the bundle into this folder (default: runs/export)")
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


def _add_predict_flags(parser: Parser) -> None:
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
    _add_out_flag(
        parser,
        "write predictions.jsonl, features.npy, patches.npy and visual_tokens.npy, as far as the bundle gives them, "
        "into this folder (default: write no files); with --bundle, Parquet files",
    )
    parser.add_argument(
        "--index", metavar="KIND", help="with --out, also write a faiss index of the features: flat, hnsw or ivf"
    )
    parser.add_argument("--top", type=int, help="number of classes to print for each image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each image, one on a line")


def _add_launch_flags(parser: Parser) -> None:
    parser.usage = _LAUNCH_USAGE
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="COMMAND ...",
        help="command of ehm to run, behind --: train, finetune or tokenizer train, with --config and --out",
    )
    _add_refused_flags(parser)
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
    _add_out_flag(parser, "write the file into this folder (default: runs/launch)")
    parser.add_argument("--submit", action="store_true", help="submit the job too, by sbatch or kubectl")


def _add_bench_flags(parser: Parser) -> None:
    parser.add_argument("kind", choices=["export"], help="export: measure an exported bundle")
    parser.add_argument("bundle", help=_BUNDLE_HELP)
    _add_refused_flags(parser)
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
    _add_out_flag(parser, "write bench.json into this folder (default: write no file)")


def _add_serve_flags(parser: Parser) -> None:
    # imported here: the settings are a pydantic model, which other commands need not load to parse their flags
    from ehm.deploy.serve.settings import add_flags

    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with any of these settings, by name; flags take precedence over it"
    )
    add_flags(parser)


def _add_inspect_flags(parser: Parser) -> None:
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
        help=f"encoder to look at: {_CHECKPOINT_HELP}; several for distance and gradients",
    )
    _add_refused_flags(parser)
    _add_device_flag(parser)
    _add_out_flag(parser, "write the pictures into this folder (default: runs/inspect)")
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


def _add_report_flags(parser: Parser) -> None:
    parser.add_argument(
        "run", metavar="RUN", help="folder of a run, complete or not, which report.html is written into"
    )


def _add_configs_flags(parser: Parser) -> None:
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


def _add_doctor_flags(parser: Parser) -> None:
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


def _add_verify_flags(parser: Parser) -> None:
    _add_device_flag(parser)
    parser.add_argument("--quick", action="store_true", help="take about two minutes instead of fifteen")
    _add_out_flag(parser, "write verify.json and verify.md into this folder (default: runs/verify)")


def _add_training_flags(parser: Parser, out: str) -> None:
    _add_config_flags(parser)
    _add_device_flag(parser)
    _add_out_flag(parser, f"write the results into this folder (default: {out})")


def _add_config_flags(parser: Parser) -> None:
    parser.add_argument(
        "--config", metavar="FILE", help="configuration to use: a YAML file, or a name that ehm configs lists"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        dest="overrides",
        help="override one key of the configuration, for example optim.epochs=20; can be repeated",
    )


def _add_refused_flags(parser: Parser) -> None:
    """Accept ``--config`` and ``--set`` for a command without settings, to explain instead of "unrecognized"."""
    for flag in ("--config", "--set"):
        parser.add_argument(flag, action="append", dest="refused", help=argparse.SUPPRESS)


def _add_device_flag(parser: Parser) -> None:
    parser.add_argument("--device", help=f"device to compute on: {_TRAINING_DEVICES} (default: auto)")


def _add_out_flag(parser: Parser, text: str) -> None:
    parser.add_argument("--out", metavar="DIR", help=text)


def _add_resume_flag(parser: Parser) -> None:
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder of --out")


COMMANDS = {
    "train": Command("ehm.training.pretrain:train", "Pretrain an encoder on unlabelled images.", _add_train_flags),
    "finetune": Command(
        "ehm.tasks.finetune:finetune",
        "Train an encoder for a task: classification, detection, segmentation, retrieval or vision_language.",
        _add_finetune_flags,
    ),
    "probe": Command(
        "ehm.tasks.classification.probe:probe",
        "Measure a frozen encoder by a linear probe, by nearest neighbours and by RankMe.",
        _add_probe_flags,
    ),
    "compare": Command(
        "ehm.comparison.command:compare",
        "Compare encoders on the same labelled images, or train the arms of a study and compare these.",
        _add_compare_flags,
    ),
    "evaluate": Command(
        "ehm.tasks.evaluate:evaluate", "Measure a fine-tuned model on labelled images.", _add_evaluate_flags
    ),
    "export": Command(
        "ehm.deploy.export:export",
        "Export a fine-tuned model or an encoder as a bundle for ONNX Runtime.",
        _add_export_flags,
    ),
    "predict": Command(
        "ehm.deploy.predict.command:main",
        "Classify images, detect objects, segment or extract features with an exported bundle.",
        _add_predict_flags,
    ),
    "launch": Command(
        "ehm.deploy.launch.command:launch",
        "Write, and submit, the job that trains on several machines of a cluster: Slurm, Kubeflow or Volcano.",
        _add_launch_flags,
    ),
    "bench": Command(
        "ehm.deploy.bench:bench_export",
        "Measure the latency and throughput of an exported bundle, and of torch beside it if it is installed.",
        _add_bench_flags,
        selectors=("kind",),
    ),
    "serve": Command(
        "ehm.deploy.serve:serve",
        "Serve exported bundles over HTTP, for image files and by the Open Inference Protocol v2.",
        _add_serve_flags,
    ),
    "inspect": Command(
        "ehm.analysis.inspect:inspect",
        "Draw a model's hierarchies, masks, reconstructions, attention or answers, or compare the layers of several.",
        _add_inspect_flags,
    ),
    "report": Command(
        "ehm.report.write:write_report",
        "Write the report of a run again: what was run, curves, pictures and what to do next, in one HTML file.",
        _add_report_flags,
    ),
    "data": Command(
        "ehm.analysis.data_stats.command:measure_data",
        "Measure the images of a source: mean and deviation, formats, copies, files that cannot be read.",
        _add_data_flags,
        selectors=("action",),
    ),
    "tokenizer": Command(
        "ehm.training.tokenizer:train_tokenizer",
        "Train the visual tokens that the objective beit needs, on unlabelled images.",
        _add_tokenizer_flags,
        selectors=("action",),
    ),
    "language": Command(
        "ehm.training.language:train_language_model",
        "Train a tiny language model on text alone: a stand-in for a real one, for examples of vision_language.",
        _add_language_flags,
        selectors=("action",),
    ),
    "configs": Command(
        "ehm.config.listing:configs",
        "List the configurations that come with ehm, or the keys that a configuration can have.",
        _add_configs_flags,
    ),
    "doctor": Command(
        "ehm.doctor:doctor", "Report what this machine offers for training, and what is missing.", _add_doctor_flags
    ),
    "verify": Command(
        "ehm.verification.command:verify",
        "Check a device beside NumPy and the CPU, measure its speed, and write results that can be posted.",
        _add_verify_flags,
    ),
}
"""The commands by name, in the order of ``ehm --help``."""
