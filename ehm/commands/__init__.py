"""The commands of ``ehm``: the function behind each, its help and its flags.

A flag is a parameter of the command's function, and ``--set`` is ``overrides``. A flag that is not given is not passed
to the function, whose own default then applies. Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ehm.commands.bundles import add_bench_flags, add_export_flags, add_predict_flags, add_serve_flags
from ehm.commands.cluster import add_launch_flags
from ehm.commands.examination import (
    add_configs_flags,
    add_data_flags,
    add_doctor_flags,
    add_inspect_flags,
    add_report_flags,
    add_verify_flags,
)
from ehm.commands.flags import Parser
from ehm.commands.shell import add_completion_flags, add_manual_flags
from ehm.commands.training import (
    add_compare_flags,
    add_evaluate_flags,
    add_finetune_flags,
    add_language_flags,
    add_probe_flags,
    add_tokenizer_flags,
    add_train_flags,
)

__all__ = ["COMMANDS", "HEADINGS", "Command"]


@dataclass(frozen=True)
class Command:
    """A command: ``function`` is "module:name", and ``selectors`` are arguments that are not passed to it.

    ``has_quiet`` and ``has_json`` are true if the command has the common flags ``--quiet`` and ``--json``. A function
    with a parameter ``json`` has a flag ``--json`` of its own instead.
    """

    function: str
    help: str
    add_flags: Callable[[Parser], None]
    selectors: tuple[str, ...] = ()
    has_quiet: bool = True
    has_json: bool = True

    def run(self, options: Mapping[str, Any]) -> Any:
        """Call the function with ``options`` and return its result."""
        module, _, name = self.function.partition(":")
        arguments = {key: value for key, value in options.items() if key not in self.selectors}
        return getattr(import_module(module), name)(**arguments)


COMMANDS = {
    "train": Command("ehm.training.pretrain:train", "Pretrain an encoder on unlabelled images.", add_train_flags),
    "finetune": Command(
        "ehm.tasks.finetune:finetune",
        "Train an encoder for a task: classification, detection, segmentation, retrieval or vision_language.",
        add_finetune_flags,
    ),
    "tokenizer": Command(
        "ehm.training.tokenizer:train_tokenizer",
        "Train the visual tokens that the objective beit needs, on unlabelled images.",
        add_tokenizer_flags,
        selectors=("action",),
    ),
    "language": Command(
        "ehm.training.language:train_language_model",
        "Train a tiny language model on text alone: a stand-in for a real one, for examples of vision_language.",
        add_language_flags,
        selectors=("action",),
    ),
    "launch": Command(
        "ehm.deploy.launch.command:launch",
        "Write, and submit, the job that trains on several machines of a cluster: Slurm, Kubeflow or Volcano.",
        add_launch_flags,
    ),
    "probe": Command(
        "ehm.tasks.classification.probe:probe",
        "Measure a frozen encoder by a linear probe, by nearest neighbours and by RankMe.",
        add_probe_flags,
    ),
    "compare": Command(
        "ehm.comparison.command:compare",
        "Compare encoders on the same labelled images, or train the arms of a study and compare these.",
        add_compare_flags,
    ),
    "evaluate": Command(
        "ehm.tasks.evaluate:evaluate", "Measure a fine-tuned model on labelled images.", add_evaluate_flags
    ),
    "export": Command(
        "ehm.deploy.export:export",
        "Export a fine-tuned model or an encoder as a bundle for ONNX Runtime.",
        add_export_flags,
    ),
    "predict": Command(
        "ehm.deploy.predict.command:main",
        "Classify images, detect objects, segment or extract features with an exported bundle.",
        add_predict_flags,
        has_json=False,
    ),
    "bench": Command(
        "ehm.deploy.bench:bench_export",
        "Measure the latency and throughput of an exported bundle, and of torch beside it if it is installed.",
        add_bench_flags,
        selectors=("kind",),
        has_json=False,
    ),
    "serve": Command(
        "ehm.deploy.serve:serve",
        "Serve exported bundles over HTTP, for image files and by the Open Inference Protocol v2.",
        add_serve_flags,
        has_quiet=False,
        has_json=False,
    ),
    "inspect": Command(
        "ehm.analysis.inspect:inspect",
        "Draw a model's hierarchies, masks, reconstructions, attention or answers, or compare the layers of several.",
        add_inspect_flags,
    ),
    "report": Command(
        "ehm.report.write:write_report",
        "Write the report of a run again: what was run, curves, pictures and what to do next, in one HTML file.",
        add_report_flags,
    ),
    "data": Command(
        "ehm.analysis.data_stats.command:measure_data",
        "Measure the images of a source: mean and deviation, formats, copies, files that cannot be read.",
        add_data_flags,
        selectors=("action",),
    ),
    "configs": Command(
        "ehm.config.listing:configs",
        "List the configurations that come with ehm, or the keys that a configuration can have.",
        add_configs_flags,
        has_quiet=False,
        has_json=False,
    ),
    "doctor": Command(
        "ehm.doctor:doctor",
        "Report what this machine offers for training, and what is missing.",
        add_doctor_flags,
        has_quiet=False,
        has_json=False,
    ),
    "verify": Command(
        "ehm.verification.command:verify",
        "Check a device beside NumPy and the CPU, measure its speed, and write results that can be posted.",
        add_verify_flags,
        has_json=False,
    ),
    "completion": Command(
        "ehm.commands.completion:print_completion",
        "Print the script that lets a shell complete commands, flags, keys and names by the Tab key.",
        add_completion_flags,
        has_quiet=False,
        has_json=False,
    ),
    "man": Command("ehm.commands.manual:write_manual", "Write the manual pages of all commands.", add_manual_flags),
}
"""The commands by name, in the order of ``ehm --help``."""

HEADINGS = {
    "train": "train",
    "probe": "measure",
    "export": "export and predict",
    "inspect": "look at pictures, runs, data and configurations",
    "doctor": "this machine and its shell",
}
"""The headings of groups of commands in ``ehm --help``, by the first command of each."""
