"""The form of a ViT: everything but its sizes in which published ViTs differ from each other.

The fields have the values of the plain ViT (Dosovitskiy et al., 2021) if nothing else is said.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ehm.config.section import Section

__all__ = ["DINOV3_ROTARY", "EVA_ROTARY", "PLAIN", "Rotary", "VitForm"]


class Rotary(Section):
    """Rotary positions: pairs of features of queries and keys are turned by angles that grow with the position.

    In both kinds one half of the pairs turns with the row and the other with the column. ``eva`` has the frequencies of
    language models, of positions counted in patches (EVA-02). ``dinov3`` has periods of positions between -1 and 1.
    """

    kind: Literal["eva", "dinov3"] | None = Field(
        None, description="Whose angles: those of EVA-02, or of DINOv3; null for no rotary positions."
    )
    temperature: float = Field(100.0, gt=1, description="Base of the frequencies: 10000 in EVA-02, 100 in DINOv3.")
    halves: bool = Field(
        True,
        description="Whether a pair lies half a head apart, as in DINOv3, or side by side, as in EVA-02.",
    )
    reference_grid: tuple[int, int] | None = Field(
        None,
        description="Patches down and across to which positions of kind eva are scaled, so that another image size has "
        "angles in the range that was trained; null scales nothing.",
    )


class VitForm(Section):
    """``model.form``: how a ViT differs from the plain one; filled in from the weights that ``model.init`` names."""

    class_token: bool = Field(True, description="Whether a class token stands before the patches.")
    registers: int = Field(
        0,
        ge=0,
        description="Number of further tokens before the patches: DINOv2's and DINOv3's registers, and DeiT's "
        "distillation token.",
    )
    added_positions: bool = Field(True, description="Whether learned positions are added to the tokens.")
    prefix_positions: bool = Field(
        True, description="Whether positions are added to the class token and to registers too."
    )
    rotary: Rotary = Rotary()
    norm: Literal["layer", "rms"] = Field("layer", description="Kind of all norms.")
    norm_epsilon: float = Field(1e-6, gt=0, description="Epsilon of all norms.")
    norm_patches: bool = Field(False, description="Whether patches are normed as they are embedded, as in AIMv2.")
    norm_before: bool = Field(
        False, description="Whether a norm stands before the first block, and patches have no bias, as in CLIP."
    )
    norm_queries: bool = Field(False, description="Whether queries and keys are normed.")
    norm_values: bool = Field(
        False, description="Whether what attention gives is normed before its projection, as in EVA-02 for CLIP."
    )
    layer_scale: bool = Field(
        False, description="Whether each branch of a block is scaled by a learned factor for every feature."
    )
    bias: bool = Field(
        True,
        description="Whether queries, keys and values have a bias; with rotary positions, keys have none.",
    )
    separate_heads: bool = Field(
        False, description="Whether queries, keys and values have a matrix each, as in EVA-02's larger ViTs."
    )
    output_bias: bool = Field(True, description="Whether attention's projection and the MLP have biases.")
    mlp: Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu", "swiglu_packed"] = Field(
        "gelu",
        description="The MLP of a block: GELU, its approximation by tanh in SigLIP or by a sigmoid in CLIP, or SwiGLU, "
        "whose gate has a matrix of its own or shares one with the values (packed).",
    )
    norm_mlp: bool = Field(False, description="Whether the MLP has a norm before its last layer, as in EVA-02.")
    attention_pool: bool = Field(False, description="Whether a learned query pools the patches, as in SigLIP.")

    @model_validator(mode="after")
    def _check_rotary(self) -> VitForm:
        """Refuse what no ViT with rotary positions has: timm's class of them would leave it out."""
        if self.rotary.kind is None:
            return self
        refused = {
            f"mlp {self.mlp}": self.mlp in ("gelu_tanh", "quick_gelu"),
            "norm_patches": self.norm_patches,
            "output_bias false": not self.output_bias,
        }
        for setting, is_set in refused.items():
            if is_set:
                raise ValueError(f"{setting}: is not known together with rotary positions; leave rotary.kind out")
        return self

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before the patches."""
        return self.registers + (1 if self.class_token else 0)

    @property
    def position_tokens(self) -> int:
        """Number of positions that are added before those of the patches."""
        return self.prefix_tokens if self.prefix_positions else 0

    @property
    def differences(self) -> str:
        """Words for what differs from the plain ViT, empty if nothing does."""
        parts = []
        for name, value in self:
            if value == type(self).model_fields[name].default:
                continue
            words = name.replace("_", " ")
            if isinstance(value, bool):
                parts.append(words if value else f"no {words}")
            elif isinstance(value, Rotary):
                parts.append(f"rotary positions ({value.kind})")
            else:
                parts.append(f"{words} {value}")
        return ", ".join(parts)


EVA_ROTARY = Rotary(kind="eva", temperature=10000.0, halves=False, reference_grid=(16, 16))
"""The rotary positions of EVA-02, whose 224 x 224 pixels have 16 x 16 patches."""
DINOV3_ROTARY = Rotary(kind="dinov3", temperature=100.0, halves=True)
"""The rotary positions of DINOv3."""
PLAIN = VitForm()
"""The form of the plain ViT."""
