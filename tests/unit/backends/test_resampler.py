"""The Perceiver Resampler beside transformers' own, and the tokens that it sees of every family of encoders."""

import pytest
import torch
from torch import nn

from ehm.backends.torch.models.loading import load_model
from ehm.backends.torch.models.resampler import Resampler, VisualTokens
from ehm.config import ModelSource
from ehm.config.language import ResamplerConfig

perceiver = pytest.importorskip("transformers.models.idefics.perceiver")

SIZES = ResamplerConfig(latents=5, depth=2, heads=3, head_width=8)
WIDTH = 24


@pytest.fixture
def own():
    torch.manual_seed(0)
    resampler = Resampler(WIDTH, SIZES, language_width=16)
    for parameter in resampler.parameters():
        nn.init.normal_(parameter, std=0.5)
    return resampler


def load_published(own):
    """The resampler of IDEFICS with the same weights, and the GELU of Flamingo in place of its ReLU."""
    from transformers import IdeficsConfig

    config = IdeficsConfig(
        vision_config={"embed_dim": WIDTH}, perceiver_config={"use_resampler": True, "qk_layer_norms_perceiver": False}
    )
    published = perceiver.IdeficsPerceiverResampler(config, WIDTH, SIZES.depth, SIZES.heads, SIZES.head_width, 5)
    published.latents.data = own.latents.data
    published.layer_norm.load_state_dict(own.norm.state_dict())
    for (attention, _), layer in zip(published.blocks, own.layers, strict=True):
        attention.context_layer_norm.load_state_dict(layer.attn.norm_tokens.state_dict())
        attention.latents_layer_norm.load_state_dict(layer.attn.norm_latents.state_dict())
        attention.q_proj.weight.data = layer.attn.q.weight.data
        keys, values = layer.attn.kv.weight.data.chunk(2)
        attention.k_proj.weight.data = keys
        attention.v_proj.weight.data = values
        attention.output_proj.weight.data = layer.attn.proj.weight.data
    for (_, mlp), layer in zip(published.blocks, own.layers, strict=True):
        norm, first, _, second = layer.mlp
        mlp.ln.load_state_dict(norm.state_dict())
        mlp.fc.weight.data = first.weight.data
        mlp.c_proj.weight.data = second.weight.data
        mlp.act = nn.GELU()
    return published


@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_it_computes_what_the_published_one_computes(own, fused):
    for layer in own.layers:
        layer.attn.fused_attn = fused
    tokens = torch.randn(2, 7, WIDTH)
    expected = own.projection(load_published(own)(tokens))
    torch.testing.assert_close(own(tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"encoder": "vit_tiny", "image_size": 32, "patch_size": 8, "depth": 1}, 17),
        ({"encoder": "swin_tiny", "image_size": 32, "patch_size": 4, "depth": (1, 1), "heads": (1, 1)}, 16),
    ],
    ids=["vit", "swin"],
)
@torch.no_grad()
def test_it_sees_all_tokens_of_an_encoder(settings, tokens):
    encoder = load_model(ModelSource(**settings, width=24), fc_norm=False).model.eval()
    model = VisualTokens(encoder, SIZES, language_width=16)
    images = torch.randn(2, 3, 32, 32)
    assert model.encode(images).shape == (2, tokens, encoder.num_features)
    assert model(images).shape == (2, 5, 16)


@torch.no_grad()
def test_a_norm_behind_an_average_is_applied_to_all_tokens():
    source = ModelSource(encoder="vit_tiny", image_size=32, patch_size=8, width=24, depth=1, heads=1)
    torch.manual_seed(0)
    averaging = load_model(source).model.eval()
    plain = load_model(source, fc_norm=False).model.eval()
    weights = averaging.state_dict()
    weights["norm.weight"] = weights.pop("fc_norm.weight") + 1  # which begins as ones
    weights["norm.bias"] = weights.pop("fc_norm.bias") + 1
    plain.load_state_dict(weights)
    averaging.fc_norm.load_state_dict(plain.norm.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        VisualTokens(averaging, SIZES, 16).encode(images), VisualTokens(plain, SIZES, 16).encode(images)
    )


def test_attention_is_what_the_last_layer_takes_of_the_tokens(own):
    tokens = torch.randn(2, 7, WIDTH)
    latents = own.latents.expand(2, -1, -1)
    before = own.layers[0](tokens, latents)
    attention = own.compute_attention(tokens)
    assert attention.shape == (2, SIZES.latents, 7)
    assert (attention.sum(-1) < 1).all()
    # a token alone takes the place of all values, so that its weight is what comes out of each head
    last = own.layers[1].attn
    seen = torch.cat([last.norm_tokens(tokens), last.norm_latents(before)], dim=1)
    keys, _ = last.kv(seen).chunk(2, dim=-1)
    queries = last.q(last.norm_latents(before))
    split = [part.unflatten(-1, (SIZES.heads, -1)).transpose(1, 2) for part in (queries, keys)]
    values = torch.eye(seen.shape[1]).expand(2, SIZES.heads, -1, -1)
    expected = nn.functional.scaled_dot_product_attention(*split, values).mean(1)[..., :7]
    torch.testing.assert_close(attention, expected)
