"""The way of an adapted encoder through the commands: pretrained, adapted, fine-tuned, measured and predicted with."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import RUN, TINY

from ehm.cli import main
from ehm.data import EvalTransform, decode_image
from ehm.storage.checkpoint import open_checkpoint

LORA = {"lora.rank": 2, "lora.targets": "[attn.qkv, attn.proj, mlp]", "lora.dropout": 0.1}
PRETRAIN = {**TINY, **RUN, "optim.ema_decay": 0.9}
FINETUNE = {
    **RUN,
    **LORA,
    "optim.epochs": 3,
    "layer_decay": 0.9,
    "model.freeze": 1,
    "model.image_size": 32,
    "augment.rand_augment": "null",
}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}


def command(*arguments, **settings):
    overrides = [f"--set={key}={value}" for key, value in settings.items()]
    assert main([*map(str, arguments), *overrides]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("adapting")


@pytest.fixture(scope="module")
def pictures(folder):
    """Twelve pictures of two colours, a folder for each."""
    rng = np.random.default_rng(0)
    for colour in range(2):
        for index in range(6):
            path = folder / "pictures" / "ab"[colour] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128, (32, 32, 3), dtype=np.uint8) + np.array([120 * colour, 60, 0], np.uint8)
            Image.fromarray(pixels).save(path)
    return folder / "pictures"


@pytest.fixture(scope="module")
def adapted(folder, pictures):
    """A run that goes on from another by an update, stopped once and resumed."""
    command("train", "--device", "cpu", "--out", folder / "start", **PRETRAIN, **{"data.source": pictures})
    settings = {**PRETRAIN, **LORA, "data.source": pictures, "model.init": folder / "start"}
    out = ("train", "--device", "cpu", "--out", folder / "adapted")
    command(*out, **settings, **{"run.max_steps": 4})
    command(*out, "--resume", **{"run.max_steps": "null"})
    command("train", "--device", "cpu", "--out", folder / "whole", **settings)
    return folder / "adapted"


def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(adapted, folder):
    ours, theirs = (open_checkpoint(run).state for run in (adapted, folder / "whole"))
    for one, other in ((ours.model, theirs.model), (ours.optimizer, theirs.optimizer)):
        assert one.keys() == other.keys()
        for name, array in one.items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_timm_loads_the_encoder_and_its_average(adapted, folder):
    start = load_file(folder / "start" / "encoder.safetensors")
    for name in ("encoder.safetensors", "encoder_ema.safetensors"):
        arrays = load_file(adapted / name)
        model = timm.create_model("vit_tiny_patch16_224", **VIT, num_classes=0, global_pool="token")
        model.load_state_dict(arrays, strict=True)
        moved = {key for key in arrays if not torch.equal(arrays[key], start[key])}
        layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        assert moved == {f"blocks.{block}.{layer}.weight" for block in range(2) for layer in layers}


def test_an_update_is_fine_tuned_measured_exported_and_predicted_with(adapted, folder, pictures, capsys):
    run = folder / "finetuned"
    settings = {**FINETUNE, "data.source": pictures, "model.init": adapted}
    command("finetune", "--device", "cpu", "--out", run, **settings)
    said = capsys.readouterr().out
    assert " parameters learn" in said
    command("evaluate", run, "--device", "cpu", "--out", folder / "report")
    measured, trained = (json.loads((place / "metrics.json").read_text()) for place in (folder / "report", run))
    assert measured["confusion"] == trained["confusion"]
    command("export", run, "--out", folder / "bundle")
    capsys.readouterr()
    files = sorted(pictures.rglob("*.png"))
    command("predict", folder / "bundle", pictures, "--json")
    predicted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    # the same by timm's own class, from the checkpoint's file alone
    arrays = {name: torch.from_numpy(array) for name, array in open_checkpoint(run).model.items()}
    model = timm.create_model("vit_tiny_patch16_224", **VIT, num_classes=2, global_pool="avg")
    model.load_state_dict(arrays, strict=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    crop = EvalTransform((32, 32))
    for file, prediction in zip(files, predicted, strict=True):
        pixels = (torch.from_numpy(np.array(crop(decode_image(file), None))) / 255 - mean) / std
        with torch.no_grad():
            expected = model.eval()(pixels.permute(2, 0, 1)[None]).softmax(dim=1)[0]
        found = {each["label"]: each["probability"] for each in prediction["classes"]}
        assert [found["a"], found["b"]] == pytest.approx(expected.tolist(), abs=1e-5)
