"""The names and shapes of an encoder's parameters, as timm gives them, for the encoders that ehm writes as graphs."""

from __future__ import annotations

from collections.abc import Mapping

from ehm.config.encoders import EncoderSpec, SwinSpec, VitForm, VitSpec
from ehm.models.tables import CLASS_TOKEN_ROWS, TABLE
from ehm.models.weights import Pool

__all__ = ["list_classifier_shapes", "list_encoder_shapes"]

Shape = tuple[int, ...]


def list_encoder_shapes(spec: EncoderSpec, last_norm: str, pool: Pool = "avg") -> dict[str, Shape]:
    """Return the shapes of the parameters of an encoder whose last norm has a name; it has no classifier.

    With ``pool`` map, those of the query that pools are among them.
    """
    if isinstance(spec, SwinSpec):
        return _list_swin_shapes(spec)
    shapes = _list_vit_shapes(spec) | _add_norm(last_norm, spec.width, spec.form)
    if pool == "map":
        shapes |= _list_query_shapes(spec)
    return shapes


def list_classifier_shapes(name: str, classes: int, width: int, is_probe: bool) -> dict[str, Shape]:
    """Return the shapes of a linear classifier, with a batch norm before it if it is a probe."""
    if is_probe:
        # the batch norm of a linear probe has no weights of its own
        norm: dict[str, Shape] = {f"{name}.0.running_mean": (width,), f"{name}.0.running_var": (width,)}
        return norm | _add_layers({f"{name}.1": (classes, width)})
    return _add_layers({name: (classes, width)})


def _list_vit_shapes(spec: VitSpec) -> dict[str, Shape]:
    """Return the shapes of a ViT's parameters but for the last norm and what follows it."""
    form = spec.form
    width = spec.width
    shapes: dict[str, Shape] = {}
    if form.class_token:
        shapes["cls_token"] = (1, 1, width)
    if form.registers:
        shapes["reg_token"] = (1, form.registers, width)
    if form.added_positions and not spec.relative:
        shapes["pos_embed"] = (1, form.position_tokens + spec.patches, width)
    # a norm before the first block stands in the place of a bias
    patches: dict[str, Shape] = {"patch_embed.proj": (width, spec.channels, spec.patch_size, spec.patch_size)}
    shapes |= _add_layers(patches, has_biases=not form.norm_before)
    if form.norm_patches:
        shapes |= _add_norm("patch_embed.norm", width, form)
    if form.norm_before:
        shapes |= _add_norm("norm_pre", width, form)
    for index in range(spec.depth):
        block = f"blocks.{index}"
        shapes |= _add_norm(f"{block}.norm1", width, form) | _add_norm(f"{block}.norm2", width, form)
        shapes |= _list_attention_shapes(spec, f"{block}.attn") | _list_mlp_shapes(spec, f"{block}.mlp")
        shapes |= _list_factor_shapes(spec, block)
    return shapes


def _list_attention_shapes(spec: VitSpec, name: str) -> dict[str, Shape]:
    """Return the shapes of the parameters of a ViT's attention."""
    form = spec.form
    width = spec.width
    keys_have_bias = form.rotary.kind is None and not spec.relative
    shapes: dict[str, Shape] = {}
    if form.separate_heads:
        shapes |= _add_layers({f"{name}.q_proj": (width, width), f"{name}.v_proj": (width, width)}, form.bias)
        shapes |= _add_layers({f"{name}.k_proj": (width, width)}, form.bias and keys_have_bias)
    else:
        shapes |= _add_layers({f"{name}.qkv": (3 * width, width)}, form.bias and keys_have_bias)
        if form.bias and not keys_have_bias:
            shapes |= {f"{name}.q_bias": (width,), f"{name}.v_bias": (width,)}
    if spec.relative:
        shapes[f"{name}.{TABLE}"] = (_count_rows(spec.grid) + CLASS_TOKEN_ROWS, spec.heads)
    if form.norm_queries:
        head_width = width // spec.heads
        shapes |= _add_norm(f"{name}.q_norm", head_width, form) | _add_norm(f"{name}.k_norm", head_width, form)
    if form.norm_values:
        shapes |= _add_norm(f"{name}.norm", width, form)
    return shapes | _add_layers({f"{name}.proj": (width, width)}, form.output_bias)


def _list_mlp_shapes(spec: VitSpec, name: str) -> dict[str, Shape]:
    """Return the shapes of the parameters of a ViT's MLP."""
    form = spec.form
    width = spec.width
    hidden = spec.hidden_features
    first: dict[str, Shape] = {f"{name}.fc1": (hidden, width)}
    if form.mlp == "swiglu":
        first = {f"{name}.fc1_g": (hidden, width), f"{name}.fc1_x": (hidden, width)}
    elif form.mlp == "swiglu_packed":
        first = {f"{name}.fc1": (2 * hidden, width)}
    shapes = _add_layers({**first, f"{name}.fc2": (width, hidden)}, form.output_bias)
    if form.norm_mlp:
        shapes |= _add_norm(f"{name}.norm", hidden, form)
    return shapes


def _list_factor_shapes(spec: VitSpec, block: str) -> dict[str, Shape]:
    """Return the shapes of the factors of both branches of a block, which have other names in each class of timm's."""
    if not (spec.form.layer_scale or spec.relative):
        return {}
    names = ("ls1.gamma", "ls2.gamma")
    if spec.form.rotary.kind is not None or spec.relative:
        names = ("gamma_1", "gamma_2")
    return {f"{block}.{name}": (spec.width,) for name in names}


def _list_query_shapes(spec: VitSpec) -> dict[str, Shape]:
    """Return the shapes of the parameters of the learned query that pools tokens, and of the MLP after it."""
    width = spec.width
    name = "attn_pool"
    layers: dict[str, Shape] = {
        f"{name}.q": (width, width),
        f"{name}.kv": (2 * width, width),
        f"{name}.proj": (width, width),
        f"{name}.mlp.fc1": (spec.hidden_features, width),
        f"{name}.mlp.fc2": (width, spec.hidden_features),
    }
    return {f"{name}.latent": (1, 1, width), **_add_layers(layers), **_add_norm(f"{name}.norm", width, spec.form)}


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
            shapes |= _list_swin_block_shapes(block, width, int(width * spec.mlp_ratio))
            shapes[f"{block}.attn.{TABLE}"] = (_count_rows(spec.windows[stage]), spec.heads[stage])
    return shapes | _add_norm("norm", spec.features)


def _list_swin_block_shapes(block: str, width: int, hidden: int) -> dict[str, Shape]:
    layers: dict[str, Shape] = {
        "norm1": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "norm2": (width,),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }
    return _add_layers({f"{block}.{name}": shape for name, shape in layers.items()})


def _add_norm(name: str, width: int, form: VitForm | None = None) -> dict[str, Shape]:
    """Return the shapes of a norm's parameters: that of the kind of ``form``, or a layer norm."""
    return _add_layers({name: (width,)}, has_biases=form is None or form.norm == "layer")


def _add_layers(layers: Mapping[str, Shape], has_biases: bool = True) -> dict[str, Shape]:
    """Return the shapes of the weights of layers, and of their biases, one for each row."""
    shapes = {}
    for name, shape in layers.items():
        shapes[f"{name}.weight"] = shape
        if has_biases:
            shapes[f"{name}.bias"] = shape[:1]
    return shapes


def _count_rows(grid: tuple[int, int]) -> int:
    """Return the number of differences of position among the tokens of a ``grid``."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)
