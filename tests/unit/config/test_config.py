"""Configuration: what a user writes, what comes out, and what is said when it is wrong."""

import re
from pathlib import Path

import pytest

from ehm.config import (
    ExportConfig,
    FinetuneConfig,
    ModelConfig,
    ProbeConfig,
    StudyConfig,
    TrainConfig,
    VisionLanguageConfig,
    load_config,
    shipped_configs,
)
from ehm.errors import ConfigError


def message(kind, overrides=(), text=None, tmp_path=None):
    """The error of a configuration, from a file when there is text."""
    file = None
    if text is not None:
        file = tmp_path / "run.yaml"
        file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(kind, file, overrides)
    return str(error.value)


def test_a_file_and_overrides_make_one_configuration(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("encoder: vit_small\nimage_size: [96, 64]\npatch_size: 8\noptim: {epochs: 50, base_lr: 2e-3}\n")
    config = load_config(TrainConfig, file, ["optim.epochs=60", "data.source=/data/a=b", "mask.depth_range=[0, 0.5]"])
    assert config.encoder == "vit_small"
    assert config.image_size == (96, 64)
    assert (config.optim.epochs, config.optim.base_lr) == (60, 0.002)
    assert config.data.source == "/data/a=b"
    assert config.mask.depth_range == (0, 0.5)
    assert (config.spec.grid, config.spec.patches, config.spec.width) == ((12, 8), 96, 384)


def test_nothing_given_is_the_default():
    assert load_config(TrainConfig, None) == TrainConfig()


def test_an_empty_file_is_the_default(tmp_path):
    (tmp_path / "empty.yaml").write_text("# only a comment\n")
    assert load_config(TrainConfig, tmp_path / "empty.yaml") == TrainConfig()


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "1.e-4"])
def test_every_spelling_of_a_small_number_is_a_number(text, tmp_path):
    assert load_config(TrainConfig, None, [f"optim.base_lr={text}"]).optim.base_lr == 1e-4
    (tmp_path / "run.yaml").write_text(f"optim: {{base_lr: {text}}}\n")
    assert load_config(TrainConfig, tmp_path / "run.yaml").optim.base_lr == 1e-4


def test_a_source_that_looks_like_a_number_in_scientific_notation_stays_a_name():
    assert load_config(TrainConfig, None, ["data.source=1e5"]).data.source == "1e5"


def test_one_number_is_a_square_image():
    assert load_config(TrainConfig, None, ["image_size=160"]).image_size == (160, 160)


def test_null_takes_an_option_back(tmp_path):
    (tmp_path / "run.yaml").write_text("optim: {clip_grad: 3}\n")
    assert load_config(TrainConfig, tmp_path / "run.yaml", ["optim.clip_grad=null"]).optim.clip_grad is None


def test_the_learning_rate_follows_the_batch():
    assert TrainConfig().optim.lr == pytest.approx(1.5e-4 * 4096 / 256)
    assert load_config(TrainConfig, None, ["optim.batch_size=64"]).optim.lr == pytest.approx(1.5e-4 / 4)


def test_a_section_given_in_part_keeps_the_other_defaults_of_its_recipe():
    config = load_config(ProbeConfig, None, ["optim.epochs=50"])
    assert config.optim.epochs == 50
    assert (config.optim.base_lr, config.optim.weight_decay, config.optim.batch_size) == (0.1, 0, 16384)
    assert load_config(ProbeConfig, None, ["augment.mixup=0"]).augment == ProbeConfig().augment
    assert load_config(FinetuneConfig, None, ["model.init=timm:vit_tiny_patch16_224"]).model.drop_path == 0.1
    assert load_config(FinetuneConfig, None, ["data.source=x"]).data.crop_scale == (0.08, 1)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["optim.epoch=3"],
            "optim.epoch: unknown key (did you mean optim.epochs?); known here are epochs, steps, batch_size, ",
        ),
        (["epochs=3"], "epochs: unknown key (did you mean optim.epochs?); known here are objective, encoder, "),
        (["model.x.y=1"], "model.x: unknown key; known here are init, width, depth, "),
        (
            ["encoder=vit_x"],
            "encoder: should be one of vit_tiny, vit_small, vit_base, vit_large, vit_huge, "
            "swin_tiny, swin_small, swin_base, swin_large (did you mean vit_tiny?), not 'vit_x'",
        ),
        (["mask.ratio=2"], "mask.ratio: should be less than 1, not 2"),
        (["mask.ratio=0"], "mask.ratio: should be greater than 0, not 0"),
        (["mask.depth_range=[0.8, 0.2]"], "mask.depth_range: should not fall, for example [0.2, 0.8], not [0.8, 0.2]"),
        (["data.crop_scale=[2, 1]"], "data.crop_scale.0: should be less than or equal to 1, not 2"),
        (["data.crop_scale=[1, 0.2]"], "data.crop_scale: should not fall, for example [0.2, 1.0], not [1, 0.2]"),
        (["data.std=[0, 1, 1]"], "data.std.0: should be greater than 0, not 0"),
        (["data.mean=[1, 2]"], "data.mean: has 2 values, and there are 3 channels; ehm data stats elpv measures them"),
        (["data.mean=[1, 2, 3, 4]"], "data.mean: has 4 values, and there are 3 channels"),
        (["data.mean=0.5"], "data.mean: should be a list, not 0.5"),
        (["data.flip=maybe"], "data.flip: should be true or false, not 'maybe'"),
        (["data.workers=two"], "data.workers: should be a whole number, not 'two'"),
        (["image_size=wide"], "image_size: should be a number of pixels or [height, width], not 'wide'"),
        (["image_size=[96, 96, 3]"], "image_size: should be a number of pixels or [height, width], not [96, 96, 3]"),
        (["image_size=true"], "image_size: should be a number of pixels or [height, width], not True"),
        (["optim.betas=[0.9]"], "optim.betas: wrong number of values in [0.9]"),
        (["optim.ema_decay=[0.9]"], "ema_decay: should be a number between 0 and 1, or two that rise, for example"),
        (["data.range=[3, 1]"], "data.range: should rise: [black, white], for example [0, 4095], not [3, 1]"),
        (["data.columns.label=[a]"], "data.columns.label: should be text, or have at least 2 values, not ['a']"),
        (
            ["data.sources=[{source: a, wieght: 2}]"],
            "data.sources.0.wieght: unknown key (did you mean data.sources.0.weight?); known here are source, layout, ",
        ),
        (["data.sources=[{source: a, columns: {x: 1}}]"], "data.sources.0.columns.x: unknown key; known here are path"),
        (["data.sources=[{source: a}, {weight: -1}]"], "data.sources.1.source: is missing; data.sources.1.weight: "),
        (["image_size=100"], "image_size [100, 100] is not a multiple of patch_size 16"),
        (["model=3"], "model: should be a section of keys and values, not 3"),
        (["model.width=100"], "model.width 100 is not a multiple of model.heads 12"),
        (["model.width=90", "model.heads=3"], "model.width 90 is not a multiple of 4"),
        (["model.decoder_width=90", "model.decoder_heads=3"], "model.decoder_width 90 is not a multiple of 4"),
        (["model.decoder_width=100"], "model.decoder_width 100 is not a multiple of model.decoder_heads 16"),
        (["mask.ratio=0.001"], "mask.ratio 0.001 hides 0 of 196 units of 16 pixels; some must be, and some stay"),
        (["mask.ratio=0.999"], "mask.ratio 0.999 hides 196 of 196 units of 16 pixels; some must be, and some stay"),
        (["mask.source=ema"], "mask.source ema needs optim.ema_decay, for example 0.9999"),
        (
            ["masking=blocks"],
            "masking: should be 'random', 'grid', 'block', 'large_block', 'ijepa', 'attmask_high', 'attmask_hint', "
            "'attmask_low', 'mst', 'epm', 'evolved', 'shallow' or 'deep', not 'blocks'",
        ),
        (["optim.base_lr=fast"], "optim.base_lr: should be a number, not 'fast'"),
        (["optim.base_lr=.nan"], "optim.base_lr: should be a finite number, not nan"),
        (["optim.base_lr=.inf"], "optim.base_lr: should be a finite number, not inf"),
        (["data.source=[a]"], "data.source: should be text, not ['a']"),
        (["optim.epochs=1.5"], "optim.epochs: should be a whole number, not 1.5"),
        (["optim.batch_size=10", "optim.accumulate=3"], "optim: batch_size 10 is not a multiple of accumulate 3"),
        (["optim.epochs=10"], "optim: warmup_epochs 40 is more than epochs 10"),
    ],
)
def test_what_is_wrong_is_named(overrides, said):
    text = message(TrainConfig, overrides)
    assert text.startswith("--set: ")
    assert said in text
    assert "\n" not in text


def test_the_file_is_named(tmp_path):
    text = message(TrainConfig, text="optim: {epoch: 3}\n", tmp_path=tmp_path)
    assert text.startswith(f"{tmp_path / 'run.yaml'}: optim.epoch: unknown key")


def test_all_errors_come_at_once():
    text = message(TrainConfig, ["encoder=vit_x", "optim.epoch=3", "data.mean=[1]", "mask.ratio=2", "run.seed=-1"])
    for key in ("encoder", "optim.epoch", "data.mean", "mask.ratio", "run.seed"):
        assert re.search(rf"(^|[:;] ){re.escape(key)}: ", text), text


def test_errors_of_a_study_name_its_arms_and_its_measurements():
    assert "arms.one.overides: unknown key" in message(StudyConfig, ["arms.one.overides=[]"])
    assert "measure.0.folds: should be greater than or equal to 2, not 1" in message(StudyConfig, ["measure.folds=1"])
    assert "measure.0.fold: unknown key (did you mean measure.0.folds?)" in message(StudyConfig, ["measure.fold=3"])


def test_errors_of_the_downstream_tasks():
    assert "class_weights: should be 'balanced', or be a list, not 'balancd' (did you mean balanced?)" in message(
        FinetuneConfig, ["class_weights=balancd"]
    )
    assert "fold 5 does not exist: with folds 5 it is 0 to 4" in message(FinetuneConfig, ["fold=5"])
    assert "vision_language keeps no moving average" in message(VisionLanguageConfig, ["optim.ema_decay=0.9"])
    text = message(ProbeConfig, ["frozen=false", "layer_decay=0.5"])
    assert "frozen: should be True, not False" in text
    assert "layer_decay: " in text


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("triton.name=a/b", "triton.name: should be made of letters, digits, '_', '-' and '.', not 'a/b'"),
        (
            "triton.storage_uri=models",
            "triton.storage_uri: should be a URI, for example s3://BUCKET/FOLDER, not 'models'",
        ),
        ("ascend.soc_version=a-b", "ascend.soc_version: should be one word, for example Ascend910B3, not 'a-b'"),
        ("ascend.batch_sizes=[1]", "ascend.batch_sizes: should have at least 2 values, not [1]"),
    ],
)
def test_errors_of_an_export(override, said):
    assert message(ExportConfig, [override]) == f"--set: {said}"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.epochs", "--set optim.epochs: expected key=value, for example optim.epochs=20"),
        ("=3", "--set =3: expected key=value"),
        ("optim.betas=[1", "--set optim.betas=[1: '[1' is not a YAML value"),
    ],
)
def test_a_wrong_override_is_quoted(override, said):
    assert message(TrainConfig, [override]).startswith(said)


def test_a_value_is_not_a_section():
    text = message(TrainConfig, ["data.flip=false", "data.flip.x=1"])
    assert text == "--set data.flip.x=1: flip is a value, not a section"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1\n- 2\n", "the file must be a mapping of keys to values, not a list"),
        ("optim: [1\n", "not valid YAML: "),
    ],
)
def test_a_file_that_is_no_mapping(text, said, tmp_path):
    assert said in message(TrainConfig, text=text, tmp_path=tmp_path)


def test_a_binary_file_is_one_sentence(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(TrainConfig, tmp_path / "run.yaml")


def test_a_missing_file_says_where_names_are_listed():
    said = "nowhere: no such file, and no shipped configuration of that name; ehm configs lists them"
    with pytest.raises(ConfigError, match=said):
        load_config(TrainConfig, "nowhere")


def test_shipped_names_load_with_and_without_suffix():
    assert "pretrain/vit_base_evolved" in shipped_configs()
    assert load_config(TrainConfig, "pretrain/vit_base_evolved") == load_config(
        TrainConfig, Path("pretrain/vit_base_evolved.yaml")
    )


def test_sections_are_immutable():
    with pytest.raises(ValueError, match="frozen"):
        ModelConfig().decoder_width = 3
