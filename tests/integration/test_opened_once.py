"""Each file of a model is read once and hashed once, however many parts of a command ask for it."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

import ehm
from ehm.models.published import hub_folder, opening
from ehm.storage import checkpoint

WRITTEN = Path(__file__).parents[1] / "data" / "written_before"


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Counts of the files that are read and hashed; the current folder is a copy of small runs."""
    counts = Counter()
    originals = {"read": checkpoint.load_file, "hashed": checkpoint.hash_file}

    def count(what):
        def counted(path):
            counts[what, Path(path).name] += 1
            return originals[what](path)

        return counted

    monkeypatch.setattr(checkpoint, "load_file", count("read"))
    monkeypatch.setattr(checkpoint, "hash_file", count("hashed"))
    monkeypatch.setattr(opening, "hash_file", count("hashed"))
    monkeypatch.setattr(hub_folder, "hash_file", count("hashed"))
    shutil.copytree(WRITTEN, tmp_path / "written")
    monkeypatch.chdir(tmp_path / "written")
    return counts


@pytest.mark.parametrize(
    ("task", "head"),
    [
        *(("classification", head) for head in ("auto", "features")),
        *(("segmentation", head) for head in ("auto", "patches")),
        *(("retrieval", "auto"), ("pretrain", "auto"), ("detection", "features")),
    ],
)
def test_an_export_opens_a_checkpoint_once(task, head, calls):
    ehm.export(f"trained/{task}", head=head, out="exported")
    assert calls == {("read", "model.safetensors"): 1, ("hashed", "model.safetensors"): 1}


def test_an_export_of_a_whole_detector_opens_it_once(calls):
    pytest.importorskip("torchvision", reason="comes with the extra tasks")
    ehm.export("trained/detection", out="exported")
    assert calls == {("read", "model.safetensors"): 1, ("hashed", "model.safetensors"): 1}


@pytest.mark.parametrize("task", ["classification", "segmentation", "detection", "retrieval"])
def test_an_evaluation_opens_its_checkpoint_once(task, calls):
    if task == "detection":
        pytest.importorskip("faster_coco_eval", reason="comes with the extra tasks")
    ehm.evaluate(f"trained/{task}", device="cpu")
    assert calls == {("read", "model.safetensors"): 1, ("hashed", "model.safetensors"): 1}


@pytest.mark.parametrize("task", ["classification", "retrieval"])
def test_a_resumed_run_opens_its_checkpoint_once(task, calls, monkeypatch):
    read = Counter()
    original = checkpoint.load_file

    def count(path):
        read[path] += 1
        return original(path)

    monkeypatch.setattr(checkpoint, "load_file", count)
    ehm.finetune(device="cpu", overrides=["run.max_steps=null"], out=f"trained/{task}", resume=True)
    # the checkpoint of the start, and the last one, from which the encoder's folders are written
    assert {path.name for path in read} == {"model.safetensors", "optimizer.safetensors"}
    assert set(read.values()) == {1}
