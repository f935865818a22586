"""``config.json`` of a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads.

Arguments in JSON are numbers, names and lists, but the epsilon of a norm and a gated MLP are neither: they come from
the defaults of a registered architecture, and everything else is said as ``model_args``
(``timm/models/_hub.py``, ``save_config_for_hf``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ehm.config.encoders import SwinSpec, VitForm, VitSpec
from ehm.models.handover.refusal import NoSuchEncoderError
from ehm.models.timm_arguments import TimmClass, describe_swin, describe_vit, describe_vit_sizes, name_vit_class
from ehm.models.weights import Weights

__all__ = ["TimmConfig", "describe_timm_folder"]

_PLAIN_VIT = "vit_base_patch16_224"
"""timm's ViT that has nothing but the defaults of its class."""
_VITS = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 1024: "vit_large_patch16_224"}
"""The same in other widths, so that people find a name that they know."""
_SWINS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2)): "swin_small_patch4_window7_224",
    (192, (2, 2, 18, 2)): "swin_large_patch4_window7_224",
}
_BASE_SWIN = "swin_base_patch4_window7_224"
_FIRST_CONVOLUTION = "patch_embed.proj"


@dataclass(frozen=True)
class _Base:
    """A registered architecture: timm's class, and what its defaults have that no argument in JSON can say."""

    architecture: str
    timm_class: TimmClass
    norm: str = "layer"
    norm_epsilon: float = 1e-6
    gate: str = ""
    norms_patches: bool = False
    scales_layers: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that every ViT needs which is told from this one."""

    def fits(self, spec: VitSpec) -> bool:
        """Tell whether a ViT of ``spec`` differs from this one by arguments and the epsilon of norms alone."""
        form = spec.form
        gate = ""
        if self.timm_class == "VisionTransformer" and form.mlp.startswith("swiglu"):
            gate = form.mlp
        return (
            name_vit_class(spec) == self.timm_class
            and form.norm == self.norm
            and gate == self.gate
            and (self.norms_patches or not form.norm_patches)
            # timm's Eva has layer scale for every number, so that only a null switches it off
            and (form.layer_scale or not self.scales_layers or self.timm_class != "Eva")
        )


_BASES = (
    _Base(_PLAIN_VIT, "VisionTransformer"),
    _Base(_PLAIN_VIT, "VisionTransformer", norm="rms", arguments={"norm_layer": "rmsnorm"}),
    _Base("vit_base_patch16_clip_224", "VisionTransformer", norm_epsilon=1e-5),
    _Base("vit_giant_patch14_dinov2", "VisionTransformer", gate="swiglu_packed", scales_layers=True),
    _Base(
        "aimv2_large_patch14_224",
        "VisionTransformer",
        norm="rms",
        norm_epsilon=1e-5,
        gate="swiglu",
        norms_patches=True,
    ),
    _Base("beit_base_patch16_224", "Beit"),
    _Base("eva_giant_patch14_224", "Eva"),
    _Base("vit_base_patch16_dinov3", "Eva", norm_epsilon=1e-5, scales_layers=True),
)
"""Architectures that the forms of our ViTs are told from."""


@dataclass(frozen=True)
class TimmConfig:
    """The content of ``config.json``, and notes on what timm computes otherwise."""

    values: dict[str, Any]
    notes: tuple[str, ...] = ()


def describe_timm_folder(weights: Weights) -> TimmConfig:
    """Describe the encoder in ``weights``, and its classifier if there are labels, for timm.

    Raises NoSuchEncoderError if timm has no architecture from which JSON leads to this encoder.
    """
    spec = weights.spec
    if spec is None:
        return TimmConfig(_describe_network(weights))
    arguments: dict[str, Any]
    notes: tuple[str, ...] = ()
    pool = "avg"
    if isinstance(spec, SwinSpec):
        architecture = _SWINS.get((spec.width, spec.depths), _BASE_SWIN)
        arguments = describe_swin(spec)
    else:
        base = _choose_base(spec)
        architecture = base.architecture
        if architecture == _PLAIN_VIT:
            architecture = _VITS.get(spec.width, _PLAIN_VIT)
        pool = weights.provenance.pool
        arguments = {**_list_vit_arguments(weights, spec, base), "global_pool": pool}
        notes = _compare_epsilons(spec.form, base)
    values = {
        **_describe_classes(architecture, weights),
        "num_features": spec.features,
        "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": {
            **_describe_inputs(weights, spec.image_size),
            "fixed_input_size": True,
            "first_conv": _FIRST_CONVOLUTION,
            "classifier": spec.classifier,
        },
    }
    return TimmConfig(values, notes)


def _describe_network(weights: Weights) -> dict[str, Any]:
    """Describe a network of timm's, which its name tells; what is published with it was noted as it was made."""
    assert weights.timm is not None
    assert weights.image_size is not None
    assert weights.checkpoint is not None
    # checkpoints of older versions do not have these
    published = weights.checkpoint.metadata["encoder"].get("pretrained_cfg", {})
    return {
        **_describe_classes(weights.timm.partition(".")[0], weights),
        "pretrained_cfg": {**_describe_inputs(weights, weights.image_size), **published},
    }


def _describe_classes(architecture: str, weights: Weights) -> dict[str, Any]:
    """Return the architecture, and the classes that its network tells apart."""
    labels = weights.provenance.labels
    described: dict[str, Any] = {"architecture": architecture, "num_classes": len(labels)}
    if labels:
        described["label_names"] = list(labels)
    return described


def _describe_inputs(weights: Weights, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return what ``pretrained_cfg`` says of images, as ``timm.data.resolve_data_config`` reads it."""
    inputs = weights.provenance.inputs
    return {
        "tag": "ehm",
        "custom_load": False,
        "input_size": [inputs.pixels.count, *image_size],
        "interpolation": inputs.interpolation,
        "crop_pct": inputs.choose_crop_share(image_size),
        "crop_mode": inputs.crop_mode,
        "mean": list(inputs.mean),
        "std": list(inputs.std),
        "num_classes": len(weights.provenance.labels),
        "pool_size": None,
    }


def _choose_base(spec: VitSpec) -> _Base:
    """Return the architecture that is nearest to ``spec`` in the epsilon of its norms, of those that fit it."""
    candidates = [base for base in _BASES if base.fits(spec)]
    if not candidates:
        raise NoSuchEncoderError(f"its config.json cannot describe a ViT with {spec.form.differences}")
    return min(candidates, key=lambda base: abs(base.norm_epsilon - spec.form.norm_epsilon))


def _compare_epsilons(form: VitForm, base: _Base) -> tuple[str, ...]:
    if form.norm_epsilon == base.norm_epsilon:
        return ()
    return (
        f"timm computes norms with epsilon {base.norm_epsilon:g}, not {form.norm_epsilon:g}, which its config.json "
        "cannot say",
    )


def _list_vit_arguments(weights: Weights, spec: VitSpec, base: _Base) -> dict[str, Any]:
    """Return ``model_args`` of a ViT that is told from ``base``: its sizes, its form and the place of its last norm."""
    arrays = weights.arrays
    if "norm.weight" not in arrays and "fc_norm.weight" not in arrays:
        raise NoSuchEncoderError("the encoder has no last norm")
    arguments = {**describe_vit_sizes(spec), **describe_vit(spec, "fc_norm.weight" in arrays), **base.arguments}
    # timm leaves out a null, and would keep what its architecture has
    if base.norms_patches and not spec.form.norm_patches:
        arguments["embed_norm_layer"] = ""
    if base.scales_layers and not spec.form.layer_scale:
        arguments["init_values"] = 0.0
    return {name: value for name, value in arguments.items() if value is not None}
