"""Runs of detection: stopped, in two processes, on boxes alone, with an encoder of one size, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from detection_configs import SIDE, make_detection_config
from safetensors.numpy import load_file
from scenes import annotate, write_scenes

from ehm.backends.torch.learners.detection import TorchDetector
from ehm.cli import main
from ehm.data.sources.coco import read_coco
from ehm.errors import CheckpointError, ConfigError, DataError
from ehm.tasks.finetune import finetune


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Eight pictures, one file of annotations beside one folder: what has no parts of its own."""
    root = tmp_path_factory.mktemp("few")
    write_scenes(root, 8, 0, "train", SIDE)
    (root / "train").rename(root / "images")
    (root / "annotations" / "instances_train.json").rename(root / "instances.json")
    (root / "annotations").rmdir()
    return root


def test_a_stopped_run_ends_like_one_that_was_not(few, tmp_path):
    settings = {
        "data": {"workers": 1},
        "min_size": [48, 56, 64],
        "optim": {"epochs": 2, "batch_size": 2, "clip_grad": 1, "accumulate": 2, "warmup_steps": 2},
        "folds": 4,
    }
    whole = finetune(make_detection_config(few, **settings), device="cpu", out=tmp_path / "whole")
    run = {"max_steps": 4, "checkpoint_every": 0.5}  # of 6
    finetune(make_detection_config(few, **settings, run=run), device="cpu", out=tmp_path / "stopped")
    again = make_detection_config(few, **settings, run={"checkpoint_every": 0.5})
    resumed = finetune(again, device="cpu", out=tmp_path / "stopped", resume=True)
    assert resumed.report == whole.report
    assert resumed.checkpoint.name == whole.checkpoint.name == "step-00000006"
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours = load_file(resumed.checkpoint / name)
        theirs = load_file(whole.checkpoint / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def test_two_processes_are_one_run(few, tmp_path, pair):
    settings = make_detection_config(
        few,
        model={"drop_path": 0},
        optim={"epochs": 1, "batch_size": 2, "warmup_steps": 0},
        folds=4,
        proposals=4096,  # all of them: nothing is drawn at random
        run={"log_every": 1},
    )
    (tmp_path / "c.json").write_text(json.dumps(settings.model_dump(mode="json")))
    one = finetune(settings, device="cpu", out=tmp_path / "one")
    pair.run("finetune", "--device", "cpu", "--config", str(tmp_path / "c.json"), "--out", str(tmp_path / "two"))
    report = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert report["images"] == one.report.images == 2
    assert report["objects"] == list(one.report.objects)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(losses[0]) == len(losses[1]) == 3
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.1)  # batch norm and the sampling of anchors see halves


def test_boxes_alone_train_too(few, tmp_path):
    content = json.loads((few / "instances.json").read_text())
    for each in content["annotations"]:
        del each["segmentation"]
    root = tmp_path / "boxes"
    shutil.copytree(few, root)
    (root / "instances.json").write_text(json.dumps(content))
    settings = {"run": {"max_steps": 2}, "optim": {"batch_size": 2}}
    with pytest.raises(DataError, match="masks=false trains on boxes alone"):
        finetune(make_detection_config(root, **settings), device="cpu", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    result = finetune(make_detection_config(root, **settings, masks=False), device="cpu", out=tmp_path / "run")
    assert list(result.metrics) == ["box_ap", "box_ap50", "box_ap75"]
    assert result.report.masks is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_encoder_of_one_size_gets_padded_squares_and_boxes_come_back_in_pixels(few, dtype):
    model = {"init": "timm:swin_tiny_patch4_window7_224?pretrained=false", "image_size": 64}
    model |= dict.fromkeys(("width", "depth", "heads", "patch_size"))
    config = make_detection_config(few, model=model, optim={"dtype": dtype}, score_threshold=0)
    detector = TorchDetector(config, 2, torch.device("cpu"))
    assert detector.image_size == (64, 64)
    source = read_coco(str(few), "all")
    images, targets = zip(*(source.load(index) for index in (0, 1)), strict=True)
    wide = np.zeros((40, 150, 3), np.uint8)
    tensors, _ = detector.model.transform.eval()([torch.zeros(3, 40, 150), torch.zeros(3, 64, 56)])
    assert tensors.tensors.shape[2:] == (64, 64)
    assert tensors.image_sizes == [(17, 64), (64, 56)]
    assert np.isfinite(float(detector.train_step(images, targets, 1e-4, 0.05)["loss"]))
    (found,) = detector.detect_objects([wide])
    assert found.masks.shape[1:] == (40, 150)
    assert len(found.boxes)
    assert (found.boxes >= 0).all()
    assert 64 < found.boxes[:, 2].max() <= 150
    assert found.boxes[:, 3].max() <= 40
    assert detector.detect_objects([]) == []


def test_what_does_not_fit_is_said(few, tmp_path):
    bare = dict.fromkeys(("width", "depth", "heads", "patch_size"))
    swin = {"init": "timm:swin_tiny_patch4_window7_224?pretrained=false", "image_size": [64, 96], **bare}
    with pytest.raises(ConfigError, match="should be a square of a multiple of 32 pixels"):
        TorchDetector(make_detection_config(few, model=swin), 2, torch.device("cpu"))
    with pytest.raises(ValueError, match="min_size 100 is more than max_size 96"):
        make_detection_config(few, min_size=100)
    with pytest.raises(ValueError, match="crop_scale"):
        make_detection_config(few, data={"crop_scale": (0.5, 1)})  # which does not crop
    config = make_detection_config(few, model={"init": str(tmp_path / "nothing")})
    with pytest.raises(CheckpointError, match="nothing"):
        finetune(config, device="cpu", out=tmp_path / "run")


def test_useless_objects_are_named_before_training(few, tmp_path, capsys):
    root = tmp_path / "bad"
    shutil.copytree(few, root)
    content = json.loads((root / "instances.json").read_text())
    first = content["images"][0]
    mask = np.zeros((first["height"], first["width"]), bool)
    mask[:5, :5] = True
    content["annotations"].append(annotate(999, first["id"], 0, mask) | {"bbox": [200, 0, 5, 5]})
    (root / "instances.json").write_text(json.dumps(content))
    (root / "images" / content["images"][3]["file_name"]).unlink()
    config = make_detection_config(root, run={"max_steps": 2}, optim={"warmup_steps": 0})
    (tmp_path / "c.json").write_text(json.dumps(config.model_dump(mode="json")))
    command = ["finetune", "--device", "cpu", "--out", str(tmp_path / "run"), "--config", str(tmp_path / "c.json")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.index("annotation 999 of 000.jpg: its box [200, 0, 5, 5] has no area") < said.index("finetune 2/2")
    assert "003.jpg: No such file or directory" in said.replace("\n", "")
