"""The published recipe of each objective: the defaults that it brings, and the values that it leaves to the user."""

import pytest

from ehm.config import TrainConfig, load_config
from ehm.errors import ConfigError

# Read from the published code: microsoft/SimMIM's configs and config.py, and unilm's beit with its guide for BEiT-B.
SIMMIM = {
    "mask": {"ratio": 0.6, "unit": 32},
    "data": {
        "crop_scale": (0.67, 1),
        "flip": True,
        "color_jitter": 0,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
    "optim": {
        "batch_size": 2048,
        "lr": pytest.approx(1e-4 * 2048 / 512),
        "warmup_epochs": 10,
        "weight_decay": 0.05,
        "betas": (0.9, 0.999),
        "clip_grad": 5.0,
    },
}
BEIT = {
    "model": {"drop_path": 0.1},
    "mask": {"ratio": 0.4},
    "data": {
        "crop_scale": (0.08, 1),
        "flip": True,
        "color_jitter": 0.4,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    },
    "optim": {
        "batch_size": 2048,
        "lr": pytest.approx(1.5e-3),
        "warmup_epochs": 10,
        "weight_decay": 0.05,
        "betas": (0.9, 0.999),
        "clip_grad": 3.0,
    },
}
# Read from fairseq's examples/data2vec (the command for ViT-B), and for the decoder and the average from I-JEPA's paper
# (appendix A.1) and its configs.
FEATURE = {
    "model": {"decoder_width": 384, "decoder_depth": 6, "decoder_heads": 12, "loss": "smooth_l1", "loss_beta": 2.0},
    "mask": {"ratio": 0.75, "unit": None, "source": "teacher"},
    "optim": {
        "batch_size": 2048,
        "lr": pytest.approx(2e-3),
        "warmup_epochs": 10,
        "weight_decay": 0.05,
        "betas": (0.9, 0.999),
        "clip_grad": 3.0,
        "ema_decay": (0.996, 1.0),
        "ema_ramp": 1,
    },
}
MAE = {
    "model": {
        "drop_path": 0,
        "decoder_width": 512,
        "decoder_depth": 8,
        "decoder_heads": 16,
        "norm_pix_loss": True,
    },
    "mask": {"ratio": 0.75, "unit": None},
    "data": {"crop_scale": (0.2, 1), "flip": True, "color_jitter": 0},
    "optim": {
        "batch_size": 4096,
        "lr": pytest.approx(1.5e-4 * 4096 / 256),
        "warmup_epochs": 40,
        "weight_decay": 0.05,
        "betas": (0.9, 0.95),
        "clip_grad": None,
    },
}


def settings(*overrides, text=None, folder=None):
    if text is None:
        return load_config(TrainConfig, None, overrides)
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return load_config(TrainConfig, folder / "run.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "published", "size", "drop_path"),
    [
        ([], MAE, (224, 224), 0),
        (["objective=simmim"], SIMMIM, (224, 224), 0.1),
        (["objective=simmim", "encoder=swin_base"], SIMMIM, (192, 192), 0),
        (["objective=beit"], BEIT, (224, 224), 0.1),
        (["objective=feature"], FEATURE, (224, 224), 0),
    ],
)
def test_each_objective_brings_its_published_figures(overrides, published, size, drop_path):
    config = settings(*overrides)
    for section, figures in published.items():
        given = getattr(config, section)
        assert {name: getattr(given, name) for name in figures} == figures
    assert config.image_size == size
    assert config.model.drop_path == drop_path
    assert (config.optim.epochs, config.optim.schedule) == (300, "cosine")  # the paper's


def test_what_the_user_says_comes_first(tmp_path):
    text = """
objective: simmim
encoder: swin_tiny
image_size: 224
model: {drop_path: 0.2}
mask: {ratio: 0.5}
data: {crop_scale: [0.3, 0.9]}
optim: {batch_size: 512, clip_grad: null}
"""
    config = settings("optim.warmup_epochs=3", "mask.unit=64", "image_size=256", text=text, folder=tmp_path)
    assert (config.image_size, config.model.drop_path, config.mask.ratio) == ((256, 256), 0.2, 0.5)
    assert (config.mask.unit, config.data.crop_scale) == (64, (0.3, 0.9))
    assert (config.optim.batch_size, config.optim.clip_grad, config.optim.warmup_epochs) == (512, None, 3)
    # and what is left unsaid in the same sections is still the recipe's
    assert (config.optim.lr, config.optim.betas) == (pytest.approx(1e-4), (0.9, 0.999))


def test_set_alone_takes_a_file_to_another_objective(tmp_path):
    text = "encoder: vit_small\noptim: {epochs: 50}\n"
    config = settings("objective=beit", text=text, folder=tmp_path)
    assert (config.optim.epochs, config.optim.clip_grad, config.data.mean) == (50, 3.0, (0.5, 0.5, 0.5))
    assert config.spec.relative
    assert not settings(text=text, folder=tmp_path).spec.relative


@pytest.mark.parametrize("objective", ["mae", "simmim", "beit", "feature"])
def test_a_stored_configuration_is_read_as_it_was(objective):
    config = settings(f"objective={objective}", "optim.clip_grad=null", "mask.unit=null", "data.color_jitter=0")
    assert load_config(TrainConfig, config.model_dump(mode="json")) == config


def test_wrong_sections_are_still_named():
    for override in ("mask=3", "optim=fast"):
        with pytest.raises(ConfigError, match=f"{override.split('=')[0]}: should be a section of keys and values"):
            settings("objective=simmim", override)
