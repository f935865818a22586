"""Weights of timm's repositories on the Hub without timm, against timm itself, in a cache that timm's writer filled."""

import json

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

from ehm.backends.torch.models.loading import open_weights
from ehm.config import ModelSource
from ehm.errors import CheckpointError, ConfigError
from ehm.models.timm_repository import open_timm_repository


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, which does not answer."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def publish(cache, name, **options):
    """Write a network of timm's with random weights as timm publishes it, as if it had been downloaded."""
    folder = cache / f"models--timm--{name}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    torch.manual_seed(0)
    model = timm.create_model(name.partition(".")[0], **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    snapshot = folder / "snapshots" / ("0" * 40)
    save_for_hf(model, str(snapshot), safe_serialization=True)
    settings = json.loads((snapshot / "config.json").read_text())
    del settings["model_args"]  # which most of timm's repositories lack
    (snapshot / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("test_vit.r160_in1k", 2),
        ("test_vit3.r160_in1k", 3),
    ],
)
def test_the_encoder_is_the_one_that_timm_opens(cache, name, heads):
    publish(cache, name)
    source = ModelSource(init=f"timm:{name}", heads=heads)
    expected = open_weights(source)
    found = open_timm_repository(source)
    assert found.spec == expected.spec
    assert found.arrays.keys() >= expected.arrays.keys()
    for key, array in expected.arrays.items():
        assert np.array_equal(found.arrays[key], array), key
    assert found.provenance.kind == expected.provenance.kind == "timm"
    assert found.provenance.origin == expected.provenance.origin
    assert found.provenance.inputs == expected.provenance.inputs
    assert found.provenance.notes[0] == expected.provenance.notes[0]


def test_image_sizes_that_no_position_tells_are_in_the_settings(cache):
    """DINOv3 has rotary positions alone."""
    name = "vit_small_patch16_dinov3.lvd1689m"
    publish(cache, name, depth=1, embed_dim=384, num_heads=6)
    settings = next(cache.rglob("config.json"))
    content = json.loads(settings.read_text())
    assert content["pretrained_cfg"]["input_size"] == [3, 256, 256]
    assert open_timm_repository(ModelSource(init=f"timm:{name}")).spec.image_size == (256, 256)
    content["pretrained_cfg"]["input_size"] = [3, "wide"]
    settings.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"config\.json: pretrained_cfg: not enough values"):
        open_timm_repository(ModelSource(init=f"timm:{name}"))


def test_what_only_timm_knows_is_one_sentence(cache):
    for name, error, said in (
        ("vit_base_patch16_224", ConfigError, r"needs the tag of its weights, as timm:vit_base_patch16_224\.mae"),
        ("test_vit.a?pretrained=false", ConfigError, "without torch, only published weights of timm's load; leave"),
        ("test_vit.a", CheckpointError, "is not in the cache, and the hub does not answer"),
    ):
        with pytest.raises(error, match=rf"^model\.init timm:.*{said}"):
            open_timm_repository(ModelSource(init=f"timm:{name}"))
