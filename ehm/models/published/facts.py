"""Facts about published weights that neither their names nor their shapes tell, and the result of renaming them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ehm.config.encoders import Rotary
from ehm.config.inputs import InputSpec
from ehm.storage.arrays import Arrays

__all__ = [
    "AIMV2_FACTS",
    "CENTRED",
    "CLIP_HEADS",
    "CLIP_INPUTS",
    "SIGLIP_INPUTS",
    "WHOLE_CROP",
    "Activation",
    "Published",
    "PublishedFacts",
]

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]

WHOLE_CROP = InputSpec(crop_pct=1.0)
"""ImageNet's mean and standard deviation, and images resized to the size that the encoder sees."""
CENTRED = InputSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
"""Pixels from -1 to 1, as in the first BEiT."""
CLIP_INPUTS = InputSpec((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), crop_pct=1.0)
"""The preparation of images in CLIP (``clip/clip.py``), which EVA-02 and AIMv2 took over."""
SIGLIP_INPUTS = InputSpec((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), crop_pct=1.0, crop_mode="squash")
"""The preparation of images in SigLIP, which changes their proportions."""
CLIP_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16, 1792: 16}
"""Heads of OpenCLIP's larger towers by their width; in the others a head is 64 features wide."""


@dataclass(frozen=True)
class PublishedFacts:
    """Facts about the encoders of a family.

    ``heads`` has the number of attention heads by the width of an encoder, for widths that are not among the presets
    or have another number there. ``inputs`` None means that names do not tell how images are prepared. What is
    ``assumed`` is otherwise in some files of the same names, so that a note has to say it.
    """

    norm_epsilon: float = 1e-6
    activation: Activation = "gelu"
    rotary: Rotary = field(default_factory=Rotary)
    heads: Mapping[int, int] = field(default_factory=dict)
    inputs: InputSpec | None = None
    assumed: str = ""


AIMV2_FACTS = PublishedFacts(
    norm_epsilon=1e-5, heads={768: 6, 1024: 8, 1536: 12, 2048: 16, 3072: 24}, inputs=CLIP_INPUTS
)
"""Facts about AIMv2, whose heads are 128 features wide (``aim-v2/aim/v2/torch/models.py``)."""


@dataclass(frozen=True)
class Published:
    """The arrays of a published file under timm's names, without what does not belong to the encoder or to a head.

    ``family`` names the layout that was recognised. ``notes`` say what was left aside.
    """

    arrays: Arrays
    family: str
    facts: PublishedFacts
    notes: tuple[str, ...] = ()
