"""Encoders by numbers and their mask units: what comes out of a configuration, and what is refused."""

import pytest

from ehm.config import FinetuneConfig, TrainConfig, load_config
from ehm.config.encoders import SwinSpec, VitSpec
from ehm.errors import ConfigError
from ehm.models.parameters import list_encoder_shapes

SWIN = ["objective=simmim", "encoder=swin_base"]


def settings(*overrides):
    return load_config(TrainConfig, None, overrides)


def test_a_vit_is_relative_where_its_method_is():
    plain = VitSpec((224, 224), 16, width=768, depth=12, heads=12)
    assert settings("encoder=vit_base").spec == plain
    for objective in ("simmim", "beit"):
        assert settings(f"objective={objective}").spec == VitSpec(
            (224, 224), 16, width=768, depth=12, heads=12, relative=True
        )


def test_a_swin_has_the_published_window_at_each_size():
    sizes = {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)}
    assert settings(*SWIN).spec == SwinSpec((192, 192), 4, window=6, **sizes)
    assert settings(*SWIN, "image_size=224").spec == SwinSpec((224, 224), 4, window=7, **sizes)
    assert settings(*SWIN, "image_size=[224, 192]").spec == SwinSpec((224, 192), 4, window=6, **sizes)
    assert settings(*SWIN, "model.window=12").spec == SwinSpec((192, 192), 4, window=12, **sizes)


def test_a_swins_stages_are_lists():
    overrides = ["model.width=24", "model.depth=[1, 2, 1]", "model.heads=[1, 2, 4]", "image_size=[64, 96]"]
    spec = settings(*SWIN, *overrides, "mask.unit=16").spec
    assert spec == SwinSpec((64, 96), 4, width=24, depths=(1, 2, 1), heads=(1, 2, 4), window=4)
    assert (spec.stride, spec.grid, spec.patches, spec.features, spec.blocks) == (16, (4, 6), 24, 96, 4)


def test_a_swin_has_the_mlps_that_are_asked_for():
    shapes = list_encoder_shapes(settings(*SWIN, "model.mlp_ratio=2").spec, "norm")
    assert shapes["layers.0.blocks.0.mlp.fc1.weight"] == (2 * 128, 128)


@pytest.mark.parametrize(
    ("overrides", "side", "units", "hidden"),
    [
        ([], 16, (14, 14), 147),
        (["mask.unit=32"], 32, (7, 7), 37),  # 36.75
        (["objective=beit"], 16, (14, 14), 78),  # 78.4
        (["objective=simmim"], 32, (7, 7), 30),  # ceil(29.4)
        (["objective=simmim", "mask.unit=16"], 16, (14, 14), 118),  # ceil(117.6)
        (["objective=simmim", "mask.ratio=0.5", "image_size=[64, 96]"], 32, (2, 3), 3),  # a whole number stays
        (SWIN, 32, (6, 6), 22),  # ceil(21.6)
        ([*SWIN, "mask.unit=64"], 64, (3, 3), 6),
        (["objective=beit", "encoder=swin_base"], 32, (6, 6), 14),  # 14.4
    ],
)
def test_mask_units_and_how_many_are_hidden(overrides, side, units, hidden):
    config = settings(*overrides)
    assert (config.unit, config.units) == (side, units)
    assert round(config.masks.ratio * units[0] * units[1]) == hidden
    assert config.masks == config.mask.model_copy(update={"ratio": config.masks.ratio})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["encoder=swin_tiny"],
            "objective mae leaves hidden patches out of the encoder, which swin_tiny cannot do: its windows hold all "
            "of them; take objective simmim or beit, or a ViT",
        ),
        *[
            ([*SWIN, f"masking={masking}"], f"masking {masking} goes by the class token's attention, and swin_base has")
            for masking in ("attmask_high", "attmask_hint", "attmask_low", "mst")
        ],
        (
            ["objective=simmin"],
            "objective: should be 'mae', 'simmim', 'beit' or 'feature', not 'simmin' (did you mean simmim?)",
        ),
        (["objective=dino"], "objective: should be 'mae', 'simmim', 'beit' or 'feature', not 'dino'"),
        (["objective=feature", "encoder=swin_tiny"], "objective feature leaves hidden patches out of the encoder"),
        (["objective=feature", "model.drop_path=0.1"], "model.drop_path 0.1: not with objective feature, which has"),
        (
            ["objective=feature", "model.teacher=start"],
            "model.teacher start needs model.init: the encoder whose features are predicted",
        ),
        (
            ["objective=feature", "encoder=vit_base", "model.teacher=start", "model.init=a", "model.teacher_blocks=2"],
            "model.teacher_blocks 2: is for model.teacher ema; the features of teacher start are those after its last",
        ),
        (["objective=feature", "optim.ema_decay=null"], "model.teacher ema needs optim.ema_decay, for example [0.996"),
        (["objective=feature", "model.teacher_blocks=13"], "model.teacher_blocks 13: vit_base has 12 blocks"),
        (
            ["masking=ijepa", "mask.ratio=0.1"],
            "mask.ratio 0.1: masking ijepa hides blocks of up to a fifth of the image",
        ),
        (
            ["masking=ijepa", "image_size=96"],
            "mask.ratio 0.75 leaves 9 of 36 units visible, and masking ijepa needs 10; take a smaller mask.ratio",
        ),
        (["mask.source=teacher"], "mask.source teacher: objective mae has none; take online or ema"),
        (["objective=beit", "mask.source=teacher"], "mask.source teacher: objective beit has none; take online or ema"),
        *[
            (
                [f"optim.ema_decay={wrong}"],
                "optim.ema_decay: should be a number between 0 and 1, or two that rise, for example [0.996, 1], not",
            )
            for wrong in ("1", "0", "[0.99, 0.9]", "[1, 1]", "[0.9, 0.95, 0.99]", "[0.9, 1.1]", "fast", "true")
        ],
        (["optim.schedule=square"], "optim.schedule: should be 'cosine', 'step' or 'linear', not 'square'"),
        (["model.drop_path=0.1"], "model.drop_path 0.1: not with objective mae, which has none"),
        (["model.window=7"], "model.window 7: vit_base has no windows; only a Swin has"),
        (["model.depth=[2, 2]"], "model.depth and model.heads of vit_base are one number each; only a Swin has stages"),
        (["model.heads=[2]"], "model.depth and model.heads of vit_base are one number each; only a Swin has stages"),
        ([*SWIN, "model.form.registers=4"], "model.form with registers 4: swin_base has none; only a ViT has"),
        ([*SWIN, "model.depth=4"], "model.depth and model.heads of swin_base are lists of one number a stage, equally"),
        ([*SWIN, "model.depth=[2, 2]"], "model.depth and model.heads of swin_base are lists of one number a stage"),
        ([*SWIN, "model.heads=[4, 8, 12, 32]"], "model.heads [4, 8, 12, 32]: stage 3 is 512 wide, no multiple of 12"),
        (
            [*SWIN, "image_size=200"],
            "image_size [200, 200] is not a multiple of 32, the stride of swin_base with patch",
        ),
        (["objective=beit", "patch_size=15"], "image_size [224, 224] is not a multiple of patch_size 15"),
        (
            ["objective=simmim", "mask.unit=24"],
            "mask.unit 24 should be a multiple of the encoder's stride 16 that divides image_size [224, 224], for "
            "example 16",
        ),
        ([*SWIN, "mask.unit=16"], "mask.unit 16 should be a multiple of the encoder's stride 32 that divides"),
        (["mask.unit=96"], "mask.unit 96 should be a multiple of the encoder's stride 16 that divides image_size"),
        (["model.tokenizer=runs/t"], "model.tokenizer runs/t: is for objective beit, not mae"),
        (["mask.unit=0"], "mask.unit: should be greater than or equal to 1, not 0"),
        (
            ["objective=simmim", "mask.ratio=0.99"],
            "mask.ratio 0.99 hides 49 of 49 units of 32 pixels; some must be, and some stay",
        ),
        (["data.color_jitter=2"], "data.color_jitter: should be less than or equal to 1, not 2"),
    ],
)
def test_what_is_refused_and_what_would_be_right(overrides, said):
    with pytest.raises(ConfigError) as error:
        settings(*overrides)
    assert str(error.value).startswith(f"--set: {said}")


@pytest.mark.parametrize("value", ["abc", "[1, 'x']", "[]", "0", "[2, 0]", "True", "1.5"])
@pytest.mark.parametrize("kind", [TrainConfig, FinetuneConfig])
def test_wrong_stages_are_one_sentence(kind, value):
    shown = repr(value) if value == "abc" else value
    for key in ("model.depth", "model.heads"):
        with pytest.raises(ConfigError) as error:
            load_config(kind, None, [f"{key}={value}"])
        assert str(error.value) == (
            f"--set: {key}: should be a whole number from 1, or of a Swin a list of them, "
            f"one for each stage, not {shown}"
        )


@pytest.mark.parametrize("setting", ["mlp=quick_gelu", "mlp=gelu_tanh", "norm_patches=true"])
def test_a_form_that_the_network_would_leave_out_is_refused(setting):
    """timm's class of ViTs with rotary positions has none of these; other classes have them."""
    form = f"model.form.{setting}"
    assert settings(form).spec.form.differences
    with pytest.raises(ConfigError, match="is not known together with rotary positions"):
        settings(form, "model.form.rotary.kind=dinov3")
