"""The sizes of an encoder: inferred from the arrays of a bare file, asked for by settings, written into checkpoints.

A new family of encoders adds a file like ``shapes_swin.py`` and a line to :func:`infer_spec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ehm.config import ModelSource, encoder_spec
from ehm.config.encoders import FAMILIES, PLAIN, EncoderSpec, SwinSpec, VitForm, VitSpec
from ehm.errors import CheckpointError, ConfigError
from ehm.models.shapes_swin import FIRST_TABLE, infer_swin
from ehm.models.shapes_vit import infer_vit
from ehm.models.tables import check_tables
from ehm.models.weights import Pool
from ehm.storage.arrays import Arrays

__all__ = [
    "check_positions",
    "drop_unused_query",
    "infer_spec",
    "list_assumptions",
    "resize_spec",
    "spec_from_json",
    "spec_from_settings",
    "spec_to_json",
]

RGB_CHANNELS = 3


def infer_spec(arrays: Arrays, source: ModelSource) -> EncoderSpec:
    """Infer the spec of a ViT, a ViT with relative positions, or a Swin from the shapes of ``arrays``, timm's names.

    The tables of relative positions tell the number of heads, and a Swin's window; a ViT without tables has the heads
    of the published ViT of its width. The image has the size ``source.image_size`` if the positions fit it, and
    otherwise is square. A Swin's last stage is then one window, which changes no weight.
    Raises CheckpointError if the arrays are of no such encoder, or if ``source`` has to say what the shapes leave open.
    """
    if FIRST_TABLE in arrays:
        return infer_swin(arrays, source)
    return infer_vit(arrays, source)


def list_assumptions(spec: EncoderSpec, source: ModelSource) -> list[str]:
    """List what :func:`infer_spec` assumed in ``spec`` because neither shapes nor ``source`` tell it, with its keys."""
    assumptions = []
    if isinstance(spec, VitSpec) and not spec.relative and source.heads is None:
        assumptions.append(f"{spec.heads} heads as of the published ViT that is {spec.width} wide (model.heads)")
    if spec.image_size != source.image_size:
        assumptions.append(f"images of {spec.image_size[0]} x {spec.image_size[1]} pixels (model.image_size)")
    return assumptions


def check_positions(arrays: Arrays, spec: EncoderSpec, origin: str) -> None:
    """Raise CheckpointError, which begins with ``origin``, if positions in ``arrays`` are not those of ``spec``.

    All other shapes are compared when the arrays are copied; positions may be resampled before.
    """
    # the spec is the file's own: a difference is damage, and no other size that somebody asked for
    positions = arrays.get("pos_embed")
    prefix = spec.form.position_tokens if isinstance(spec, VitSpec) else 0
    if positions is not None and positions.shape[1:2] != (prefix + spec.patches,):
        down, across = spec.grid
        raise CheckpointError(
            f"{origin}: pos_embed is {positions.shape}, and the file says that it has {down} x {across} patches; "
            "it was altered or damaged"
        )
    check_tables(arrays, spec, origin)


def drop_unused_query(spec: EncoderSpec, pool: Pool) -> EncoderSpec:
    """Return ``spec`` without its learned query, unless ``pool`` uses it: other networks are built without one."""
    if pool == "map" or not isinstance(spec, VitSpec) or not spec.form.attention_pool:
        return spec
    return replace(spec, form=spec.form.model_copy(update={"attention_pool": False}))


def spec_from_settings(source: ModelSource, channels: int = 3) -> EncoderSpec:
    """Return the spec of an untrained encoder as ``source`` names it, for images of ``channels``.

    Raises ConfigError if its sizes do not fit together.
    """
    try:
        size = source.image_size or (224, 224)
        return encoder_spec(source.encoder, size, source.patch_size, source, channels=channels)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def resize_spec(spec: EncoderSpec, source: ModelSource) -> EncoderSpec:
    """Return ``spec`` at the image size that ``source`` asks for.

    A Swin's window is ``source.window``; if that is left open it stays at its own image size, and elsewhere is the
    shorter side of the last stage, as if a configuration says nothing. Raises CheckpointError if ``source`` says other
    things about the width, depth or heads, ConfigError if the image size does not fit.
    """
    depth: int | tuple[int, ...]
    if isinstance(spec, SwinSpec):
        depth = spec.depths
        divisor = "stride"
    else:
        depth = spec.depth
        divisor = "patch size"
    for key, found in {"width": spec.width, "depth": depth, "heads": spec.heads}.items():
        wanted = getattr(source, key)
        if wanted is not None and wanted != found:
            raise CheckpointError(f"model.{key} {wanted}: the weights in {source.init} have {key} {found}")
    size = source.image_size or spec.image_size
    if size[0] % spec.stride or size[1] % spec.stride:
        raise ConfigError(f"model.image_size {list(size)}: not a multiple of the weights' {divisor} {spec.stride}")
    resized = replace(spec, image_size=size)
    if not isinstance(resized, SwinSpec):
        if source.window is not None:
            raise ConfigError(f"model.window {source.window}: the weights in {source.init} have no windows")
        return resized
    window = source.window
    if window is None:
        # windows as wide as the last stage, as at the size that the weights were trained at
        window = spec.window if resized == spec else min(resized.grid)
    return replace(resized, window=window)


def spec_to_json(spec: EncoderSpec) -> dict[str, Any]:
    """Return ``spec`` as plain JSON, from which :func:`spec_from_json` rebuilds it."""
    values: dict[str, Any] = {"family": spec.family}
    for field in fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, VitForm):
            # left out if nothing differs, so that older versions read plain ViTs
            if value != PLAIN:
                values[field.name] = value.model_dump(mode="json", exclude_defaults=True)
        elif field.name != "channels" or value != RGB_CHANNELS:  # left out likewise
            # as JSON gives it back, so that what is read equals what was written
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def spec_from_json(encoder: Mapping[str, Any]) -> EncoderSpec:
    """Rebuild a spec from what :func:`spec_to_json` gave, in this version or an older one.

    Raises KeyError, TypeError or ValueError if this version has no such encoder.
    """
    values: dict[str, Any] = {}
    for key, value in encoder.items():
        # specs compare and hash by their values, which lists do not
        values[key] = tuple(value) if isinstance(value, list) else value
    if "form" in values:
        values["form"] = VitForm.model_validate(values["form"])
    return FAMILIES[values.pop("family")](**values)
