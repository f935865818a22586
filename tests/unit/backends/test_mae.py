"""MAE against its arithmetic written out in NumPy, float64, from the published names and shapes of the checkpoints."""

import math

import numpy as np
import pytest
import timm
import torch
from scipy.special import erf

from ehm.backends.torch.engine.tensors import load_arrays
from ehm.backends.torch.models import attention
from ehm.backends.torch.models.patches import patchify
from ehm.backends.torch.objectives.mae import MaskedAutoencoder
from ehm.config.encoders import VitSpec, compute_sincos_positions
from ehm.errors import CheckpointError
from ehm.masking import split_mask

SPEC = VitSpec((32, 48), 8, width=24, depth=3, heads=3)
DECODER = {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}


def published_weights(spec=SPEC, width=16, depth=2, seed=0):
    """A state with exactly the keys and shapes of facebookresearch/mae's ``mae_visualize_*`` files."""
    rng = np.random.default_rng(seed)
    tokens, values = spec.patches + 1, spec.patch_size**2 * 3
    shapes = {
        "cls_token": (1, 1, spec.width),
        "pos_embed": (1, tokens, spec.width),
        "mask_token": (1, 1, width),
        "decoder_pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (spec.width, 3, spec.patch_size, spec.patch_size),
        "patch_embed.proj.bias": (spec.width,),
        "norm.weight": (spec.width,),
        "norm.bias": (spec.width,),
        "decoder_embed.weight": (width, spec.width),
        "decoder_embed.bias": (width,),
        "decoder_norm.weight": (width,),
        "decoder_norm.bias": (width,),
        "decoder_pred.weight": (values, width),
        "decoder_pred.bias": (values,),
    }
    for prefix, dim, blocks in (("blocks", spec.width, spec.depth), ("decoder_blocks", width, depth)):
        for block in range(blocks):
            name = f"{prefix}.{block}."
            for norm in ("norm1", "norm2"):
                shapes |= {f"{name}{norm}.weight": (dim,), f"{name}{norm}.bias": (dim,)}
            for layer, rows, columns in (
                ("attn.qkv", 3 * dim, dim),
                ("attn.proj", dim, dim),
                ("mlp.fc1", 4 * dim, dim),
                ("mlp.fc2", dim, 4 * dim),
            ):
                shapes |= {f"{name}{layer}.weight": (rows, columns), f"{name}{layer}.bias": (rows,)}
    return {key: rng.normal(0, 0.2, shape).astype(np.float32) for key, shape in shapes.items()}


def norm(x, w, name):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * w[name + ".weight"] + w[name + ".bias"]


def linear(x, w, name):
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def probabilities(x, w, name, heads):
    """Softmax attention (heads, L, L) of a block on its input x (L, D)."""
    width = x.shape[1]
    head = width // heads
    qkv = linear(norm(x, w, name + ".norm1"), w, name + ".attn.qkv")
    result = []
    for h in range(heads):
        q = qkv[:, h * head : (h + 1) * head]
        k = qkv[:, width + h * head : width + (h + 1) * head]
        scores = np.exp(q @ k.T / math.sqrt(head))
        result.append(scores / scores.sum(1, keepdims=True))
    return np.stack(result)


def block(x, w, name, heads):
    width = x.shape[1]
    head = width // heads
    attention = probabilities(x, w, name, heads)
    values = linear(norm(x, w, name + ".norm1"), w, name + ".attn.qkv")[:, 2 * width :]
    mixed = np.concatenate([attention[h] @ values[:, h * head : (h + 1) * head] for h in range(heads)], axis=1)
    x = x + linear(mixed, w, name + ".attn.proj")
    hidden = linear(norm(x, w, name + ".norm2"), w, name + ".mlp.fc1")
    hidden = hidden * 0.5 * (1 + erf(hidden / math.sqrt(2)))
    return x + linear(hidden, w, name + ".mlp.fc2")


def patches_of(image, size):
    """(3, H, W) -> (N, size * size * 3), by slicing."""
    rows, columns = image.shape[1] // size, image.shape[2] // size
    return np.stack(
        [
            image[:, r * size : (r + 1) * size, c * size : (c + 1) * size].transpose(1, 2, 0).ravel()
            for r in range(rows)
            for c in range(columns)
        ]
    )


def embed(image, w, spec=SPEC):
    flat = w["patch_embed.proj.weight"].transpose(0, 2, 3, 1).reshape(spec.width, -1)
    return patches_of(image, spec.patch_size) @ flat.T + w["patch_embed.proj.bias"] + w["pos_embed"][0, 1:]


def reference_loss(image, mask, w, norm_pix, spec=SPEC):
    """MAE's loss of one image, patch by patch."""
    first = w["cls_token"][0] + w["pos_embed"][0, :1]
    x = np.concatenate([first, embed(image, w, spec)[~mask]])
    for index in range(spec.depth):
        x = block(x, w, f"blocks.{index}", spec.heads)
    x = linear(norm(x, w, "norm"), w, "decoder_embed")
    full = np.repeat(w["mask_token"][0], len(mask), axis=0)
    full[~mask] = x[1:]
    x = np.concatenate([x[:1], full]) + w["decoder_pos_embed"][0]
    for index in range(2):
        x = block(x, w, f"decoder_blocks.{index}", 2)
    predicted = linear(norm(x, w, "decoder_norm"), w, "decoder_pred")[1:]
    target = patches_of(image, spec.patch_size)
    if norm_pix:
        target = (target - target.mean(1, keepdims=True)) / np.sqrt(target.var(1, ddof=1, keepdims=True) + 1e-6)
    return ((predicted - target) ** 2).mean(1)[mask].mean()


def inputs(batch=3, ratio=0.75, seed=1):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(batch, 3, *SPEC.image_size))
    mask = np.zeros((batch, SPEC.patches), bool)
    for row in mask:
        row[rng.permutation(SPEC.patches)[: round(ratio * SPEC.patches)]] = True
    return images, mask


@pytest.mark.parametrize("norm_pix", [True, False])
def test_published_weights_load_without_renaming_and_give_the_published_loss(norm_pix):
    weights = published_weights()
    model = MaskedAutoencoder(SPEC, **DECODER, norm_pix_loss=norm_pix)
    load_arrays(model, weights)
    images, mask = inputs()
    exact = {key: value.astype(np.float64) for key, value in weights.items()}
    expected = np.mean([reference_loss(image, row, exact, norm_pix) for image, row in zip(images, mask, strict=True)])
    visible, masked, restore = (torch.from_numpy(part) for part in split_mask(mask))
    with torch.no_grad():
        loss = model(torch.from_numpy(images).float(), visible, masked, restore)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_similarity_is_the_symmetrised_mean_attention(blocks):
    weights = published_weights()
    model = MaskedAutoencoder(SPEC, **DECODER)
    load_arrays(model, weights)
    images, _ = inputs(batch=1)
    exact = {key: value.astype(np.float64) for key, value in weights.items()}
    x = np.concatenate([exact["cls_token"][0] + exact["pos_embed"][0, :1], embed(images[0], exact)])
    total = 0
    for index in range(blocks):
        total = total + probabilities(x, exact, f"blocks.{index}", SPEC.heads).mean(0)
        x = block(x, exact, f"blocks.{index}", SPEC.heads)
    attention = (total / blocks)[1:, 1:]
    with torch.no_grad():
        similarity = model.compute_similarity(model.embed(torch.from_numpy(images).float()), blocks)[0].numpy()
    np.testing.assert_allclose(similarity, (attention + attention.T) / 2, rtol=1e-4, atol=1e-7)
    assert similarity.dtype == np.float32


def test_saliency_is_the_class_tokens_attention_in_the_last_block():
    weights = published_weights()
    model = MaskedAutoencoder(SPEC, **DECODER)
    load_arrays(model, weights)
    images, _ = inputs(batch=2)
    exact = {key: value.astype(np.float64) for key, value in weights.items()}
    with torch.no_grad():
        saliency = model.compute_saliency(model.embed(torch.from_numpy(images).float())).numpy()
    assert saliency.dtype == np.float32
    for image, row in zip(images, saliency, strict=True):
        x = np.concatenate([exact["cls_token"][0] + exact["pos_embed"][0, :1], embed(image, exact)])
        for index in range(SPEC.depth - 1):
            x = block(x, exact, f"blocks.{index}", SPEC.heads)
        attention = probabilities(x, exact, f"blocks.{SPEC.depth - 1}", SPEC.heads)
        np.testing.assert_allclose(row, attention.mean(0)[0, 1:], rtol=1e-4, atol=1e-7)


def test_several_masks_of_an_image_are_as_many_images():
    model = MaskedAutoencoder(SPEC, **DECODER)
    load_arrays(model, published_weights())
    images, _ = inputs()
    images = torch.from_numpy(images).float()
    masks = inputs(batch=6, seed=2)[1]
    indices = [torch.from_numpy(part) for part in split_mask(masks)]
    with torch.no_grad():
        loss = model(images, *indices)
        alone = [model(images[row // 2][None], *(part[row][None] for part in indices)) for row in range(6)]
    assert float(loss) == pytest.approx(float(sum(alone)) / 6, rel=1e-5)


def test_unfused_attention_has_the_gradients_of_the_fused_one(monkeypatch):
    model = MaskedAutoencoder(SPEC, **DECODER)
    load_arrays(model, published_weights())
    images, mask = inputs()
    indices = [torch.from_numpy(part) for part in split_mask(mask)]
    looks, probs = [], attention._compute_probs
    monkeypatch.setattr(attention, "_compute_probs", lambda *heads: looks.append(1) or probs(*heads))

    def gradients(unfused):
        monkeypatch.setattr(attention, "UNFUSED", unfused)
        model.zero_grad()
        model(torch.from_numpy(images).float(), *indices).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    fused = gradients(set())
    assert not looks
    torch.testing.assert_close(gradients({("cpu", torch.float32)}), fused, rtol=1e-4, atol=1e-6)
    assert len(looks) == SPEC.depth + DECODER["decoder_depth"]


def test_encoder_loads_into_timm_and_gives_its_features():
    model = MaskedAutoencoder(SPEC, **DECODER).eval()
    load_arrays(model, published_weights())
    encoder = timm.models.vision_transformer.VisionTransformer(
        img_size=SPEC.image_size, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=0, global_pool=""
    ).eval()
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("decoder_") and k != "mask_token"}
    encoder.load_state_dict(own, strict=True)
    images = torch.from_numpy(inputs()[0]).float()
    every = torch.arange(SPEC.patches).expand(3, -1)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(model.embed(images), every), encoder(images), rtol=1e-5, atol=1e-5)


def test_positions_are_sines_of_column_then_row():
    table = compute_sincos_positions(16, (3, 5))[0]
    assert np.all(table[0] == 0)
    row, column = 2, 4
    angles = [1 / 10000 ** (i / 4) for i in range(4)]
    expected = [f(p * a) for p in (column, row) for f in (math.sin, math.cos) for a in angles]
    np.testing.assert_allclose(table[1 + row * 5 + column], expected, atol=1e-6)


def test_patchify_matches_slicing():
    image = np.random.default_rng(0).normal(size=(3, 16, 24))
    np.testing.assert_array_equal(patchify(torch.from_numpy(image[None]), 8)[0].numpy(), patches_of(image, 8))


def test_weights_that_do_not_fit_are_named():
    weights = published_weights()
    weights["extra"] = weights.pop("norm.bias")
    with pytest.raises(CheckpointError, match=r"extra is not part of the model; norm\.bias is missing"):
        load_arrays(MaskedAutoencoder(SPEC, **DECODER), weights)
