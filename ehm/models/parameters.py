"""The names and shapes of an encoder's parameters, as timm gives them, for the encoders that ehm writes as graphs."""

from __future__ import annotations

from collections.abc import Mapping

from ehm.config.encoders import EncoderSpec, SwinSpec, VitSpec
from ehm.models.tables import CLASS_TOKEN_ROWS, TABLE

__all__ = ["list_classifier_shapes", "list_encoder_shapes"]

Shape = tuple[int, ...]


def list_encoder_shapes(spec: EncoderSpec, last_norm: str) -> dict[str, Shape]:
    """Return the shapes of the parameters of an encoder whose last norm has a name; it has no classifier."""
    if isinstance(spec, SwinSpec):
        return _list_swin_shapes(spec)
    return {**_list_vit_shapes(spec), **_add_norm(last_norm, spec.width)}


def list_classifier_shapes(name: str, classes: int, width: int, is_probe: bool) -> dict[str, Shape]:
    """Return the shapes of a linear classifier, with a batch norm before it if it is a probe."""
    if is_probe:
        # the batch norm of a linear probe has no weights of its own
        norm: dict[str, Shape] = {f"{name}.0.running_mean": (width,), f"{name}.0.running_var": (width,)}
        return norm | _add_layers({f"{name}.1": (classes, width)})
    return _add_layers({name: (classes, width)})


def _list_vit_shapes(spec: VitSpec) -> dict[str, Shape]:
    """Return the shapes of a plain ViT's parameters, or of one in the relative form, but for the last norm."""
    width = spec.width
    shapes: dict[str, Shape] = {"cls_token": (1, 1, width)}
    if not spec.relative:
        shapes["pos_embed"] = (1, 1 + spec.patches, width)
    shapes |= _add_layers({"patch_embed.proj": (width, spec.channels, spec.patch_size, spec.patch_size)})
    for index in range(spec.depth):
        block = f"blocks.{index}"
        shapes |= _list_block_shapes(block, width, spec.hidden_features)
        if spec.relative:
            del shapes[f"{block}.attn.qkv.bias"]  # keys have none, and the other two have names of their own
            shapes |= {f"{block}.attn.{name}": (width,) for name in ("q_bias", "v_bias")}
            shapes |= {f"{block}.{name}": (width,) for name in ("gamma_1", "gamma_2")}
            shapes[f"{block}.attn.{TABLE}"] = (_count_rows(spec.grid) + CLASS_TOKEN_ROWS, spec.heads)
    return shapes


def _list_swin_shapes(spec: SwinSpec) -> dict[str, Shape]:
    """Return the shapes of a Swin's parameters."""
    shapes = _add_layers({"patch_embed.proj": (spec.width, spec.channels, spec.patch_size, spec.patch_size)})
    shapes |= _add_norm("patch_embed.norm", spec.width)
    for stage, depth in enumerate(spec.depths):
        width = spec.width << stage
        if stage:
            downsample = f"layers.{stage}.downsample"
            shapes |= _add_norm(f"{downsample}.norm", 2 * width)
            shapes[f"{downsample}.reduction.weight"] = (width, 2 * width)
        for index in range(depth):
            block = f"layers.{stage}.blocks.{index}"
            shapes |= _list_block_shapes(block, width, int(width * spec.mlp_ratio))
            shapes[f"{block}.attn.{TABLE}"] = (_count_rows(spec.windows[stage]), spec.heads[stage])
    return shapes | _add_norm("norm", spec.features)


def _list_block_shapes(block: str, width: int, hidden: int) -> dict[str, Shape]:
    """Return the shapes of the parameters that the blocks of all encoders have."""
    layers: dict[str, Shape] = {
        "norm1": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "norm2": (width,),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }
    return _add_layers({f"{block}.{name}": shape for name, shape in layers.items()})


def _add_norm(name: str, width: int) -> dict[str, Shape]:
    return _add_layers({name: (width,)})


def _add_layers(layers: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes of the weights of layers, and of their biases, one for each row."""
    shapes = {}
    for name, shape in layers.items():
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]
    return shapes


def _count_rows(grid: tuple[int, int]) -> int:
    """Return the number of differences of position among the tokens of a ``grid``."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)
