"""Features of ViTs of every form beside those of timm's own networks, at the size of their weights and at another."""

import numpy as np
import pytest
import torch
from tiny_learners import CPU
from vit_forms import FORMS, random_network, write_form

from ehm.backends.torch.learners.encoder import TorchEncoder
from ehm.backends.torch.learners.retrieval import TorchEmbedder
from ehm.config import ModelSource, OptimConfig, RetrievalConfig
from ehm.errors import ConfigError

POOLS = {
    "avg": tuple(FORMS),
    "token": tuple(form for form in FORMS if form not in ("siglip", "aimv2", "eva02", "eva02_clip")),
    "map": ("siglip",),
}
"""Forms whose weights are pooled so; those of EVA-02 have their norm behind the mean."""
FLOAT32 = OptimConfig(dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a file of every form."""
    folder = tmp_path_factory.mktemp("forms")
    for form in FORMS:
        write_form(form, folder / f"{form}.safetensors")
    return folder


def pixels(encoder):
    shape = (2, *encoder.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def timm_features(form, pool, size, images):
    """Pool the tokens of timm's network by hand, but for its own query."""
    network = random_network(form)
    side = FORMS[form][1]
    if size != (side, side):
        network.set_input_size(img_size=size)
    tokens = network.forward_features(images)
    if pool == "map":
        return network.attn_pool(tokens)
    if pool == "token":
        return tokens[:, 0]
    mean = tokens[:, network.num_prefix_tokens :].mean(dim=1)
    return network.fc_norm(mean)


@pytest.mark.parametrize("moved", [0, 2])
@pytest.mark.parametrize(("pool", "form"), [(pool, form) for pool, forms in POOLS.items() for form in forms])
def test_features_are_timms_by_every_pooling_and_at_another_size(folder, pool, form, moved):
    side = FORMS[form][1]
    patch = {64: 16, 56: 14}[side]
    size = (side + moved * patch, side + 2 * moved * patch)
    source = ModelSource(init=str(folder / f"{form}.safetensors"), image_size=size)
    encoder = TorchEncoder(source, CPU, pool=pool)
    images = pixels(encoder)
    mean = torch.tensor((0.5, 0.4, 0.3))
    std = torch.tensor((0.2, 0.3, 0.4))
    normalised = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = timm_features(form, pool, size, normalised).numpy()
    found = encoder.compute_features(images)
    assert np.ptp(expected, axis=0).max() > 0.05  # images are told apart
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))
    if pool == "avg":
        np.testing.assert_array_equal(TorchEncoder(source, CPU).compute_features(images), found)


@pytest.mark.parametrize("pool", ["token", "map"])
def test_networks_named_by_timm_pool_as_they_are_told(pool, tmp_path):
    name = {"token": "vit_tiny_patch16_224", "map": "vit_base_patch16_siglip_224"}[pool]
    source = ModelSource(init=f"timm:{name}?pretrained=false", image_size=(32, 32))
    encoder = TorchEncoder(source, CPU, pool=pool)
    images = pixels(encoder)
    with torch.inference_mode():
        tokens = encoder.model.forward_features(encoder._pixels(images))
        expected = tokens[:, 0] if pool == "token" else encoder.model.attn_pool(tokens)
    np.testing.assert_allclose(encoder.compute_features(images), expected.numpy(), atol=1e-5)
    own = TorchEncoder(ModelSource(init="timm:resnet10t?pretrained=false"), CPU)
    with pytest.raises(ConfigError, match=r"pool .*: timm:resnet10t.* is a ResNet, which pools in its own way"):
        TorchEncoder(ModelSource(init="timm:resnet10t?pretrained=false"), CPU, pool=pool)
    assert own.compute_features(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 512)


@pytest.mark.parametrize(
    ("form", "pool", "message"),
    [
        ("siglip", "token", "pool token: a ViT with .* has no class token; set pool to avg or map"),
        ("aimv2", "token", "pool token: .* has no class token; set pool to avg$"),
        ("dinov3", "map", "pool map: .* has no query that pools; set pool to avg or token"),
    ],
)
def test_what_an_encoder_lacks_is_one_sentence(folder, form, pool, message):
    with pytest.raises(ConfigError, match=message):
        TorchEncoder(ModelSource(init=str(folder / f"{form}.safetensors")), CPU, pool=pool)


@pytest.mark.parametrize(("form", "pool"), [("dinov3", "token"), ("siglip", "map")])
def test_descriptors_are_that_token_at_length_one(folder, form, pool):
    source = ModelSource(init=str(folder / f"{form}.safetensors"))
    config = RetrievalConfig(model=source, pool=pool, dim=None, optim=FLOAT32)
    embedder = TorchEmbedder(config, 0, CPU)
    encoder = TorchEncoder(source, CPU, pool=pool)
    images = pixels(encoder)
    features = encoder.compute_features(images)
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(embedder.compute_descriptors(images), expected, atol=1e-5)


@pytest.mark.parametrize("form", ["dinov2_registers", "dinov3", "eva02"])
def test_descriptors_at_other_scales_are_those_of_an_encoder_of_that_size(folder, form):
    """EVA-02's angles are scaled to its own grid, DINOv3's to the image, and positions are resampled."""
    source = ModelSource(init=str(folder / f"{form}.safetensors"))
    side = FORMS[form][1]
    scaled = TorchEmbedder(RetrievalConfig(model=source, dim=None, scales=(1.5,), optim=FLOAT32), 0, CPU)
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    larger = source.model_copy(update={"image_size": (side * 3 // 2, side * 3 // 2)})
    fixed = TorchEmbedder(RetrievalConfig(model=larger, dim=None, optim=FLOAT32), 0, CPU)
    resized = torch.nn.functional.interpolate(
        fixed._pixels(images), larger.image_size, mode="bilinear", align_corners=False, antialias=True
    )
    with torch.inference_mode():
        expected = fixed.model(resized).numpy()
    np.testing.assert_allclose(scaled.compute_descriptors(images), expected, atol=2e-5)
