"""The keys of an encoder that a file names are void if ``model.init`` is set to other weights beside it."""

from ehm.config import TrainConfig, load_config
from ehm.config.encoders import SwinSpec
from ehm.models.pretraining import adopt_encoder
from ehm.models.weights import Provenance, Weights

FILE = {
    "encoder": "vit_tiny",
    "patch_size": 8,
    "image_size": 64,
    "model": {"width": 48, "depth": 2, "heads": 3, "decoder_width": 64},
    "data": {"mean": [0.5, 0.5, 0.5], "source": "images"},
}


def test_weights_of_an_override_replace_the_encoder_of_the_file():
    config = load_config(TrainConfig, FILE, ["model.init=weights.pth", "model.heads=6"])
    assert config.awaits_encoder
    assert (config.model.width, config.model.depth, config.model.heads) == (None, None, 6)
    assert config.data.mean == TrainConfig().data.mean
    # what is no size of the encoder stays
    assert (config.image_size, config.model.decoder_width, config.data.source) == ((64, 64), 64, "images")


def test_weights_beside_an_encoder_have_to_be_its_own():
    both = {**FILE, "model": {**FILE["model"], "init": "weights.pth"}}
    for config in (
        load_config(TrainConfig, both),
        load_config(TrainConfig, {}, ["model.init=weights.pth", "encoder=vit_tiny"]),
    ):
        assert not config.awaits_encoder
        assert config.spec.width == config.model.width or config.model.width is None


def test_an_encoder_that_was_taken_over_is_given_from_then_on():
    awaiting = TrainConfig(model={"init": "weights.pth"}, data={"source": "images"})
    taken = awaiting.with_encoder_of(TrainConfig.model_validate(FILE))
    assert not taken.awaits_encoder
    assert (taken.spec.width, taken.spec.image_size, taken.data.mean) == (48, (64, 64), (0.5, 0.5, 0.5))
    assert (taken.data.source, taken.model.init) == ("images", "weights.pth")


def test_a_swin_that_was_taken_over_keeps_its_mlps():
    spec = SwinSpec((64, 64), 4, width=24, depths=(1, 1, 1), heads=(1, 2, 4), window=4, mlp_ratio=2.0)
    config = TrainConfig(objective="simmim", image_size=64, mask={"unit": 16}, model={"init": "swin.pth"})
    taken, _ = adopt_encoder(config, Weights({}, Provenance("swin.pth", "file"), spec))
    assert taken.spec == spec
