"""Open a language model and its tokenizer from a folder in Hugging Face's layout, without running code of its own."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from ehm.backends.torch.engine.devices import FACTS
from ehm.config.language import LanguageConfig
from ehm.errors import BackendError, ConfigError
from ehm.installation import build_install_command
from ehm.models.language_folder import LanguageFolder
from ehm.storage.reading import shorten

__all__ = ["import_transformers", "open_language_model"]


def import_transformers(device: torch.device) -> ModuleType:
    """Import transformers, silently; raises BackendError if it is missing or cannot be used with ``device``.

    Only when the device was chosen: transformers asks whether an NPU is there, and so imports torch-npu.
    """
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        if error.name in ("transformers", "tokenizers"):
            raise BackendError(
                f"language models need {error.name}, which is not installed; "
                f"{build_install_command('language')} installs it"
            ) from None
        raise BackendError(f"language models need transformers, which fails: {_explain(device, error)}") from None
    except (RuntimeError, OSError) as error:
        raise BackendError(f"language models need transformers, which fails: {_explain(device, error)}") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers


def open_language_model(folder: LanguageFolder, config: LanguageConfig, device: torch.device) -> tuple[Any, Any]:
    """Open the model, frozen and in evaluation mode on ``device``, and its tokenizer.

    Raises ConfigError if transformers does not know such a model, or finds what is wrong with its files.
    """
    transformers = import_transformers(device)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder.path, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder.path,
            use_safetensors=True,
            dtype=_choose_dtype(config, device),
            attn_implementation="sdpa",
            **options,
        )
    # a file of others can be wrong in any way, and each class of transformers has its own words for it
    except Exception as error:
        raise ConfigError(
            f"language.source {config.source}: transformers cannot open it: {shorten(str(error) or repr(error))}"
        ) from None
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"language.source {config.source}: its tokenizer has no end token (eos_token), with which an answer ends"
        )
    if config.chat and not tokenizer.chat_template:
        raise ConfigError(
            f"language.chat: {config.source} has no chat template; leave it false, or take a model tuned to chat"
        )
    model.requires_grad_(False)
    model.eval()
    model.to(device)
    return model, tokenizer


def _choose_dtype(config: LanguageConfig, device: torch.device) -> torch.dtype:
    offered = FACTS[device.type].dtypes
    name = offered[0] if config.dtype == "auto" else config.dtype
    if name not in offered:
        raise BackendError(f"language.dtype {config.dtype}: not available on {device.type}: {', '.join(offered)} are")
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def _explain(device: torch.device, error: BaseException) -> str:
    explain = FACTS[device.type].explain
    if explain is not None:
        return explain(error)
    return shorten(str(error))
