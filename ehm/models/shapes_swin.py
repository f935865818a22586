"""The sizes of a Swin from the shapes of its arrays under timm's names."""

from __future__ import annotations

from dataclasses import replace

from ehm.config import ModelSource
from ehm.config.encoders import SwinSpec
from ehm.errors import CheckpointError
from ehm.models.shapes_vit import count_parts, read_patches, refuse_other_positions, require_names
from ehm.models.tables import TABLE, check_tables, infer_image_size, infer_side
from ehm.storage.arrays import Arrays

__all__ = ["FIRST_TABLE", "infer_swin"]

FIRST_TABLE = f"layers.0.blocks.0.attn.{TABLE}"
"""Name that every Swin has, and no other encoder that ehm builds."""
_NAMES = ("patch_embed.proj.weight", "layers.0.blocks.0.mlp.fc1.weight")


def infer_swin(arrays: Arrays, source: ModelSource) -> SwinSpec:
    """Infer the spec of a Swin; raises as :func:`ehm.models.shapes.infer_spec` does."""
    require_names(arrays, _NAMES, source)
    refuse_other_positions(arrays, FIRST_TABLE, source)
    width, patch_size, channels = read_patches(arrays, source)
    stages = range(count_parts(arrays, r"layers\.(\d+)\."))
    depths = []
    heads = []
    for stage in stages:
        depths.append(count_parts(arrays, rf"layers\.{stage}\.blocks\.(\d+)\."))
        table = f"layers.{stage}.blocks.0.attn.{TABLE}"
        if table not in arrays:
            raise CheckpointError(f"{source.init}: not a Swin with timm's names: {table} missing")
        heads.append(arrays[table].shape[1])  # a column for each head
    window = infer_side(len(arrays[FIRST_TABLE]))
    if window is None:
        raise CheckpointError(f"{source.init}: its windows are not square, and only square ones load from a bare file")
    mlp_ratio = arrays["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / width  # a row for each hidden feature
    # the stride follows from the stages, and the image size from the stride and the table of the last stage
    spec = SwinSpec((0, 0), patch_size, width, tuple(depths), tuple(heads), window, mlp_ratio, channels)
    spec = replace(spec, image_size=infer_image_size(table, len(arrays[table]), spec.stride, source))
    check_tables(arrays, spec, source.init)
    return spec
