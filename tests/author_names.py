"""Random tensors under authors' names, written from timm's own networks: the way back from what ehm converts.

Each function takes the ``state_dict`` of a network of timm's and gives what its authors' program would have saved.
"""

import re

import torch


def randomise(model, seed=0):
    """Fill all parameters with numbers that are not small, so that each matters; return the state."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, value in state.items():
        noise = torch.randn(value.shape, generator=generator) * 0.2
        state[name] = noise + float("norm" in name and name.endswith("weight"))
    model.load_state_dict(state)
    return {name: value.clone() for name, value in model.state_dict().items()}


def rename(state, *rules, drop=()):
    """Apply regular expressions to the names, and leave out names that match one of ``drop``."""
    renamed = {}
    for name, value in state.items():
        if any(re.match(pattern, name) for pattern in drop):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def below(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def as_openai_clip(state, prefix="visual."):
    """``clip/model.py`` of openai/CLIP, and OpenCLIP's ``transformer.py``, with a little of the text's tower."""
    named = rename(
        state,
        (r"patch_embed\.proj", "conv1"),
        (r"cls_token", "class_embedding"),
        (r"pos_embed", "positional_embedding"),
        (r"norm_pre", "ln_pre"),
        (r"^norm\.", "ln_post."),
        (r"blocks\.", "transformer.resblocks."),
        (r"\.norm(\d)", r".ln_\1"),
        (r"qkv\.", "in_proj_"),
        (r"attn\.proj", "attn.out_proj"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
        drop=(r"head\.",),
    )
    named["class_embedding"] = named["class_embedding"][0, 0]
    named["positional_embedding"] = named["positional_embedding"][0]
    named["proj"] = torch.ones(named["class_embedding"].numel(), 4)
    text = {
        "transformer.resblocks.0.ln_1.weight": torch.ones(8),
        "token_embedding.weight": torch.ones(9, 8),
        "text_projection": torch.ones(8, 4),
        "logit_scale": torch.ones(()),
    }
    return below(prefix, named) | text


def as_dinov2(state, chunk=0):
    """``dinov2/models/vision_transformer.py``; with ``chunk`` blocks in each chunk, as its training saves them."""
    named = rename(
        state,
        (r"reg_token", "register_tokens"),
        (r"blocks\.(\d+)\.", lambda match: _chunked(int(match[1]), chunk)),
        drop=(r"head\.",),
    )
    packed = any(name.endswith("mlp.fc1.weight") and len(value) != 4 * value.shape[1] for name, value in named.items())
    if packed:
        named = rename(named, (r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3"))
    width = named["cls_token"].shape[-1]
    named["mask_token"] = torch.ones(1, width)
    if "register_tokens" in named:
        # the class token's position, which timm adds to the token
        named["pos_embed"] = torch.cat([torch.full((1, 1, width), 0.3), named["pos_embed"]], dim=1)
        named["cls_token"] = named["cls_token"] - 0.3
    return named


def _chunked(block, chunk):
    return f"blocks.{block // chunk}.{block}." if chunk else f"blocks.{block}."


def as_dinov3(state):
    """``dinov3/models/vision_transformer.py``: all biases in one, that of keys masked."""
    named = rename(
        state,
        (r"reg_token", "storage_tokens"),
        (r"gamma_(\d)", r"ls\1.gamma"),
        (r"mlp\.fc1_g", "mlp.w1"),
        (r"mlp\.fc1_x", "mlp.w2"),
        drop=(r"head\.", r".*attn\.[qv]_bias"),
    )
    if any(".w1." in name for name in named):
        named = rename(named, (r"mlp\.fc2", "mlp.w3"))
    for name, query in state.items():
        if name.endswith("q_bias"):
            stem = name.removesuffix("q_bias")
            key = torch.full_like(query, 7.0)  # has no effect
            named[f"{stem}qkv.bias"] = torch.cat([query, key, state[f"{stem}v_bias"]])
            ones = torch.ones_like(query)
            named[f"{stem}qkv.bias_mask"] = torch.cat([ones, 0 * ones, ones])
    width = named["cls_token"].shape[-1]
    named["mask_token"] = torch.zeros(1, width)
    named["rope_embed.periods"] = torch.ones(8)
    named["local_cls_norm.weight"] = torch.ones(width)
    return named


def as_eva02(state):
    """``EVA-02/asuka/modeling_pretrain.py``, with the buffers of its rotary positions."""
    gated = any(".fc1_g." in name for name in state)
    rules = [
        (r"attn\.norm", "attn.inner_attn_ln"),
        (r"mlp\.norm", "mlp.ffn_ln"),
        (r"mlp\.fc1_g", "mlp.w1"),
        (r"mlp\.fc1_x", "mlp.w2"),
        (r"mlp\.fc1\.", "mlp.w12."),
        (r"attn\.([qv])_proj\.bias", r"attn.\1_bias"),
        (r"mlp\.fc2", "mlp.w3"),
    ]
    named = rename(state, *rules, drop=(r"head\.", r"fc_norm\."))
    assert gated == any(".w1." in name for name in named)
    angles = torch.zeros(16, 8)
    return named | {"rope.freqs_cos": angles, "rope.freqs_sin": angles, "blocks.0.attn.rope.freqs_cos": angles}


def as_aimv2(state):
    """``aim-v2/aim/v2/torch/models.py`` of apple/ml-aim."""
    return rename(
        state,
        (r"\.norm(\d)", r".norm_\1"),
        (r"^norm\.", "trunk.post_trunk_norm."),
        (r"^blocks\.", "trunk.blocks."),
        (r"^patch_embed\.", "preprocessor.patchifier."),
        (r"^pos_embed", "preprocessor.pos_embed"),
        (r"mlp\.fc1_g", "mlp.fc1"),
        (r"mlp\.fc1_x", "mlp.fc3"),
        drop=(r"head\.",),
    )


def as_deit3(state):
    """``models_v2.py`` of facebookresearch/deit."""
    return rename(state, (r"ls(\d)\.gamma", r"gamma_\1"))


def as_beit_blocks(state):
    """The blocks of BEiT, of which CAE and MFM are made: factors without a module, and keys without a bias."""
    named = rename(state, (r"ls(\d)\.gamma", r"gamma_\1"), drop=(r"head\.", r".*qkv\.bias"))
    for name, bias in state.items():
        if name.endswith("qkv.bias"):
            query, _, value = bias.chunk(3)
            stem = name.removesuffix("qkv.bias")
            named[f"{stem}q_bias"] = query
            named[f"{stem}v_bias"] = value
    return named
