"""The layouts of authors' files whose blocks have timm's names, or nearly: most ViTs go back to timm's code.

The order matters: the first layout whose signs are there is taken, so that special ones stand before general ones.

- facebookresearch/dinov3, ``dinov3/models/vision_transformer.py`` and ``dinov3/hub/backbones.py``
- baaivision/EVA, ``EVA-02/asuka/modeling_finetune.py``, ``modeling_pretrain.py`` and ``rope.py``
- facebookresearch/dinov2, ``dinov2/models/vision_transformer.py``; bytedance/ibot, ``models/vision_transformer.py``
- microsoft/unilm, ``beit/modeling_pretrain.py`` and ``beit2/modeling_pretrain.py``
- microsoft/SimMIM, ``models/simmim.py``
- Haoqing-Wang/LocalMIM, ``models_mim.py``: the encoder has a norm for each of four depths, the last for its output
- lxtGH/CAE and Atten4Vis/CAE, ``models/modeling_cae.py``; Jiahao000/MFM, ``models/vision_transformer.py``
- facebookresearch/moco-v3, ``moco/builder.py`` and ``vits.py``; facebookresearch/msn, ``src/deit.py``
- facebookresearch/ijepa, ``src/helper.py`` and ``src/models/vision_transformer.py``
- facebookresearch/deit, ``models.py`` and ``models_v2.py``
- microsoft/Swin-Transformer, ``models/swin_transformer.py``

facebookresearch/mae, facebookresearch/dino, ucasligang/SemMAE and gkakogeorgiou/attmask have timm's names.
"""

from __future__ import annotations

from dataclasses import replace

from ehm.config.encoders import DINOV3_ROTARY, EVA_ROTARY
from ehm.models.published.facts import (
    AIMV2_FACTS,
    CENTRED,
    CLIP_HEADS,
    CLIP_INPUTS,
    SIGLIP_INPUTS,
    WHOLE_CROP,
    PublishedFacts,
)
from ehm.models.published.layout import Layout
from ehm.models.published.reshaping import (
    add_batch_axes,
    drop_key_bias,
    fold_class_position,
    join_query_value_biases,
    move_biases_to_heads,
)
from ehm.models.shapes_vit import has_packed_gate

__all__ = ["AUTHORS", "PLAIN_NAMES", "UNNAMED"]

_PATCHES = r"patch_embed\.proj\.weight"
_TABLE = r".*relative_position_bias_table$"
_CHUNKS = (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.")
"""DINOv2 and DINOv3 keep blocks in chunks for training on many devices, and number them through."""
_LAYER_SCALE = (r"\.gamma_(\d)$", r".ls\1.gamma")
"""From the factors of BEiT's blocks to those of timm's ViT."""
_SIMMIM_HEAD = (r"^decoder\.0\.(weight|bias)$", r"decoder.0.\1")
_DINOV3 = PublishedFacts(
    norm_epsilon=1e-5, rotary=DINOV3_ROTARY, heads={1152: 18, 1280: 20, 1536: 24, 4096: 32}, inputs=WHOLE_CROP
)
_TIMM_DINOV3 = replace(_DINOV3, assumed="rotary positions as those of DINOv3 (model.form.rotary)")
_EVA02 = PublishedFacts(rotary=EVA_ROTARY, inputs=CLIP_INPUTS)
# timm computes its rotary positions, and its files have no trace of them
_TIMM_EVA02 = replace(_EVA02, assumed="rotary positions as those of EVA-02 (model.form.rotary)")
_DINOV2 = PublishedFacts(heads={1536: 24}, inputs=WHOLE_CROP)
_SMALL_WITH_TWELVE_HEADS = {384: 12}
"""Heads of MoCo v3's and CAE's ViT-S, whose heads are 32 features wide."""
_CLIP = PublishedFacts(
    norm_epsilon=1e-5,
    heads=CLIP_HEADS,
    inputs=CLIP_INPUTS,
    assumed="GELU, not OpenAI's approximation of it (model.form.mlp)",
)
_SIGLIP = PublishedFacts(
    activation="gelu_tanh",
    heads={1152: 16, 1536: 16},
    inputs=SIGLIP_INPUTS,
    assumed="GELU as it was trained with, approximated by tanh (model.form.mlp)",
)

UNNAMED = "timm"
"""The family of names that tell none: timm's."""
PLAIN_NAMES = Layout(UNNAMED, (_PATCHES,), facts=PublishedFacts(heads={1408: 16, 1536: 24}))
"""The layout of files whose names are timm's and tell no family."""

AUTHORS: tuple[Layout, ...] = (
    Layout(
        "facebookresearch/dinov3",
        (_PATCHES, r"storage_tokens$"),
        rules=(
            _CHUNKS,
            (r"^storage_tokens$", "reg_token"),
            (r"\.ls(\d)\.gamma$", r".gamma_\1"),
            (r"\.mlp\.w1\.", ".mlp.fc1_g."),
            (r"\.mlp\.w2\.", ".mlp.fc1_x."),
            (r"\.mlp\.w3\.", ".mlp.fc2."),
        ),
        left=(r"local_cls_norm\.",),  # for small crops in training alone
        steps=(add_batch_axes, drop_key_bias),
        facts=_DINOV3,
    ),
    Layout(
        "baaivision/EVA-02",
        (_PATCHES, r"blocks\.0\.mlp\.(w1|w12)\.", r"(pos_embed|blocks\.0\.attn\.q_bias)$"),
        absent=(r"blocks\.0\.ls1\.",),
        rules=(
            (r"\.attn\.inner_attn_ln\.", ".attn.norm."),
            (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
            (r"\.mlp\.w12\.", ".mlp.fc1."),
            (r"\.mlp\.w1\.", ".mlp.fc1_g."),
            (r"\.mlp\.w2\.", ".mlp.fc1_x."),
            (r"\.mlp\.w3\.", ".mlp.fc2."),
        ),
        steps=(move_biases_to_heads,),
        facts=_EVA02,
    ),
    Layout(
        "facebookresearch/dinov2 with registers",
        (_PATCHES, r"register_tokens$"),
        rules=(
            _CHUNKS,
            (r"^register_tokens$", "reg_token"),
            (r"\.mlp\.w12\.", ".mlp.fc1."),
            (r"\.mlp\.w3\.", ".mlp.fc2."),
        ),
        steps=(add_batch_axes, fold_class_position),
        facts=_DINOV2,
    ),
    Layout(
        "facebookresearch/dinov2",
        (_PATCHES, r"blocks\.(\d+\.)?0\.ls1\.gamma$", r"mask_token$"),
        rules=(_CHUNKS, (r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")),
        steps=(add_batch_axes,),
        facts=_DINOV2,
    ),
    Layout(
        "bytedance/ibot, the student",
        (_PATCHES, r"masked_embed$"),
        rules=((r"^masked_embed$", "mask_token"),),
        steps=(add_batch_axes,),
    ),
    # of the second version of BEiT, pretrained with ImageNet's mean; a head on two more blocks sees the class token
    Layout("microsoft/unilm, BEiT v2", (_PATCHES, r"cls_pt_layers\."), left=(r"cls_pt_layers\.",)),
    Layout(
        "microsoft/unilm, BEiT",
        (_PATCHES, r"lm_head\.weight$", _TABLE),
        facts=PublishedFacts(inputs=CENTRED),
    ),
    Layout("microsoft/SimMIM", (_PATCHES, r"blocks\.0\.", _TABLE), beside=(_SIMMIM_HEAD,)),
    Layout(
        "Haoqing-Wang/LocalMIM",
        (_PATCHES, r"norm\.3\.weight$"),
        rules=((r"^norm\.3\.", "norm."),),
        left=(r"norm\.[012]\.", r"decoder\.\d+\.", r"hog_enc\."),
    ),
    Layout(
        "lxtGH/CAE",
        (_PATCHES, r"blocks\.0\.attn\.q_bias$", r"pos_embed$"),
        signs_beside=(r"pretext_neck\.",),
        rules=(_LAYER_SCALE,),
        steps=(join_query_value_biases,),
        facts=PublishedFacts(heads=_SMALL_WITH_TWELVE_HEADS),
    ),
    # timm's EVA-02, in a file: its smaller networks differ from EVA's in the packed gate alone
    Layout(
        "timm, EVA-02",
        (_PATCHES, r"blocks\.0\.attn\.q_bias$", r"pos_embed$"),
        absent=(_TABLE,),
        fits=has_packed_gate,
        facts=_TIMM_EVA02,
    ),
    Layout(
        "timm, EVA-02",
        (_PATCHES, r"blocks\.0\.attn\.q_proj\.weight$", r"blocks\.0\.mlp\.fc1_g\.bias$"),
        facts=_TIMM_EVA02,
    ),
    Layout(
        "a ViT with BEiT's blocks, as of Jiahao000/MFM and EVA",
        (_PATCHES, r"blocks\.0\.attn\.q_bias$", r"pos_embed$"),
        absent=(_TABLE,),
        rules=(_LAYER_SCALE,),
        beside=(_SIMMIM_HEAD,),
        steps=(join_query_value_biases,),
        facts=PublishedFacts(heads={1408: 16}),
    ),
    Layout(
        "facebookresearch/moco-v3",
        (_PATCHES, r"blocks\.0\.attn\.qkv\."),
        signs_beside=(r"momentum_encoder\.",),
        left=(r"head\.\d",),
        facts=PublishedFacts(heads=_SMALL_WITH_TWELVE_HEADS),
    ),
    Layout("facebookresearch/msn", (_PATCHES, r"fc\.fc1\."), left=(r"fc\.", r"pred\.")),
    Layout(
        "facebookresearch/deit, distilled",
        (_PATCHES, r"dist_token$"),
        rules=((r"^dist_token$", "reg_token"),),
        left=(r"head_dist\.",),
    ),
    Layout(
        "facebookresearch/deit, DeiT III",
        (_PATCHES, r"blocks\.0\.gamma_1$", r"pos_embed$", r"blocks\.0\.attn\.qkv\.bias$"),
        rules=(_LAYER_SCALE,),
    ),
    Layout("timm, DINOv3", (_PATCHES, r"blocks\.0\.gamma_1$"), absent=(r"pos_embed$", _TABLE), facts=_TIMM_DINOV3),
    Layout("timm, CLIP", (_PATCHES, r"norm_pre\."), facts=_CLIP),
    Layout("timm, SigLIP", (_PATCHES, r"attn_pool\.latent$"), facts=_SIGLIP),
    Layout(
        "timm, AIMv2",
        (_PATCHES, r"patch_embed\.norm\.weight$"),
        absent=(r"patch_embed\.norm\.bias$",),
        facts=AIMV2_FACTS,
    ),
    Layout(
        "facebookresearch/ijepa",
        (_PATCHES, r"blocks\.0\.attn\.qkv\.bias$", r"pos_embed$"),
        absent=(r"cls_token$",),
        facts=PublishedFacts(heads={1408: 16}),
    ),
    Layout(
        "microsoft/Swin-Transformer",
        (_PATCHES, r"layers\.0\.downsample\."),
        rules=(
            # a stage ends with the layer that merges its tokens, which begins the next one in timm
            *((rf"^layers\.{stage}\.downsample\.", f"layers.{stage + 1}.downsample.") for stage in (2, 1, 0)),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ),
        beside=(_SIMMIM_HEAD,),
    ),
    Layout("microsoft/unilm, BEiT", (_PATCHES, r"lm_head\.weight$"), facts=PublishedFacts(inputs=CENTRED)),
)
"""The layouts with timm's blocks, in the order in which they are tried."""
