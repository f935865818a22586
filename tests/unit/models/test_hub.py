"""Repositories of the Hugging Face Hub, with a stand-in for its download."""

from pathlib import Path

import huggingface_hub
import pytest

from ehm.errors import CheckpointError
from ehm.models import hub


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository on the hub, as a folder; gives the patterns that were downloaded."""
    asked = []

    def download(name, revision, allow_patterns):
        assert (name, revision) == ("owner/name", "v2")
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


@pytest.mark.parametrize(("file", "downloads"), [("model.safetensors", 1), ("pytorch_model.bin", 2)])
def test_weights_are_downloaded_in_one_form(file, downloads, repository, tmp_path):
    (tmp_path / file).touch()
    assert hub.download_repository("hf:owner/name@v2") == Path(tmp_path)
    assert len(repository) == downloads
    assert not any("model*.safetensors" in patterns and "pytorch_model*.bin" in patterns for patterns in repository)


def test_a_name_that_is_none_is_one_sentence():
    with pytest.raises(CheckpointError, match="hf:a/b/c: is no name of a repository, such as facebook/dinov2-small"):
        hub.download_repository("hf:a/b/c")
