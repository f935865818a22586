"""Pretrain vision encoders with Evolved Hierarchical Masking; fine-tune, evaluate, export and serve them.

Importing this package imports no framework. The functions below do on first use, and take as arguments the flags of
the commands of the same name; ``overrides`` is ``--set``, ``train_tokenizer`` is ``ehm tokenizer train``,
``train_language_model`` is ``ehm language train``, ``measure_data`` is ``ehm data stats``, ``bench_export`` is ``ehm
bench export``, ``predict_source`` is ``ehm predict SOURCE --bundle DIR``, and ``write_report`` is ``ehm report``.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("ehm")
__all__ = [
    "__version__",
    "bench_export",
    "compare",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "launch",
    "measure_data",
    "predict",
    "predict_source",
    "probe",
    "serve",
    "train",
    "train_language_model",
    "train_tokenizer",
    "verify",
    "write_report",
]

_MODULES = {
    "train": "ehm.training.pretrain",
    "finetune": "ehm.tasks.finetune",
    "probe": "ehm.tasks.classification.probe",
    "compare": "ehm.comparison.command",
    "train_language_model": "ehm.training.language",
    "train_tokenizer": "ehm.training.tokenizer",
    "evaluate": "ehm.tasks.evaluate",
    "inspect": "ehm.analysis.inspect",
    "export": "ehm.deploy.export",
    "measure_data": "ehm.analysis.data_stats.command",
    "launch": "ehm.deploy.launch.command",
    "predict": "ehm.deploy.predict.command",
    "predict_source": "ehm.deploy.predict.bulk.command",
    "bench_export": "ehm.deploy.bench",
    "serve": "ehm.deploy.serve",
    "verify": "ehm.verification.command",
    "write_report": "ehm.report.write",
}
"""The module of each function."""


# Python calls these two for what the module itself does not have (PEP 562), so that `import ehm` stays fast.


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'ehm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
