"""``--device mindspore``, through the public command line, in an environment that has no torch."""

import json
import os
from functools import partial
from pathlib import Path

import elsewhere
import numpy as np
import pytest
import torch
from PIL import Image
from ports import free_port
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from tiny import RUN, TINY

import ehm
from ehm.config.encoders import VitSpec
from ehm.config.inputs import InputSpec
from ehm.deploy.predict.command import predict
from ehm.models.encoder_file import make_encoder_metadata
from ehm.storage.checkpoint import open_checkpoint

pytestmark = elsewhere.needs_mindspore

PRETRAIN = {**RUN, **TINY, "optim.epochs": 4}
FINETUNE = {
    **RUN,
    "optim.epochs": 12,
    "optim.batch_size": 16,
    "optim.base_lr": 0.06,
    "augment.rand_augment": "null",
    "model.drop_path": 0.1,
    "layer_decay": 0.9,
}
POISON = "raise ImportError('{} was imported')"


def settings(values):
    return [f"--set={key}={value}" for key, value in values.items()]


def there(command, out, values, *more, device="mindspore", **options):
    """Run a command with MindSpore."""
    return elsewhere.ehm(command, "--device", device, "--out", out, *settings(values), *more, **options)


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [values["loss"] for values in map(json.loads, lines)]


def assert_same(ours, theirs, **close):
    expected = dict(elsewhere.trained(open_checkpoint(theirs).model))
    for name, value in elsewhere.trained(open_checkpoint(ours).model):
        np.testing.assert_allclose(value, expected[name], err_msg=name, **close)


@pytest.fixture(scope="module")
def no_torch(tmp_path_factory):
    """Variables of a process that cannot import torch, timm and torchvision unnoticed."""
    folder = tmp_path_factory.mktemp("poison")
    for name in ("torch", "timm", "torchvision"):
        (folder / f"{name}.py").write_text(POISON.format(name))
    return {"PYTHONPATH": str(folder)}


def test_every_command_works_where_importing_torch_is_an_error(images, stripes, tmp_path, no_torch):
    assert elsewhere.run("-c", "import torch", env=no_torch).returncode  # the poison works
    run, values = tmp_path / "run", {**PRETRAIN, "data.source": images}
    there("train", run, {**values, "run.max_steps": 3}, env=no_torch)
    said = there("train", run, {**values, "run.max_steps": 12}, "--resume", env=no_torch)
    assert "continuing step-00000003" in said
    there("train", tmp_path / "whole", values, env=no_torch)
    assert_same(run, tmp_path / "whole", rtol=0, atol=0)

    for kind in ("hierarchy", "masks", "attention"):
        pictures = tmp_path / "pictures"
        there("inspect", pictures, {}, kind, images / "00.png", "--checkpoint", run, env=no_torch)
        with Image.open(pictures / f"{kind}.png") as picture:
            assert min(picture.size) > 100

    task = {**FINETUNE, "data.source": stripes, "model.init": run, "lora.rank": 2, "run.max_steps": 1}
    there("finetune", tmp_path / "task", task, env=no_torch)
    said = elsewhere.ehm("evaluate", tmp_path / "task", "--device", "mindspore", env=no_torch)
    assert "balanced accuracy" in said


def test_doctor_and_auto_take_mindspore_where_torch_is_not_installed(images, tmp_path):
    found = json.loads(elsewhere.ehm("doctor", "--device", "mindspore", "--json"))
    (device,) = [row for row in found["findings"] if row["kind"] == "device"]
    assert (found["works"], device["state"]) == (True, "ok")
    assert max(device["facts"]["attention"].values()) < 0.02
    values = {**PRETRAIN, "data.source": images, "run.max_steps": 1}
    assert "device mindspore (CPU target" in there("train", tmp_path / "run", values, device="auto")


def test_a_run_goes_on_in_the_other_framework_and_comes_back(images, stripes, tmp_path):
    """An encoder that SimMIM pretrained here is fine-tuned there."""
    values = {**PRETRAIN, "data.source": images, "objective": "simmim", "mask.unit": 16, "model.drop_path": 0}

    def torch(out, last, resume):
        ehm.train(device="cpu", overrides=[f"{k}={v}" for k, v in values.items()] + [last], out=out, resume=resume)

    torch(tmp_path / "stayed", "run.max_steps=12", False)
    torch(tmp_path / "moved", "run.max_steps=4", False)
    there("train", tmp_path / "moved", {**values, "run.max_steps": 8}, "--resume")
    torch(tmp_path / "moved", "run.max_steps=12", True)
    np.testing.assert_allclose(losses(tmp_path / "moved"), losses(tmp_path / "stayed"), rtol=1e-5)

    task = {**FINETUNE, "data.source": stripes, "model.init": tmp_path / "moved", "model.image_size": 32}
    there("finetune", tmp_path / "task", {**task, "run.max_steps": 1})
    pretrained = open_checkpoint(tmp_path / "moved").model["rel_pos_bias.relative_position_bias_table"]
    table = open_checkpoint(tmp_path / "task").model["blocks.1.attn.relative_position_bias_table"]
    np.testing.assert_allclose(table, pretrained, atol=1e-3)


def test_a_classifier_learns_goes_on_and_is_exported(stripes, tmp_path):
    values = {**FINETUNE, "data.source": stripes, "optim.ema_decay": 0.9}
    scratch = {"init": "scratch", "encoder": "vit_tiny", "width": 48, "depth": 2, "heads": 2, "image_size": 32}
    scratch["patch_size"] = 8
    values |= {f"model.{key}": value for key, value in scratch.items()}
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    there("finetune", run, {**values, "run.max_steps": 7})
    there("finetune", run, {"run.max_steps": "null"}, "--resume")
    there("finetune", tmp_path / "whole", values)
    assert_same(run, tmp_path / "whole", rtol=0, atol=0)
    assert json.loads((run / "metrics.json").read_text())["top1"] > 0.9

    elsewhere.ehm("export", run, "--head", "multi", "--out", bundle)
    ehm.export(run, head="multi", out=tmp_path / "with-torch")
    assert (bundle / "model.onnx").read_bytes() == (tmp_path / "with-torch/model.onnx").read_bytes()
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["parity"]["reference"].startswith("mindspore ")
    assert manifest["parity"]["max_abs"] < 1e-4
    right = [found.classes[0][0] in found.image.split("/") for found in predict(bundle, stripes)]
    assert np.mean(right) > 0.9


def run_in_two_processes(tmp_path, *arguments):
    """Run ``python ARGUMENTS...`` in two processes by msrun, which have to succeed."""
    launcher = ["-m", "mindspore.parallel.cluster.run", "--worker_num", 2, "--local_worker_num", 2, "--join", "True"]
    launcher += ["--master_port", free_port(), "--log_dir", tmp_path / "log", "python", *arguments]
    path = f"{elsewhere.PYTHON.parent}:{os.environ['PATH']}"
    done = elsewhere.run(*launcher, env={"PATH": path})
    assert done.returncode == 0, done.stdout + done.stderr


def test_several_processes_are_one_with_the_same_batch(images, tmp_path):
    values = {**PRETRAIN, "data.source": images, "optim.accumulate": 2, "optim.clip_grad": 1, "run.max_steps": 6}
    there("train", tmp_path / "one", values)
    arguments = ["train", "--device", "mindspore", "--out", tmp_path / "two", *settings(values)]
    run_in_two_processes(tmp_path, "-m", "ehm.cli", *arguments)
    assert "2 processes" in (tmp_path / "log/worker_0.log").read_text()
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    assert_same(tmp_path / "two", tmp_path / "one", rtol=1e-4, atol=2e-5)


def test_a_batch_norm_of_two_processes_is_torchs_of_the_whole_batch(tmp_path):
    rng = np.random.default_rng(0)
    batch = {"images": rng.normal(3, 2, (4, 3, 2, 5)), "factors": rng.normal(size=(4, 3, 2, 5))}
    batch |= {"weight": rng.uniform(0.5, 1.5, 3), "bias": rng.normal(size=3)}
    batch = {name: values.astype(np.float32) for name, values in batch.items()}
    np.savez(tmp_path / "batch.npz", **batch)
    run_in_two_processes(tmp_path, Path(__file__).parents[1] / "batch_norm_in_processes.py", tmp_path)

    norm = torch.nn.BatchNorm2d(3)
    norm.load_state_dict(norm.state_dict() | {name: torch.from_numpy(batch[name]) for name in ("weight", "bias")})
    images = torch.from_numpy(batch["images"]).requires_grad_()
    outputs = norm(images)
    (outputs * torch.from_numpy(batch["factors"])).sum().backward()
    shares = [np.load(tmp_path / f"{rank}.npz") for rank in (0, 1)]
    expected = {"outputs": outputs.detach(), "images": images.grad}
    for name, values in expected.items():
        found = np.concatenate([share[name] for share in shares])
        np.testing.assert_allclose(found, values.numpy(), atol=1e-5, err_msg=name)
    # each process has the gradients of its own images, which a step averages
    for name, values in {"weight": norm.weight.grad, "bias": norm.bias.grad}.items():
        np.testing.assert_allclose(sum(share[name] for share in shares), values.numpy(), atol=1e-5, err_msg=name)
    for share in shares:
        np.testing.assert_allclose(share["mean"], norm.running_mean.numpy(), rtol=1e-6)
        np.testing.assert_allclose(share["variance"], norm.running_var.numpy(), rtol=1e-5)


ASKS_TOO_MUCH = {
    "optim.dtype bfloat16: not available on mindspore:cpu, which has float32, float16": {"optim.dtype": "bfloat16"},
    "mask.build device: the MindSpore backend builds trees on the host": {"mask.build": "device"},
    "objective beit needs visual tokens: give DALL-E's encoder.pkl": {"objective": "beit"},
}


@pytest.mark.parametrize("sentence", ASKS_TOO_MUCH)
def test_what_the_backend_lacks_is_refused_in_a_sentence(sentence, images, tmp_path):
    refused(sentence, "train", tmp_path, {**PRETRAIN, "data.source": images, **ASKS_TOO_MUCH[sentence]})
    assert not (tmp_path / "run").exists()


def test_devices_and_weights_that_are_not_there_are_said(stripes, tmp_path):
    values = {**PRETRAIN, "data.source": stripes}
    refused("sees no NPU", "train", tmp_path, values, device="mindspore:ascend")
    refused("expected mindspore, mindspore:cpu, mindspore:ascend", "train", tmp_path, values, device="mindspore:gpu")
    refused("torch is not installed", "train", tmp_path, values, device="cpu")
    task = {**FINETUNE, "data.source": stripes}
    refused("needs the tag of its weights", "finetune", tmp_path, {**task, "model.init": "timm:vit_tiny_patch16_224"})
    (tmp_path / "weights.pth").write_bytes(b"")
    task["model.init"] = tmp_path / "weights.pth"
    refused("weights.pth: not a file of tensors", "finetune", tmp_path, task)


def refused(sentence, command, tmp_path, values, device="mindspore:cpu"):
    arguments = [command, "--device", device, "--out", tmp_path / "run", *settings(values)]
    done = elsewhere.run("-m", "ehm.cli", *arguments)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    said = done.stderr.strip()
    assert said.startswith(f"ehm {command}: ")
    assert sentence in said
    assert "\n" not in said


OPEN_FILES = """
import json, sys
import numpy as np
from ehm import backends
from ehm.backends.mindspore.models.loading import open_weights
from ehm.config import DataConfig, FinetuneConfig, ModelSource, TrainConfig
from ehm.errors import EhmError

backend = backends.get("mindspore")
refused, described, pickled = sys.argv[1:]
model = {"depth": 1, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, "init": refused}
config = TrainConfig(encoder="vit_tiny", image_size=32, mask={"blocks": 1}, model=model)
data = DataConfig(mean=(0.1, 0.2, 0.3), crop_mode="squash")
commands = {
    "train": lambda: backend.create_learner(config),
    "finetune": lambda: backend.create_task_learner(FinetuneConfig(model=ModelSource(init=refused)), 2),
    "inspect": lambda: backend.create_encoder(ModelSource(init=refused)),
}
said = {}
for command, run in commands.items():
    try:
        run()
    except EhmError as error:
        said[command] = str(error)
learner = backend.create_task_learner(FinetuneConfig(model=ModelSource(init=described), data=data), 2)
encoder = backend.create_encoder(ModelSource(init=described))
pixels = np.random.default_rng(0).integers(0, 256, (2, *encoder.image_size, 3), dtype=np.uint8)
own = open_weights(ModelSource(init=described)).arrays
arrays = open_weights(ModelSource(init=pickled, image_size=(16, 64), heads=6)).arrays
assert arrays.keys() == own.keys() and all(np.array_equal(arrays[name], own[name]) for name in own)
found = {"inputs": learner.inputs.to_json(), "own": encoder.inputs.to_json(), "notes": encoder.notes}
print(json.dumps({"said": said, "features": encoder.compute_features(pixels).tolist(), **found}))
"""


def test_an_encoder_is_refused_or_is_what_its_file_says(tmp_path):
    """By the same rule as with torch; features are those of timm's class with the file's heads and normalisation."""
    numbers = {"img_size": (16, 64), "patch_size": 8, "embed_dim": 192, "depth": 1, "num_classes": 0}
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    cosine = {"blocks.0.attn.logit_scale": torch.ones(3)}
    save_file(VisionTransformer(**numbers, num_heads=3).state_dict() | cosine, tmp_path / "cosine.safetensors")
    model = VisionTransformer(**numbers, num_heads=6, norm_layer=norm).eval()
    inputs = InputSpec((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    metadata = make_encoder_metadata(VitSpec((16, 64), 8, 192, 1, 6), inputs)
    save_file(model.state_dict(), tmp_path / "encoder.safetensors", metadata)
    torch.save({"model": model.state_dict()}, tmp_path / "encoder.pth")
    files = [tmp_path / name for name in ("cosine.safetensors", "encoder.safetensors", "encoder.pth")]
    done = elsewhere.run("-c", OPEN_FILES, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["said"].keys() == {"train", "finetune", "inspect"}
    for sentence in found["said"].values():
        assert "cosine.safetensors: its encoder has cosine attention with computed positions" in sentence
    assert found["own"] == inputs.to_json()
    assert found["inputs"] == {**inputs.to_json(), "mean": [0.1, 0.2, 0.3], "crop_mode": "squash"}
    assert not [note for note in found["notes"] if "assumed" in note]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 64, 3), dtype=np.uint8)
    normalised = (pixels / 255 - inputs.mean) / inputs.std
    with torch.inference_mode():
        tokens = model.forward_features(torch.from_numpy(normalised.transpose(0, 3, 1, 2).astype(np.float32)))
    np.testing.assert_allclose(found["features"], tokens[:, 1:].mean(1).numpy(), rtol=1e-3, atol=1e-4)
