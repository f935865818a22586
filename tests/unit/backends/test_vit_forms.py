"""Published forms of ViTs in pretraining: timm's own forward is the reference, on all tokens and on some of them."""

import pytest
import timm
import torch
from torch import nn

from ehm.backends.torch.engine.tensors import load_arrays
from ehm.backends.torch.models.attention import Places
from ehm.backends.torch.models.masked_encoder import MaskedVit
from ehm.backends.torch.models.timm_vit import read_timm_spec
from ehm.backends.torch.models.visible_encoder import VisibleEncoder
from ehm.models.fitting import select_but_fresh
from ehm.models.tables import SHARED_TABLE, average_tables

SIZES = {"depth": 3, "embed_dim": 48, "num_heads": 3, "num_classes": 0}
FORMS = {
    "DINO": ("vit_small_patch16_224", {"img_size": (32, 48)}),
    "DeiT distilled": ("deit_tiny_distilled_patch16_224", {"img_size": (32, 48)}),
    "DeiT III": ("deit3_small_patch16_224", {"img_size": (32, 48)}),
    "DINOv2": ("vit_small_patch14_dinov2", {"img_size": (28, 42)}),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", {"img_size": (28, 42)}),
    "DINOv2, SwiGLU": ("vit_giant_patch14_dinov2", {"img_size": (28, 42), "mlp_ratio": 4}),
    "DINOv3": ("vit_small_patch16_dinov3", {"img_size": (32, 48)}),
    "DINOv3, SwiGLU": ("vit_small_plus_patch16_dinov3_qkvb", {"img_size": (32, 48)}),
    "CLIP": ("vit_base_patch16_clip_quickgelu_224", {"img_size": (32, 48)}),
    "SigLIP": ("vit_base_patch16_siglip_224", {"img_size": (32, 48)}),
    "AIMv2": ("aimv2_large_patch14_224", {"img_size": (28, 42)}),
    "I-JEPA": ("vit_huge_patch14_gap_224", {"img_size": (28, 42)}),
    "EVA-02, small": ("eva02_tiny_patch14_224", {"img_size": (28, 42)}),
    "EVA-02": ("eva02_base_patch14_224", {"img_size": (28, 42)}),
    "EVA-02 for CLIP": ("eva02_base_patch16_clip_224", {"img_size": (32, 48)}),
}
"""timm's architecture of each family, and its size: 2 x 3 patches."""
VISIBLE = torch.tensor([[4, 1, 3], [0, 5, 2], [2, 3, 1], [5, 4, 0]])
"""The visible patches of two masks of each of two images, one after the other."""


@pytest.fixture(scope="module", params=FORMS)
def network(request):
    """A random network of timm's, none of whose parameters has the value that it begins with."""
    name, options = FORMS[request.param]
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SIZES, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    # plain attention, whose probabilities can be caught
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


@pytest.fixture(scope="module")
def images(network):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, *network.patch_embed.img_size, generator=generator)


def with_weights(kind, network):
    """A model in pretraining with the weights of ``network``."""
    found = read_timm_spec(network, "timm")
    assert found is not None
    spec, arrays = found
    model = kind(spec).eval()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    # some of timm's networks have their last norm behind the pooling
    fresh = {"mask_token", "norm.weight", "norm.bias"} & set(shapes) - set(arrays)
    selected, _ = select_but_fresh(shapes, arrays, fresh, "timm")
    load_arrays(model, {**{name: model.state_dict()[name].numpy() for name in fresh}, **selected})
    return model


def encode_all(network, tokens):
    """Pass what timm embeds through its blocks: (B, N, D) -> (B, L, D)."""
    located = network._pos_embed(tokens)
    tokens, rope = located if isinstance(located, tuple) else (located, None)
    tokens = network.norm_pre(tokens)
    for block in network.blocks:
        tokens = block(tokens) if rope is None else block(tokens, rope=rope)
    return tokens


@torch.no_grad()
def test_with_nothing_hidden_the_tokens_are_timms(network, images):
    expected = network.forward_features(images)
    model = with_weights(VisibleEncoder, network)
    if isinstance(network.norm, nn.Identity):
        expected = model.norm(expected)
    torch.testing.assert_close(model.encode(model.embed(images), torch.arange(6).expand(2, -1)), expected)
    masked = with_weights(MaskedVit, network)
    nothing = torch.zeros(2, 6, dtype=torch.bool)
    torch.testing.assert_close(masked.encode(masked.embed(images), nothing), expected[:, network.num_prefix_tokens :])


@torch.no_grad()
def test_visible_tokens_are_those_of_timm_if_nobody_attends_to_the_hidden_ones(network, images):
    """timm's network on all tokens, with attention to hidden patches forbidden, keeps every token at its place."""
    model = with_weights(VisibleEncoder, network)
    prefix = network.num_prefix_tokens
    located = network._pos_embed(network.patch_embed(images))
    tokens, rope = located if isinstance(located, tuple) else (located, None)
    tokens = network.norm_pre(tokens).repeat_interleave(2, 0)
    allowed = torch.zeros(4, prefix + 6, dtype=torch.bool)
    allowed[:, :prefix] = True
    allowed.scatter_(1, VISIBLE + prefix, True)
    for block in network.blocks:
        options = {} if rope is None else {"rope": rope}
        tokens = block(tokens, attn_mask=allowed[:, None, None], **options)
    tokens = model.norm(tokens)
    patches = tokens[:, prefix:].gather(1, VISIBLE[..., None].expand(-1, -1, tokens.shape[-1]))
    expected = torch.cat([tokens[:, :prefix], patches], dim=1)
    torch.testing.assert_close(model.encode(model.embed(images), VISIBLE), expected)


@torch.no_grad()
def test_a_mask_token_stands_where_timm_would_embed_the_patch(network, images):
    model = with_weights(MaskedVit, network)
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[0, [1, 4]] = True
    hidden[1, [0, 2, 5]] = True
    patches = network.patch_embed(images)
    patches.view(2, 6, -1)[hidden] = model.mask_token[0]
    expected = encode_all(network, patches)[:, network.num_prefix_tokens :]
    torch.testing.assert_close(model.encode(model.embed(images), hidden), model.norm(expected))


@torch.no_grad()
def test_similarity_and_saliency_are_those_of_timms_softmax(network, images):
    model = with_weights(VisibleEncoder, network)
    caught = []
    hooks = []
    for block in network.blocks:
        hooks.append(block.attn.attn_drop.register_forward_hook(lambda _, __, output: caught.append(output)))
    network.forward_features(images)
    for hook in hooks:
        hook.remove()
    prefix = network.num_prefix_tokens
    matrices = torch.stack(caught)  # (blocks, B, heads, L, L)
    mean = matrices[:2].mean((0, 2))[:, prefix:, prefix:]
    tokens = model.embed(images)
    torch.testing.assert_close(model.compute_similarity(tokens, 2), (mean + mean.mT) / 2, rtol=1e-4, atol=1e-6)
    if model.spec.has_class_token:
        class_row = matrices[-1].mean(1)[:, 0, prefix:]
        torch.testing.assert_close(model.compute_saliency(tokens), class_row, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_beits_biases_are_those_of_the_visible_tokens():
    """timm's BEiT on all tokens, with attention to hidden patches forbidden by its biases."""
    torch.manual_seed(0)
    network = timm.create_model("beitv2_base_patch16_224", **SIZES, img_size=(32, 48)).eval()
    for parameter in network.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2)
    first = network.blocks[0].attn.relative_position_bias_table
    for block in network.blocks:  # all blocks share a table in pretraining
        block.attn.relative_position_bias_table = first
    spec, arrays = read_timm_spec(network, "timm")
    model = VisibleEncoder(spec).eval()
    shared = average_tables(arrays)
    assert SHARED_TABLE in shared
    shared |= {"norm.weight": model.norm.weight.numpy(), "norm.bias": model.norm.bias.numpy()}
    load_arrays(model, {name: shared[name] for name in model.state_dict()})
    images = torch.randn(2, 3, 32, 48)
    tokens = model.prepend_prefix(model.embed(images)).repeat_interleave(2, 0)
    bias = model.rel_pos_bias().expand(4, -1, -1, -1).clone()
    hidden = torch.ones(4, 7, dtype=torch.bool)
    hidden[:, 0] = False
    hidden.scatter_(1, VISIBLE + 1, False)
    bias.masked_fill_(hidden[:, None, None], float("-inf"))
    for block in model.blocks:
        tokens = block(tokens, shared_rel_pos_bias=bias)
    tokens = model.norm(tokens)
    patches = tokens[:, 1:].gather(1, VISIBLE[..., None].expand(-1, -1, tokens.shape[-1]))
    expected = torch.cat([tokens[:, :1], patches], dim=1)
    torch.testing.assert_close(model.encode(model.embed(images), VISIBLE), expected)
    assert model.locate(VISIBLE).bias.shape == (4, 3, 4, 4)
    assert Places().prefix == 1
