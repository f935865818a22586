"""The layouts of Hugging Face's transformers, as its files on the Hub have them.

Since its fifth version the library's modules have other names, but its files keep the older ones
(``transformers/conversion_mapping.py``). Names are those of ``transformers/models/*/modeling_*.py`` of 4.57.
"""

from __future__ import annotations

from ehm.config.encoders import DINOV3_ROTARY
from ehm.models.published.facts import (
    AIMV2_FACTS,
    CENTRED,
    CLIP_HEADS,
    CLIP_INPUTS,
    SIGLIP_INPUTS,
    WHOLE_CROP,
    PublishedFacts,
)
from ehm.models.published.layout import Layout, Rules
from ehm.models.published.reshaping import (
    add_batch_axes,
    fold_class_position,
    join_heads,
    join_heads_without_key_bias,
    split_pooling_heads,
    unflatten_patch_weights,
)

__all__ = ["TRANSFORMERS"]

_PATCHES = r"embeddings\.patch_embeddings\.projection\.weight$"
_EMBEDDINGS: Rules = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.(distillation_token|register_tokens)$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
)
_BLOCK: Rules = (
    (r"\.attention\.attention\.relative_position_bias\.", ".attn."),
    (r"\.attention\.attention\.query\.", ".attn.q_proj."),
    (r"\.attention\.attention\.key\.", ".attn.k_proj."),
    (r"\.attention\.attention\.value\.", ".attn.v_proj."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)
"""A block of BERT's form, of which the older ViTs are made."""
_VIT: Rules = (
    *_EMBEDDINGS,
    (r"^encoder\.relative_position_bias\.", "rel_pos_bias."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    *_BLOCK,
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.lambda_(\d)$", r".gamma_\1"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
)
_CLASSIFIER = (r"^classifier\.(weight|bias)$", r"head.\1")
_MAE_DECODER: Rules = (
    (r"^decoder\.mask_token$", "mask_token"),
    (r"^decoder\.(decoder_\w+)$", r"\1"),
    # the library's fifth version writes another name than all files before
    (r"^decoder\.decoder_(?:layers|encoder\.layer)\.(\d+)\.", r"decoder_blocks.\1."),
    (r"^decoder\.(decoder_\w+)\.(weight|bias)$", r"\1.\2"),
    *((rf"^decoder_blocks(.*){pattern}", rf"decoder_blocks\1{replacement}") for pattern, replacement in _BLOCK),
)
_TOWER: Rules = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"^pre_layrnorm\.", "norm_pre."),  # the name is misspelt in transformers
    (r"^post_layernorm\.", "norm."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.in_proj_", "attn_pool.in_proj_"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
)
_DINOV3: Rules = (
    *_EMBEDDINGS,
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^(?:model\.)?layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.layer_scale(\d)\.lambda1$", r".gamma_\1"),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
_DINOV3_FACTS = PublishedFacts(norm_epsilon=1e-5, rotary=DINOV3_ROTARY, inputs=WHOLE_CROP)
_SWIN: Rules = (
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    *(
        (rf"^encoder\.layers\.{stage}\.downsample\.", f"layers.{stage + 1}.downsample.")
        # the stages above have got a number that the pattern does not match any more
        for stage in (0, 1, 2)
    ),
    (r"^encoder\.layers\.", "layers."),
    (r"\.attention\.self\.(query|key|value)\.", r".attention.attention.\1."),
    (r"\.attention\.self\.relative_position_bias_table$", ".attn.relative_position_bias_table"),
    *_BLOCK,
    (r"^layernorm\.", "norm."),
)

TRANSFORMERS: tuple[Layout, ...] = (
    Layout(
        "transformers, BEiT and data2vec",
        (_PATCHES, r"encoder\.layer\.0\.lambda_1$"),
        rules=_VIT,
        beside=((r"^(lm_head\.\w+)$", r"\1"), (r"^layernorm\.", "norm."), _CLASSIFIER),
        steps=(add_batch_axes, join_heads_without_key_bias),
        facts=PublishedFacts(inputs=CENTRED),
    ),
    Layout(
        "transformers, DINOv2",
        (_PATCHES, r"encoder\.layer\.0\.layer_scale1\."),
        rules=_VIT,
        # its classifier sees the class token and the mean of the patches together, and is no head of ours
        steps=(add_batch_axes, join_heads, fold_class_position),
        facts=PublishedFacts(heads={1536: 24}, inputs=WHOLE_CROP),
    ),
    Layout(
        "transformers, DeiT with distillation",
        (_PATCHES, r"embeddings\.distillation_token$"),
        rules=_VIT,
        left=(r"pooler\.dense\.",),
        beside=(_CLASSIFIER, (r"^cls_classifier\.(weight|bias)$", r"head.\1")),
        steps=(add_batch_axes, join_heads),
    ),
    Layout(
        "transformers, MAE",
        (_PATCHES, r"encoder\.layer\.0\.attention\."),
        signs_beside=(r"decoder\.decoder_embed\.",),
        rules=_VIT,
        beside=_MAE_DECODER,
        steps=(add_batch_axes, join_heads),
    ),
    Layout(
        "transformers, ViT, MSN and I-JEPA",
        (_PATCHES, r"encoder\.layer\.0\.attention\."),
        rules=_VIT,
        left=(r"pooler\.dense\.",),
        beside=(_CLASSIFIER,),
        steps=(add_batch_axes, join_heads),
        facts=PublishedFacts(heads={1408: 16}),
    ),
    Layout(
        "transformers, DINOv3 with gates",
        (r"embeddings\.patch_embeddings\.weight$", r"(model\.)?layer\.0\.mlp\.gate_proj\."),
        rules=(*_DINOV3, (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."), (r"\.mlp\.up_proj\.", ".mlp.fc1_x.")),
        steps=(add_batch_axes, join_heads_without_key_bias),
        facts=_DINOV3_FACTS,
    ),
    Layout(
        "transformers, DINOv3",
        (r"embeddings\.patch_embeddings\.weight$", r"(model\.)?layer\.0\.mlp\.up_proj\."),
        rules=(*_DINOV3, (r"\.mlp\.up_proj\.", ".mlp.fc1.")),
        steps=(add_batch_axes, join_heads_without_key_bias),
        facts=_DINOV3_FACTS,
    ),
    Layout(
        "transformers, CLIP",
        (r"embeddings\.patch_embedding\.weight$", r"pre_layrnorm\."),
        rules=_TOWER,
        steps=(add_batch_axes, join_heads),
        facts=PublishedFacts(norm_epsilon=1e-5, activation="quick_gelu", heads=CLIP_HEADS, inputs=CLIP_INPUTS),
    ),
    Layout(
        "transformers, SigLIP",
        (r"embeddings\.patch_embedding\.weight$", r"encoder\.layers\.0\.self_attn\."),
        rules=_TOWER,
        steps=(add_batch_axes, join_heads, split_pooling_heads, unflatten_patch_weights),
        facts=PublishedFacts(activation="gelu_tanh", heads={1152: 16, 1536: 16}, inputs=SIGLIP_INPUTS),
    ),
    Layout(
        "transformers, AIMv2",
        (r"embeddings\.patch_embed\.weight$", r"encoder\.layers\.0\.rms_norm1\."),
        rules=(
            (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
            (r"^embeddings\.patch_embed\.", "patch_embed.proj."),
            (r"^embeddings\.rms_norm\.", "patch_embed.norm."),
            (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
            (r"^rms_norm\.", "norm."),
            (r"\.rms_norm(\d)\.", r".norm\1."),
            (r"\.attention\.out_proj\.", ".attn.proj."),
            (r"\.attention\.", ".attn."),
            (r"\.ffn\.gate_proj\.", ".mlp.fc1_g."),
            (r"\.ffn\.up_proj\.", ".mlp.fc1_x."),
            (r"\.ffn\.down_proj\.", ".mlp.fc2."),
        ),
        left=(r"head\.",),
        steps=(add_batch_axes, join_heads),
        facts=AIMV2_FACTS,
    ),
    Layout(
        "transformers, Swin",
        (_PATCHES, r"encoder\.layers\.0\.blocks\.0\.attention\.self\."),
        rules=_SWIN,
        beside=((r"^classifier\.(weight|bias)$", r"head.fc.\1"), (r"^(decoder\.0\.\w+)$", r"\1")),
        steps=(join_heads,),
    ),
)
"""The layouts of transformers, in the order in which they are tried."""
