"""From files of seven channels in 16 bits to a trained classifier, by the commands."""

import json

import numpy as np
import pytest
import tifffile

from ehm.config import TrainConfig
from ehm.errors import ConfigError
from ehm.models.encoder_file import read_facts
from ehm.storage.checkpoint import open_checkpoint
from ehm.tasks.evaluate import evaluate
from ehm.tasks.finetune import finetune
from ehm.training.pretrain import train

SETTINGS = (
    "encoder=vit_tiny", "model.width=24", "model.depth=2", "model.heads=2", "patch_size=8", "image_size=16",
    "mask.blocks=1", "model.decoder_width=16", "model.decoder_depth=1", "model.decoder_heads=2", "optim.steps=3",
    "optim.warmup_steps=1", "optim.batch_size=8", "run.trackers=[]", "data.workers=0", "watch.every=0",
)  # fmt: skip
MEANS = f"data.mean={[0.3] * 7}"
STDS = f"data.std={[0.1] * 7}"
TASK = ("optim.steps=4", "optim.warmup_steps=1", "optim.batch_size=8", "run.trackers=[]", "data.workers=0")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder of two classes of GeoTIFF's kind, which differ in the last channels alone."""
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    for number, name in enumerate(("land", "water")):
        (root / name).mkdir()
        for index in range(10):
            values = rng.normal(3000, 500, (20, 24, 7))
            values[..., 5:] += 3000 * number
            pixels = values.clip(0, 10000).astype(np.uint16)
            tifffile.imwrite(root / name / f"{index}.tif", pixels, photometric="minisblack", planarconfig="contig")
    return root


@pytest.fixture(scope="module")
def pretrained(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pretrain"
    formats = ("data.channels=[a, b, c, d, e, f, g]", "data.depth=16", "data.range=[0, 10000]", MEANS, STDS)
    train(overrides=[*SETTINGS, f"data.source={scenes}", *formats], out=out, device="cpu")
    return out


def test_checkpoints_and_encoder_say_the_channels(pretrained):
    config = TrainConfig.model_validate(open_checkpoint(pretrained).metadata["config"])
    assert config.spec.channels == 7
    facts = read_facts(pretrained / "encoder.safetensors")
    assert facts.spec == config.spec
    assert facts.inputs == config.data.inputs
    assert facts.inputs.pixels.names == tuple("abcdefg")
    assert facts.inputs.pixels.range == (0, 10000)
    described = json.loads((pretrained / "encoder" / "config.json").read_text())
    assert described["pretrained_cfg"]["input_size"] == [7, 16, 16]
    assert (pretrained / "pictures" / "reconstruction-00000003.png").is_file()


def test_a_classifier_takes_the_channels_of_its_encoder(scenes, pretrained, tmp_path):
    settings = [*TASK, f"model.init={pretrained}", f"data.source={scenes}", "optim.base_lr=0.05"]
    with pytest.raises(ConfigError, match=r"augment\.rand_augment: varies the colours .* 7 channels of 16 bits"):
        finetune(overrides=[*settings, "augment.rand_augment=rand-m9-mstd0.5-inc1"], out=tmp_path / "no", device="cpu")
    out = tmp_path / "task"
    finetune(overrides=[*settings, "augment.rand_augment=null"], out=out, device="cpu")
    report = evaluate(out, device="cpu")
    assert report.top1 == 1.0  # the classes differ by far more than the noise
    # elsewhere too the checkpoint says how images are read
    assert evaluate(out, device="cpu", overrides=[f"data.source={scenes}"]).top1 == 1.0


def test_a_run_goes_on_from_weights_of_other_channels(scenes, pretrained, tmp_path, capsys):
    overrides = [*SETTINGS, f"data.source={scenes}", f"model.init={pretrained}", "model.adapt_channels=repeat"]
    with pytest.raises(ConfigError, match=r"data\.mean: has 3 values, and there are 2 channels; ehm data stats"):
        train(overrides=[*overrides, "data.channels=2", "data.depth=16"], out=tmp_path / "no", device="cpu")
    for name in ("land", "water"):
        (tmp_path / "two" / name).mkdir(parents=True)
        for index in range(4):
            values = tifffile.imread(scenes / name / f"{index}.tif")[..., 5:]
            np.save(tmp_path / "two" / name / f"{index}.npy", values)
    two = ("data.channels=2", "data.depth=16", "data.mean=[0.3, 0.3]", "data.std=[0.1, 0.1]", "optim.batch_size=4")
    train(overrides=[*overrides, *two, f"data.source={tmp_path / 'two'}"], out=tmp_path / "run", device="cpu")
    assert open_checkpoint(tmp_path / "run").model["patch_embed.proj.weight"].shape[1] == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "adapted from 7 to 2 channels: theirs are repeated (model.adapt_channels repeat)" in said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["data.channels=0"], r"data\.channels.*should be a number from 1 to 64"),
        (["data.channels=[a, a]"], r"data\.channels.*as many different names"),
        (["data.depth=12"], r"data\.depth"),
        (
            ["data.channels=1", "data.mean=[0.5]", "data.std=[0.5]", "data.color_jitter=0.4"],
            r"data\.color_jitter: varies",
        ),
        (["data.depth=float"], r"depth float needs range"),
        (["data.window=true", "data.range=[0, 1]"], "window and range exclude each other"),
        (["objective=beit", "data.depth=16"], r"data\.channels and data\.depth: objective beit.* takes photographs"),
    ],
)
def test_what_does_not_go_together_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        train(overrides=["data.source=/nowhere", *wrong], device="cpu", out="/nowhere/run")
