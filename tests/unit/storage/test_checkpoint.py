"""Checkpoints: whole or absent, and never trusted blindly."""

import json
import os

import numpy as np
import pytest

from ehm.errors import CheckpointError
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import (
    newest_checkpoint,
    open_checkpoint,
    open_to_resume,
    prune_checkpoints,
    save_checkpoint,
)


def state(value=0.0):
    return LearnerState(
        {"blocks.0.attn.qkv.weight": np.full((6, 2), value, np.float32).T},  # not contiguous
        {"step": np.array(3.0, np.float32), "exp_avg": np.arange(4, dtype=np.float64)},
    )


def save(folder, step, value=0.0):
    return save_checkpoint(folder, state(value), {"kind": "pretrain", "step": step, "epoch": step / 10})


def test_what_is_read_is_what_was_written(tmp_path):
    path = save(tmp_path, 7, 1.5)
    opened = open_checkpoint(path)
    read = opened.state
    meta = opened.metadata
    for ours, theirs in ((read.model, state(1.5).model), (read.optimizer, state().optimizer)):
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])
            assert (ours[key].dtype, ours[key].shape) == (theirs[key].dtype, theirs[key].shape)
    assert path.name == "step-00000007"
    assert meta["step"] == 7
    assert meta["kind"] == "pretrain"
    assert set(meta["sha256"]) == {"model.safetensors", "optimizer.safetensors"}
    assert open_checkpoint(path).model.keys() == read.model.keys()


def test_newest_complete_one_wins_and_debris_is_cleared(tmp_path):
    save(tmp_path, 9)
    save(tmp_path, 10)
    (tmp_path / ".step-00000011").mkdir()  # what a kill during a write leaves
    (tmp_path / ".step-00000011/model.safetensors").write_bytes(b"half")
    (tmp_path / "step-00000012").mkdir()  # no state.json: not a checkpoint
    assert newest_checkpoint(tmp_path).name == "step-00000010"
    (tmp_path / "step-00000012").rmdir()
    save(tmp_path, 11)
    prune_checkpoints(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


def test_the_one_just_written_is_kept_whatever_its_step(tmp_path):
    """A resumed run may find a better checkpoint at an earlier step than the best one of its first attempt."""
    for step in (9, 12, 10):
        written = save(tmp_path, step)
    prune_checkpoints(tmp_path, 2, written)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000012"]
    prune_checkpoints(tmp_path, 1, written)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_what_users_put_beside_checkpoints_is_neither_deleted_nor_gone_on_from(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        save(folder, step)
    (folder / "step-00000003").rename(folder / "step-00000003-damaged")  # as a message of --resume advises
    (folder / "step-00000001").rename(tmp_path / "elsewhere")
    (folder / "step-00000001").symlink_to(tmp_path / "elsewhere")
    (folder / "step-00000001.tar").touch()
    (folder / ".step-notes").touch()
    assert newest_checkpoint(folder).name == "step-00000002"
    save(folder, 4)
    prune_checkpoints(folder, 2)
    found = {path.name for path in folder.iterdir()}
    assert found == {".step-notes", "step-00000001.tar", "step-00000002", "step-00000003-damaged", "step-00000004"}
    assert (tmp_path / "elsewhere" / "state.json").is_file()


def test_a_damaged_checkpoint_names_the_one_to_go_on_from(tmp_path):
    earlier, path = save(tmp_path, 3), save(tmp_path, 7)
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"damaged; without .*step-00000007, --resume goes on from step-00000003"):
        open_to_resume(tmp_path)
    path.rename(tmp_path / "damaged")  # as the message says
    assert open_to_resume(tmp_path).metadata["step"] == 3
    (earlier / "state.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no other checkpoint lies beside it, so start a new run"):
        open_to_resume(tmp_path)


def test_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 3, 1.0)
    path = save(tmp_path, 3, 2.0)
    assert open_checkpoint(path).model["blocks.0.attn.qkv.weight"][0, 0] == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


def test_resolve_takes_run_folder_or_checkpoint(tmp_path):
    path = save(tmp_path / "run/checkpoints", 5)
    for given in (path, tmp_path / "run", tmp_path / "run/checkpoints"):
        assert open_checkpoint(given).folder == path
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_an_altered_or_missing_file_is_named(tmp_path, name):
    path = save(tmp_path, 1)
    data = bytearray((path / name).read_bytes())
    data[-1] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{name}: does not match"):
        open_to_resume(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: missing"):
        open_to_resume(path)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file here that is there and cannot be read")
def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = save(tmp_path, 1)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read: Input/output error"):
        open_to_resume(path)


def test_another_format_is_refused(tmp_path):
    path = save(tmp_path, 1)
    meta = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**meta, "format": 2}))
    with pytest.raises(CheckpointError, match="format 2"):
        open_to_resume(path)
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a checkpoint's state: Expecting property name"):
        open_to_resume(path)


@pytest.mark.parametrize("changes", [{"step": "one"}, {"sha256": []}, {"sha256": {}}])
def test_an_altered_state_is_one_sentence(tmp_path, changes):
    path = save(tmp_path, 1)
    meta = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(meta | changes))
    with pytest.raises(CheckpointError, match="it was altered or damaged"):
        open_to_resume(path)
