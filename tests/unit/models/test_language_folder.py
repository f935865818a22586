"""Folders of language models: what is refused, and how a checkpoint knows its model again."""

import json
from pathlib import Path

import pytest

from ehm.errors import CheckpointError, ConfigError
from ehm.models.language_folder import check_same_language_model, find_language_folder


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "language"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 2000)
    return path


def change_settings(path, **settings):
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **settings}))


def rename_weights(path):
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.rename(path.parent / "away"), "no such folder; it takes a folder in Hugging Face's layout"),
        (lambda path: (path / "config.json").unlink(), "has no config.json"),
        (lambda path: (path / "config.json").rename(path / "a.gguf"), "holds a GGUF file; convert it first"),
        (lambda path: (path / "config.json").write_text("[]"), "has no model_type"),
        (lambda path: change_settings(path, auto_map={}), "asks for code of its own; ehm runs none"),
        (lambda path: change_settings(path, is_encoder_decoder=True), "take a causal language model"),
        (lambda path: (path / "tokenizer.json").unlink(), "has no tokenizer"),
        (rename_weights, r"no weights in \*.safetensors; those in \*.bin are pickles"),
    ],
)
def test_a_folder_that_cannot_be_opened_safely_is_refused(folder, spoil, reason):
    assert find_language_folder(str(folder)).path == folder
    spoil(folder)
    with pytest.raises(ConfigError, match=reason):
        find_language_folder(str(folder))


def test_a_run_of_language_training_is_found(tmp_path, folder):
    folder.rename(tmp_path / "model")
    assert find_language_folder(str(tmp_path)).path == tmp_path / "model"


def test_a_model_is_known_wherever_it_lies(folder, tmp_path):
    stored = {**find_language_folder(str(folder)).describe(), "width": 64}
    moved = folder.rename(tmp_path / "moved")
    found = {**find_language_folder(str(moved)).describe(), "width": 64}
    check_same_language_model(stored, found, Path("run"))
    with pytest.raises(CheckpointError, match=r"of width 64 \(.*\), and language.source .*moved has 32"):
        check_same_language_model(stored, {**found, "width": 32}, Path("run"))
    with (moved / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0")
    changed = {**find_language_folder(str(moved)).describe(), "width": 64}
    with pytest.raises(CheckpointError, match="has other weights"):
        check_same_language_model(stored, changed, Path("run"))
    (moved / "tokenizer.json").write_text("[]")
    changed = {**find_language_folder(str(moved)).describe(), "width": 64}
    with pytest.raises(CheckpointError, match=r"has another tokenizer\.json"):
        check_same_language_model(stored, changed, Path("run"))
