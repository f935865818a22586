"""Fine-tuning from the first step to the report: what it learns, what it must not, and that it can be stopped."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from safetensors.numpy import load_file
from sklearn.metrics import balanced_accuracy_score
from timm.loss import SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay

from ehm.backends.torch.learners.classification import TorchClassifier, soft_cross_entropy
from ehm.cli import main
from ehm.config import FinetuneConfig
from ehm.data import EvalTransform, decode_image, stratified_folds
from ehm.errors import CheckpointError, ConfigError, DataError, TrainingError
from ehm.storage.checkpoint import newest_checkpoint, open_checkpoint, save_checkpoint
from ehm.tasks.evaluate import evaluate
from ehm.tasks.finetune import finetune

CPU = torch.device("cpu")


@pytest.fixture
def config(stripes):
    """Make a tiny run on the striped pictures, with sections as keywords."""

    def make(**sections):
        values = {
            "model": {
                "encoder": "vit_tiny",
                "width": 32,
                "depth": 2,
                "heads": 2,
                "image_size": 32,
                "patch_size": 8,
                "drop_path": 0.1,
            },
            "data": {"source": str(stripes), "crop_scale": [0.5, 1], "workers": 0},
            "augment": {"rand_augment": None, "mixup": 0, "cutmix": 0, "random_erasing": 0},
            "layer_decay": 1.0,
            "optim": {"epochs": 15, "batch_size": 8, "base_lr": 0.1, "warmup_epochs": 1, "dtype": "float32"},
            "run": {"trackers": []},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        return FinetuneConfig.model_validate(values)

    return make


def invert(root, target):
    """The same pictures in opposite colours: other images, of which the classes are told as before."""
    for file in root.rglob("*.png"):
        copy = target / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.invert(Image.open(file)).save(copy)
    return target


def test_it_learns_what_the_labels_say_and_not_what_they_do_not(config, stripes, tmp_path, capsys):
    learned = finetune(config(), device="cpu", out=tmp_path / "true")
    assert learned.report.top1 > 0.9
    assert learned.report.auc > 0.95
    assert learned.report.classes == ("across", "down")
    said = capsys.readouterr().out
    assert "balanced accuracy" in said
    assert str(tmp_path / "true" / "metrics.json") in said

    files = sorted(stripes.rglob("*.png"))
    shuffled = np.random.default_rng(0).permutation(len(files))
    for place, file in zip(shuffled, files, strict=True):
        target = tmp_path / "shuffled" / ("ab"[place % 2]) / f"{place}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    guessed = finetune(config(data={"source": str(tmp_path / "shuffled")}), device="cpu", out=tmp_path / "false")
    assert guessed.report.top1 < 1  # of ten pictures; eight are guessed right by luck now and then


def test_what_it_leaves_behind(config, tmp_path):
    result = finetune(config(optim={"epochs": 3}), device="cpu", out=tmp_path / "run")
    opened = open_checkpoint(tmp_path / "run")
    arrays = opened.model
    meta = opened.metadata
    assert (meta["kind"], meta["classes"], meta["image_size"]) == ("classifier", ["across", "down"], [32, 32])
    assert meta["encoder"]["depth"] == 2
    assert meta["metrics"]["top1"] == result.report.top1
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written["confusion"] == [list(row) for row in result.report.confusion]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "top1" in line] == [1, 2, 3]
    best = max(line["balanced_accuracy"] for line in lines if "top1" in line)
    assert (
        open_checkpoint(result.best).metadata["metrics"]["balanced_accuracy"]
        == best
        == written["best"]["balanced_accuracy"]
    )

    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=2,
        global_pool="avg",
    )
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True)


def test_a_stopped_run_ends_like_one_that_was_not(config, tmp_path):
    options = {
        "augment": {"rand_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25},
        "model": {"drop_path": 0.5},
    }
    whole = finetune(config(optim={"epochs": 4}, **options), device="cpu", out=tmp_path / "whole")
    # 4 steps an epoch: stopped after 1.5 epochs, with a checkpoint every half epoch
    stopped = config(optim={"epochs": 4}, run={"max_steps": 6, "checkpoint_every": 0.5}, **options)
    finetune(stopped, device="cpu", out=tmp_path / "stopped")
    (tmp_path / "elsewhere").mkdir()
    resumed = finetune(
        config(optim={"epochs": 4}, run={"checkpoint_every": 0.5}, **options),
        device="cpu",
        out=tmp_path / "stopped",
        resume=True,
    )
    assert resumed.report == whole.report
    assert resumed.checkpoint.name == whole.checkpoint.name == "step-00000016"
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = load_file(resumed.checkpoint / name), load_file(whole.checkpoint / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    again = finetune(device="cpu", out=tmp_path / "stopped", resume=True)  # nothing left to do
    assert again.report == whole.report


def test_a_run_is_not_continued_by_accident_nor_with_other_settings(config, tmp_path):
    finetune(config(optim={"epochs": 1}), device="cpu", out=tmp_path / "run")
    with pytest.raises(ConfigError, match="--resume continues it"):
        finetune(config(optim={"epochs": 1}), device="cpu", out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"layer_decay was 1\.0 and is 0\.9"):
        finetune(config(optim={"epochs": 1}, layer_decay=0.9), device="cpu", out=tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match="no run in"):
        finetune(device="cpu", out=tmp_path / "nowhere", resume=True)


@pytest.mark.parametrize("frozen", [False, True])
def test_two_parts_of_a_batch_make_the_same_step_as_the_whole(config, frozen):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)  # 4 + 3
    targets = rng.dirichlet(np.ones(3), 7).astype(np.float32)
    states = []
    for accumulate in (1, 2):
        settings = config(model={"drop_path": 0}, optim={"accumulate": accumulate, "clip_grad": 0.5}, frozen=frozen)
        classifier = TorchClassifier(settings, 3, CPU)
        losses = [float(classifier.train_step(images, targets, 0.01, 0.05)["loss"]) for _ in range(3)]
        states.append((losses, classifier.state()))
    (losses, whole), (parts_losses, parts) = states
    assert losses == pytest.approx(parts_losses, rel=1e-5)
    for name, array in whole.model.items():
        np.testing.assert_allclose(array, parts.model[name], atol=2e-4, err_msg=name)


def test_the_step_is_plain_torch_arithmetic(config):
    """One AdamW step against a model of timm's, trained by hand with timm's own layer decay."""
    settings = config(model={"drop_path": 0}, layer_decay=0.65)
    classifier = TorchClassifier(settings, 3, CPU)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=3,
        global_pool="avg",
    )
    model.load_state_dict(classifier.model.state_dict())
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    targets = rng.dirichlet(np.ones(3), 4).astype(np.float32)
    groups = param_groups_layer_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.65)
    for group in groups:
        group["lr"] = 0.01 * group.pop("lr_scale")
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    for _ in range(2):
        loss = SoftTargetCrossEntropy()(model(pixels), torch.from_numpy(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ours = float(classifier.train_step(images, targets, 0.01, 0.05)["loss"])
        assert ours == pytest.approx(loss.item(), rel=1e-4)
    for name, value in classifier.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=1e-3, rtol=0, msg=name)


def test_drop_path_depends_on_the_seed_and_the_step_alone(config):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    targets = np.full((4, 2), 0.5, np.float32)

    def losses(noise):
        classifier = TorchClassifier(config(model={"drop_path": 0.5}), 2, CPU)
        with torch.no_grad():
            classifier.model.head.weight.copy_(torch.linspace(-1, 1, 64).view(2, 32) ** 3)
        torch.manual_seed(noise)
        return [float(classifier.train_step(images, targets, 0.0, 0.0)["loss"]) for _ in range(3)]

    first = losses(1)
    assert losses(2) == first
    assert len(set(first)) > 1  # each step drops other paths


def test_soft_cross_entropy_of_one_hot_targets_is_torchs():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    ours = soft_cross_entropy(logits, torch.nn.functional.one_hot(labels, 3).float())
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, labels))


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(config, tmp_path):
    settings = config(optim={"base_lr": 1e30, "warmup_epochs": 2, "epochs": 3}, run={"log_every": 1})
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+; no checkpoint was written yet"):
        finetune(settings, device="cpu", out=tmp_path / "run")
    finetune(config(optim={"epochs": 2}, run={"max_steps": 4}), device="cpu", out=tmp_path / "second")
    state = newest_checkpoint(tmp_path / "second" / "checkpoints")
    opened = open_checkpoint(state)
    arrays = opened.state
    meta = opened.metadata
    arrays.model["head.weight"][:] = np.nan
    meta.pop("sha256")
    broken = save_checkpoint(tmp_path / "second" / "checkpoints", arrays, meta)
    with pytest.raises(TrainingError, match=f"the last good checkpoint is {broken}"):
        finetune(config(optim={"epochs": 2}), device="cpu", out=tmp_path / "second", resume=True)


def test_evaluation_gives_the_figures_of_training_and_takes_other_images(config, stripes, tmp_path, capsys):
    trained = finetune(config(), device="cpu", out=tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert evaluate(tmp_path / "moved", device="cpu", out=tmp_path / "report") == trained.report
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["part"] == "fold 0 of 5"

    other = invert(stripes, tmp_path / "other")
    whole = evaluate(tmp_path / "moved", device="cpu", overrides=[f"data.source={other}"])
    assert whole.samples == 48
    assert whole.classes == ("across", "down")
    assert whole.top1 > 0.9
    shutil.move(other / "across", other / "zigzag")
    with pytest.raises(DataError, match="class zigzag is not among the classifier's 2"):
        evaluate(tmp_path / "moved", device="cpu", overrides=[f"data.source={other}"])


def test_the_report_is_what_a_plain_loop_over_the_files_finds(config, stripes, tmp_path):
    trained = finetune(config(optim={"epochs": 3}), device="cpu", out=tmp_path / "run")
    other = invert(stripes, tmp_path / "other")
    result = evaluate(tmp_path / "run", device="cpu", overrides=[f"data.source={other}"])
    model = TorchClassifier(config(), 2, CPU)
    model.load(open_checkpoint(trained.checkpoint).state)
    files = sorted(other.rglob("*.png"))
    pixels = np.stack([EvalTransform((32, 32))(decode_image(file), np.random.default_rng(0)) for file in files])
    predicted = model.compute_logits(pixels).argmax(1)
    labels = [file.parent.name == "down" for file in files]
    assert result.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_broken_files_are_listed_and_do_not_count(config, stripes, tmp_path, capsys):
    for number in range(20):
        (stripes / "down" / f"9{number:02d}.png").write_bytes(b"no picture")
    result = finetune(config(optim={"epochs": 1}), device="cpu", out=tmp_path / "run")
    held_out = stratified_folds([0] * 24 + [1] * 44, 5, seed=0) == 0  # "down" has 24 pictures, then 20 broken files
    assert result.report.support == (held_out[:24].sum(), held_out[24:48].sum())
    assert held_out[48:].any()
    said = capsys.readouterr().out
    assert "files were skipped because they cannot be read" in said
    assert "900.png: " in said


def test_wrong_input_is_one_sentence(config, images, tmp_path, capsys):
    with pytest.raises(DataError, match=r"has no labels: all of its images lie in one folder, .*; put each class"):
        finetune(config(data={"source": str(images)}), device="cpu", out=tmp_path / "run")
    opened = open_checkpoint(finetune(config(optim={"epochs": 1}), device="cpu", out=tmp_path / "run").checkpoint)
    state = opened.state
    meta = opened.metadata
    save_checkpoint(tmp_path / "encoder", state, {**meta, "kind": "pretrain", "sha256": None})
    with pytest.raises(CheckpointError, match="holds a pretrained encoder, not a classifier"):
        evaluate(tmp_path / "encoder", device="cpu")
    status = main(["finetune", "--device", "cpu", "--out", str(tmp_path / "x"), "--set", f"model.init={tmp_path}/none"])
    assert status == 1
    error = capsys.readouterr().err
    assert error.startswith("ehm finetune: model.init")
    assert error.count("\n") == 1


def test_one_of_timms_networks_can_be_fine_tuned_and_opened_again(config, tmp_path):
    settings = config(
        model={"init": "timm:resnet10t?pretrained=false", "width": None, "depth": None, "heads": None},
        optim={"epochs": 1, "base_lr": 0.03},
    )
    trained = finetune(settings, device="cpu", out=tmp_path / "run")
    assert evaluate(tmp_path / "run", device="cpu") == trained.report
