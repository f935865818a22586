"""``ehm tokenizer train``: what it learns, how it goes on after a stop, and the tokens that BEiT gets from it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from ehm import backends
from ehm.backends.torch.diagnosis import operators
from ehm.backends.torch.diagnosis.recording import record_operators
from ehm.backends.torch.models.dvae import load_tokenizer
from ehm.cli import main
from ehm.config import TokenizerConfig
from ehm.data import EvalTransform, decode_image
from ehm.errors import CheckpointError, ConfigError
from ehm.storage.checkpoint import open_checkpoint
from ehm.training.pretrain import train
from ehm.training.tokenizer import temperature_at, train_tokenizer

SETTINGS = {
    "vocabulary": 32,
    "width": 32,
    "stride": 4,
    "image_size": 32,
    "data.crop_scale": "[0.5, 1]",
    "data.workers": 0,
    "optim.epochs": 12,
    "optim.batch_size": 8,
    "optim.base_lr": 0.1,
    "optim.warmup_epochs": 1,
    "optim.dtype": "float32",
    "run.trackers": "[]",
}


def settings(stripes, **more):
    values = {**SETTINGS, "data.source": stripes, **{key.replace("__", "."): value for key, value in more.items()}}
    return [f"{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def device():
    return torch.device("cpu")


def test_it_learns_to_say_images_in_tokens(stripes, tmp_path, capsys, device):
    out = tmp_path / "run"
    overrides = [f"--set={each}" for each in settings(stripes)]
    assert main(["tokenizer", "train", "--device", "cpu", "--out", str(out), *overrides]) == 0
    said = capsys.readouterr().out
    assert f"ehm train --set objective=beit --set model.tokenizer={out}" in said
    assert "32 codes" in said
    assert "64 tokens for 32 x 32 pixels" in said

    tokenizer = load_tokenizer(str(out), device)
    assert (tokenizer.vocabulary, tokenizer.stride) == (32, 4)
    files = sorted(stripes.rglob("*.png"))
    images = np.stack([EvalTransform((32, 32))(decode_image(file)) for file in files])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    tokens = tokenizer.compute_tokens(pixels)
    assert tokens.shape == (48, 64)
    seen, same = tokenizer.reconstruct(pixels)
    assert torch.equal(tokens, same)
    error = float(((seen - pixels) ** 2).mean())
    of_the_mean = float(((pixels - pixels.mean((2, 3), keepdim=True)) ** 2).mean())
    assert error < of_the_mean / 2
    _, counts = np.unique(tokens.numpy(), return_counts=True)
    shares = counts / counts.sum()
    perplexity = float(np.exp(-(shares * np.log(shares)).sum()))
    assert perplexity > 4

    written = json.loads((out / "metrics.json").read_text())
    assert written["images"] == 48
    assert written["mse"] == pytest.approx(error, rel=1e-4)
    assert written["mean_mse"] == pytest.approx(of_the_mean, rel=1e-4)
    assert written["codes_used"] == len(counts) / 32
    assert written["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "mse", "kl", "codes_used", "perplexity", "temperature"} <= lines[0].keys()
    assert lines[-1]["mse"] < lines[0]["mse"] / 2
    temperatures = [line["temperature"] for line in lines]
    assert temperatures == sorted(temperatures, reverse=True)
    with Image.open(out / "reconstructions.png") as page:
        assert page.width > 8 * 160


def test_a_stopped_run_ends_like_one_that_was_not(stripes, tmp_path):
    few = settings(stripes, optim__epochs=2, optim__accumulate=2, run__checkpoint_every=0.5)
    whole = train_tokenizer(device="cpu", overrides=few, out=tmp_path / "whole")
    train_tokenizer(device="cpu", overrides=[*few, "run.max_steps=7"], out=tmp_path / "stopped")
    resumed = train_tokenizer("elpv/tokenizer", device="cpu", overrides=few, out=tmp_path / "stopped", resume=True)
    assert resumed.checkpoint.name == whole.checkpoint.name == "step-00000012"
    assert resumed.quality == whole.quality
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = load_file(resumed.checkpoint / name), load_file(whole.checkpoint / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    meta = open_checkpoint(whole.checkpoint).metadata
    assert (meta["kind"], meta["epoch"]) == ("tokenizer", 2)


def test_an_altered_checkpoint_is_no_tokenizer(stripes, tmp_path, device):
    result = train_tokenizer(device="cpu", overrides=settings(stripes, run__max_steps=1), out=tmp_path / "run")
    for source in (result.out, result.checkpoint, result.checkpoint / "model.safetensors"):
        assert load_tokenizer(str(source), device).vocabulary == 32
    with (result.checkpoint / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match="does not match the SHA-256"):
        load_tokenizer(str(result.out), device)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_operator_of_a_step_is_native_or_neutral_on_an_npu(dtype):
    optim = {"batch_size": 4, "epochs": 1, "warmup_epochs": 0, "accumulate": 2, "clip_grad": 1.0, "dtype": dtype}
    config = TokenizerConfig.model_validate({"vocabulary": 16, "width": 8, "image_size": 16, "optim": optim})
    tokenizer = backends.get("cpu").create_tokenizer(config)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    with record_operators("cpu") as calls:
        for _ in range(2):
            tokenizer.train_step(images, 0.5, 1e-3, 0.0)
        tokenizer.reconstruct_images(images)
    rows = operators.judge_calls(calls)
    assert {"convolution", "convolution_backward", "exponential_", "scatter_add_"} <= {row.operator for row in rows}
    assert not [f"{row.operator} {row.dtypes} {row.site}" for row in rows if row.verdict == "falls back"]
    waits = {row.site.rpartition(":")[0] for row in rows if row.verdict == "synchronises"}
    assert waits <= {"ehm/backends/torch/engine/step.py"}  # torch's gradient scaler in float16


def test_the_temperature_falls_on_half_a_cosine():
    assert [temperature_at((1.0, 0.2), progress) for progress in (0, 0.5, 1)] == pytest.approx([1, 0.6, 0.2])
    assert temperature_at((1.0, 0.0625), 0.25) == pytest.approx(0.0625 + 0.9375 * (1 + 2**-0.5) / 2)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("image_size=36", r"image_size \[36, 36\] is not a multiple of stride 8"),
        ("width=6", "width 6 is not a multiple of 4, half of the stride"),
        ("stride=6", "stride: "),
        ("vocabulary=1", "vocabulary: "),
        ("temperature=[1,0]", "temperature.1: "),
        ("optim.ema_decay=0.9", "a tokenizer has no moving average"),
        ("run.parallel=fsdp", "small enough without"),
    ],
)
def test_wrong_settings_are_one_sentence(setting, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        train_tokenizer(device="cpu", overrides=[setting], out=tmp_path / "run")


def test_a_beit_run_goes_on_with_its_tokenizer_wherever_it_lies_and_with_no_other(stripes, tmp_path, capsys):
    for name, seed in (("one", 0), ("other", 1)):
        given = settings(stripes, run__max_steps=1, run__seed=seed)
        train_tokenizer(device="cpu", overrides=given, out=tmp_path / name)
    sizes = {"encoder": "vit_tiny", "image_size": 32, "patch_size": 8, "model.width": 24, "model.depth": 1}
    given = {
        "objective": "beit",
        **sizes,
        "model.heads": 2,
        "data.source": stripes,
        "data.workers": 0,
        "mask.blocks": 1,
    }
    given |= {"optim.epochs": 1, "optim.batch_size": 8, "optim.warmup_epochs": 0, "run.trackers": "[]"}
    given |= {"model.tokenizer": tmp_path / "one", "run.max_steps": 1}
    run = [f"{key}={value}" for key, value in given.items()]
    train(device="cpu", overrides=run, out=tmp_path / "run")
    assert "taking the objective's published recipe" in " ".join(capsys.readouterr().out.split())
    moved = (tmp_path / "one").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="is not the one that this run began with"):
        train(device="cpu", overrides=[f"model.tokenizer={tmp_path / 'other'}"], out=tmp_path / "run", resume=True)
    on = [f"model.tokenizer={moved}", "run.max_steps=2"]
    result = train(device="cpu", overrides=on, out=tmp_path / "run", resume=True)
    assert result.steps == 2
