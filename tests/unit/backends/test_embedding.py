"""GeM, whitening and ArcFace beside their formulas in NumPy."""

import numpy as np
import pytest
import timm
import torch

from ehm.backends.torch.learners.retrieval import TorchEmbedder
from ehm.backends.torch.models.embedding import ArcFace, Embedding, extract_patch_tokens
from ehm.config import RetrievalConfig
from ehm.errors import ConfigError


def vit(**options):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **options}).eval()


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5, 1.2])
def test_arcface_adds_the_margin_to_the_angle(margin):
    rng = np.random.default_rng(0)
    arcface = ArcFace(8, 5, margin, 16.0)
    descriptors = rng.normal(size=(64, 8))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    labels = rng.integers(0, 5, 64)
    descriptors[0] = -torch.nn.functional.normalize(arcface.weight.detach()[labels[0]], dim=0).double().numpy()
    weights = arcface.weight.detach().double().numpy()
    angles = np.arccos(np.clip(descriptors @ (weights / np.linalg.norm(weights, axis=1, keepdims=True)).T, -1, 1))
    rows = np.arange(64)
    right = angles[rows, labels]
    expected = 16 * np.cos(angles)
    far = right + margin > np.pi
    expected[rows, labels] = 16 * np.where(far, np.cos(right) - margin * np.sin(margin), np.cos(right + margin))
    assert far.any() or margin == 0
    logits = arcface(torch.from_numpy(descriptors).float(), torch.from_numpy(labels)).detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=0.01)
    assert np.abs(logits - expected)[1:].max() < 1e-4


def test_a_descriptor_is_the_whitened_generalised_mean_at_length_one():
    torch.manual_seed(0)
    model = Embedding(vit(), dim=7)
    with torch.no_grad():
        model.power.fill_(2.5)
        images = torch.randn(3, 3, 32, 32)
        found = model(images).numpy()
        tokens = model.encoder.forward_features(images)[:, 1:].double().numpy()
    pooled = (np.maximum(tokens, 1e-6) ** 2.5).mean(axis=1) ** (1 / 2.5)
    whitened = pooled @ model.whitening.weight.detach().double().numpy().T + model.whitening.bias.detach().numpy()
    np.testing.assert_allclose(found, whitened / np.linalg.norm(whitened, axis=1, keepdims=True), atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        lower = model(images)
    assert lower.dtype == torch.float32
    np.testing.assert_allclose(lower.detach().norm(dim=1), 1, atol=1e-5)


def test_tokens_are_the_patches_of_any_encoder():
    images = torch.randn(2, 3, 32, 32)
    for model, count in (
        (vit(), 16),
        (vit(global_pool="avg", fc_norm=True), 16),
        (timm.create_model("resnet10t", num_classes=0).eval(), 1),
        (
            timm.create_model(
                "swin_tiny_patch4_window7_224", img_size=32, depths=(1, 1), num_heads=(1, 1), embed_dim=8
            ),
            16,
        ),
    ):
        tokens = extract_patch_tokens(model, model.forward_features(images))
        assert tokens.shape == (2, count, model.num_features)
    normed = vit(global_pool="avg", fc_norm=True)
    tokens = extract_patch_tokens(normed, normed.forward_features(images))
    torch.testing.assert_close(tokens.mean(dim=2), torch.zeros(2, 16), atol=1e-5, rtol=0)  # behind fc_norm
    with pytest.raises(ConfigError, match="gives no tokens of patches"):
        extract_patch_tokens(normed, tokens.mean(dim=1))


@pytest.fixture
def embedder():
    def make(classes=3, **values):
        model = {"encoder": "vit_tiny", "width": 24, "depth": 2, "heads": 2, "image_size": 32, "patch_size": 8}
        optim = {"batch_size": 8, "base_lr": 0.1, "dtype": "float32", **values.pop("optim", {})}
        config = RetrievalConfig.model_validate(
            {"model": model | values.pop("model", {}), "dim": 8, "optim": optim, **values}
        )
        return TorchEmbedder(config, classes, torch.device("cpu"))

    return make


def batch(count=8):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 3, count)


def test_a_step_is_plain_torch_arithmetic(embedder):
    ours, model = embedder(), embedder().model
    images, labels = batch()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    decayed = [
        p
        for name, p in model.named_parameters()
        if p.ndim > 1 and name not in ("encoder.pos_embed", "encoder.cls_token")
    ]
    rest = [p for p in model.parameters() if all(p is not other for other in decayed)]
    optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": 0.01}, {"params": rest}], lr=0.02, momentum=0.9)
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model(pixels, torch.from_numpy(labels)), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert float(ours.train_step(images, labels, 0.02, 0.01)["loss"]) == pytest.approx(loss.item(), rel=1e-4)
    for name, value in ours.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=1e-5, rtol=1e-4, msg=name)
    assert ours.model.power.item() != 3
    assert ours.model.arcface.scale.item() != 45.25


def test_parts_of_a_batch_make_the_same_step(embedder):
    images, labels = batch(7)
    states = []
    for accumulate in (1, 4):
        learner = embedder(optim={"accumulate": accumulate})
        for _ in range(2):
            learner.train_step(images, labels, 0.01, 0.01)
        states.append(learner.state().model)
    for name, array in states[0].items():
        np.testing.assert_allclose(array, states[1][name], atol=1e-5, err_msg=name)


def test_several_scales_are_averaged(embedder):
    images, _ = batch(2)
    one = embedder().compute_descriptors(images)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-6)
    both = embedder(scales=[0.5, 1.0])
    found = both.compute_descriptors(images)
    with torch.no_grad():
        half = torch.nn.functional.interpolate(both._pixels(images), (16, 16), mode="bilinear", antialias=True)
        total = one + both.model.eval()(half).numpy()
    np.testing.assert_allclose(found, total / np.linalg.norm(total, axis=1, keepdims=True), atol=1e-5)
    assert np.abs(found - one).max() > 1e-3
    stages = [1, 1, 1, 1]
    model = {"encoder": "swin_tiny", "depth": stages, "heads": stages, "width": 8, "patch_size": 1, "window": 2}
    with pytest.raises(ConfigError, match=r"scales \[0\.5\]: a SwinTransformer takes images of one size"):
        embedder(scales=[0.5], model=model)


def test_whole_images_are_described_at_scales_of_their_own_size(embedder):
    image = np.random.default_rng(0).integers(0, 256, (1, 45, 90, 3), dtype=np.uint8)
    learner = embedder(scales=[0.5, 1.0, 1.5], longest=1024)
    found = learner.compute_descriptors(image)
    total = 0
    for size in ((24, 48), (48, 88), (64, 136)):  # 22.5 x 45, 45 x 90 and 67.5 x 135 in patches of 8
        pixels = torch.nn.functional.interpolate(learner._pixels(image), size, mode="bilinear", antialias=True)
        with torch.no_grad():
            total = total + learner.model.eval()(pixels).numpy()
    np.testing.assert_allclose(found, total / np.linalg.norm(total), atol=1e-5)
    assert np.abs(found - embedder(longest=1024).compute_descriptors(image)).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "fits"),
    [("resnet10t", True), ("swin_tiny_patch4_window7_224", False), ("beit_base_patch16_224", False),
     ("mixer_s32_224", False)],
)  # fmt: skip
def test_encoders_of_one_size_say_so(embedder, name, fits):
    model = {"init": f"timm:{name}?pretrained=false", "width": None, "depth": None, "heads": None, "patch_size": None}
    model["image_size"] = 224
    if fits:
        assert embedder(longest=64, model=model).compute_descriptors(np.zeros((1, 40, 64, 3), np.uint8)).shape == (1, 8)
    else:
        with pytest.raises(
            ConfigError, match=r"longest 64: a (Swin|Beit|Mlp)\w* takes images of one size; leave it out"
        ):
            embedder(longest=64, model=model)


def test_without_classes_pixels_are_normalised_as_the_weights_were(embedder):
    name = "timm:vit_tiny_patch16_224.augreg_in21k?pretrained=false"
    model = {"init": name, "width": None, "depth": None, "heads": None, "patch_size": None}
    learner = embedder(classes=0, model=model, dim=None)
    images, _ = batch(2)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1  # the mean and std of that model are 0.5
        expected = learner.model(pixels).numpy()
    np.testing.assert_allclose(learner.compute_descriptors(images), expected, atol=1e-5)
    assert expected.shape == (2, 192)
