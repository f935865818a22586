"""The layouts of the image towers of CLIP, OpenCLIP and AIMv2 in their authors' files.

- openai/CLIP, ``clip/model.py``: a ``state_dict`` also has the numbers ``input_resolution`` and ``context_length``
- mlfoundations/open_clip, ``src/open_clip/transformer.py``; towers of timm's are below ``visual.trunk.``, with timm's
  names (:mod:`ehm.models.published.authors`)
- apple/ml-aim, ``aim-v2/aim/v2/torch/models.py`` and ``aim-v1/aim/v1/torch/layers.py``

The projection to the space of texts is left aside: it is no classifier.
"""

from __future__ import annotations

from ehm.models.published.facts import AIMV2_FACTS, CLIP_HEADS, CLIP_INPUTS, PublishedFacts
from ehm.models.published.layout import Layout
from ehm.models.published.reshaping import add_batch_axes

__all__ = ["TOWERS"]

_CLIP_SIGNS = (r"conv1\.weight$", r"class_embedding$", r"transformer\.resblocks\.0\.ln_1\.")
_CLIP_RULES = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.ls_(\d)\.", r".ls\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_CLIP_LEFT = (r"proj$", r"attn_pool\.")

TOWERS: tuple[Layout, ...] = (
    Layout(
        "openai/CLIP",
        _CLIP_SIGNS,
        signs_beside=(r"input_resolution$",),
        rules=_CLIP_RULES,
        left=_CLIP_LEFT,
        steps=(add_batch_axes,),
        facts=PublishedFacts(norm_epsilon=1e-5, activation="quick_gelu", inputs=CLIP_INPUTS),
    ),
    Layout(
        "mlfoundations/open_clip",
        _CLIP_SIGNS,
        rules=_CLIP_RULES,
        left=_CLIP_LEFT,
        steps=(add_batch_axes,),
        facts=PublishedFacts(
            norm_epsilon=1e-5,
            heads=CLIP_HEADS,
            inputs=CLIP_INPUTS,
            assumed="GELU, not OpenAI's approximation of it (model.form.mlp)",
        ),
    ),
    Layout(
        "apple/ml-aim, AIMv2",
        (r"preprocessor\.patchifier\.proj\.weight$", r"trunk\.blocks\.0\.norm_1\."),
        rules=(
            (r"^preprocessor\.patchifier\.", "patch_embed."),
            (r"^preprocessor\.pos_embed$", "pos_embed"),
            (r"^trunk\.post_trunk_norm\.", "norm."),
            (r"^trunk\.blocks\.", "blocks."),
            (r"\.norm_(\d)\.", r".norm\1."),
            (r"\.mlp\.fc1\.", ".mlp.fc1_g."),
            (r"\.mlp\.fc3\.", ".mlp.fc1_x."),
        ),
        left=(r"head\.",),
        steps=(add_batch_axes,),
        facts=AIMV2_FACTS,
    ),
)
"""The layouts of image towers, in the order in which they are tried."""
