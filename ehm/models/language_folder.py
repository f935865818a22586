"""The folder of a language model in Hugging Face's layout: check it before a framework opens it, and recognise it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehm.errors import CheckpointError, ConfigError
from ehm.storage.reading import hash_file, read_json

__all__ = ["RUN_MODEL", "LanguageFolder", "check_same_language_model", "find_language_folder"]

RUN_MODEL = "model"
"""The folder of the model in that of a run of ``ehm language train``."""
_CONFIG = "config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json")
_REMOTE_CODE = "auto_map"
_BLOCK = 4096
_BLOCKS = 64
"""Blocks that are read of each file of weights to recognise the model: reading all of it would take a minute."""


@dataclass(frozen=True)
class LanguageFolder:
    """The folder of a causal language model that can be opened without running code of others; ``source`` names it."""

    source: str
    path: Path
    settings: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the model: its kind and the hashes of its files."""
        names = [name for name in (_CONFIG, *_TOKENIZERS[:-1]) if (self.path / name).is_file()]
        return {
            "source": self.source,
            "model_type": self.settings.get("model_type", ""),
            "files": {name: hash_file(self.path / name) for name in names},
            "weights": _hash_weights(self.path),
        }


def find_language_folder(source: str) -> LanguageFolder:
    """Return the folder that ``language.source`` names.

    Raises ConfigError if it is none, lacks a file, holds another kind of model or asks for code of its own.
    """
    name = f"language.source {source}"
    path = Path(source).expanduser()
    if (path / RUN_MODEL / _CONFIG).is_file():
        path = path / RUN_MODEL
    if not path.is_dir():
        raise ConfigError(
            f"{name}: no such folder; it takes a folder in Hugging Face's layout with {_CONFIG}, a tokenizer and "
            "*.safetensors, or a run of ehm language train"
        )
    if not (path / _CONFIG).is_file():
        if any(path.glob("*.gguf")):
            raise ConfigError(f"{name}: holds a GGUF file; convert it first (docs/vision_language.md)")
        raise ConfigError(f"{name}: has no {_CONFIG}; it takes a language model's folder in Hugging Face's layout")
    settings = read_json(path / _CONFIG, ConfigError, "a model's settings")
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise ConfigError(f"{path / _CONFIG}: has no model_type; it takes the settings of a language model")
    if _REMOTE_CODE in settings:
        raise ConfigError(
            f"{name}: its {_CONFIG} has {_REMOTE_CODE}, which asks for code of its own; ehm runs none, so take a model "
            "that transformers itself knows"
        )
    if settings.get("is_encoder_decoder"):
        raise ConfigError(
            f"{name}: {settings['model_type']} is an encoder with a decoder; take a causal language model"
        )
    if not any((path / tokenizer).is_file() for tokenizer in _TOKENIZERS):
        raise ConfigError(f"{name}: has no tokenizer; {_TOKENIZERS[0]} or {_TOKENIZERS[1]} should lie in it")
    if not any(path.glob("*.safetensors")):
        other = "; those in *.bin are pickles, which can run code" if any(path.glob("*.bin")) else ""
        raise ConfigError(f"{name}: has no weights in *.safetensors{other}; save it again with save_pretrained")
    return LanguageFolder(source, path, settings)


def check_same_language_model(stored: Mapping[str, Any], found: Mapping[str, Any], checkpoint: Path) -> None:
    """Raise CheckpointError if the language model that was ``found`` is not the one that ``stored`` describes.

    Both are descriptions of :meth:`LanguageFolder.describe` with the ``width`` of the model. A folder may have moved.
    """
    trained = f"{checkpoint}: was trained with a language model of width {stored['width']} ({stored['source']})"
    name = f"language.source {found['source']}"
    if stored["width"] != found["width"]:
        raise CheckpointError(f"{trained}, and {name} has {found['width']}")
    differing = sorted({*stored["files"].items()} ^ {*found["files"].items()})
    if differing:
        raise CheckpointError(f"{trained}, and {name} has another {differing[0][0]}; name the folder of that model")
    if stored["weights"] != found["weights"]:
        raise CheckpointError(f"{trained}, and {name} has other weights; name the folder of that model")


def _hash_weights(folder: Path) -> str:
    """Return a SHA-256 of the names, sizes and spread blocks of the files of weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for number in range(_BLOCKS):
                file.seek(max(0, size - _BLOCK) * number // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()
