"""The parts of ehm, each with the steps that show which operators it runs, on tiny models.

``PARTS`` has them by the name that ``ehm doctor --operators`` takes. A part is called with a backend and a precision,
and yields what is to be recorded; what it does in between is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ehm.backends.torch import TorchBackend
from ehm.backends.torch.diagnosis.parts.measuring import (
    inspect_encoders,
    train_language_model,
    train_tokenizer,
    watch_pretraining,
)
from ehm.backends.torch.diagnosis.parts.pretraining import pretrain
from ehm.backends.torch.diagnosis.parts.tasks import TASK_SETTINGS, probe_encoder, train_task
from ehm.config.objectives import OBJECTIVES

__all__ = ["PARTS", "Part"]

Part = Callable[[TorchBackend, str], Iterator[Callable[[], object]]]

PARTS: dict[str, Part] = {
    **{objective: partial(pretrain, objective) for objective in OBJECTIVES},
    "tokenizer": train_tokenizer,
    "watch": watch_pretraining,
    "language": train_language_model,
    **{task: partial(train_task, task) for task in TASK_SETTINGS},
    "probe": probe_encoder,
    "inspect": inspect_encoders,
}
"""All that ehm can run on a device: pretraining by each objective, its tokenizers and what watches it, tiny language
models, then the tasks, probes, and pictures and figures of encoders."""
