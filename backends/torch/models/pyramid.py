"""Four maps of features, at strides 4, 8, 16 and 32, from any encoder: what dense prediction builds on.

Shapes: B images of H x W pixels, C channels of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from timm.layers.format import Format
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ehm.backends.torch.models.loading import load_model
from ehm.backends.torch.models.torch_file import read_arrays
from ehm.backends.torch.models.vit import VIT_CLASSES, find_layers
from ehm.config import ModelSource
from ehm.errors import ConfigError
from ehm.models.opening import names_weights, open_model
from ehm.models.pyramid import STRIDES, list_ends_of_thirds, plan_resizing, round_stride
from ehm.models.weights import LoadedModel, Weights

__all__ = [
    "Pyramid",
    "can_take_any_size",
    "find_nested_layers",
    "fix_size",
    "load_pyramid",
    "take_any_size",
]

Taps = Sequence[int] | Callable[[int], Sequence[int]]
"""Numbers of a ViT's blocks, or a function that gives them for its depth."""
_BEHIND = ("norm", "fc_norm", "head")
"""Parts of an encoder that lie behind its last map."""


class Pyramid(nn.Module):
    """A timm model, ``encoder``, and a neck that brings its maps to :data:`STRIDES`.

    Normalised (B, 3, H, W) -> four maps (B, C_i, H / s_i, W / s_i). The maps of a ViT are the outputs of its blocks
    ``taps``, enlarged by transposed convolutions or reduced by a maximum, as BEiT's published code does for patches of
    16. If the side of its patches is no power of two, images are resized so that it becomes one: for patches of 14
    pixels, images of 512 become 448. A Swin, or a convolutional network of timm's, has stages of these strides.
    ``channels`` are the C_i, ``scale`` is the factor of the images' sides.

    ``any_size`` says whether H and W may be any multiples of 32, as with ViTs whose positions are added or rotary, and
    with convolutions; other encoders take images of the size that they were built for. Raises ConfigError for an
    encoder without such maps.
    """

    def __init__(self, encoder: Any, taps: Taps = list_ends_of_thirds) -> None:
        super().__init__()
        self.encoder = encoder
        self.neck: nn.ModuleList | None = None
        self.scale = 1.0
        if isinstance(encoder, VIT_CLASSES):
            blocks = taps(len(encoder.blocks)) if callable(taps) else taps
            self._init_vit(encoder, tuple(blocks))
        else:
            self._init_stages(encoder)
        # Several processes wait for the gradients of all that learns, and these parts would never have any.
        for name in _BEHIND:
            part = getattr(encoder, name, None)
            if isinstance(part, nn.Module):
                part.requires_grad_(False)

    def _init_vit(self, encoder: Any, taps: tuple[int, ...]) -> None:
        if min(taps) < 0 or max(taps) >= len(encoder.blocks):
            raise ConfigError(f"model: maps after blocks {list(taps)}; the encoder has {len(encoder.blocks)}")
        patch = encoder.patch_embed.patch_size[0]
        width = encoder.embed_dim
        stride = round_stride(patch)
        self.scale = patch / stride
        self.any_size = can_take_any_size(encoder)
        if self.any_size:
            take_any_size(encoder)
        elif self.scale != 1:
            raise ConfigError(f"model: patches of {patch} pixels; with relative positions they need a power of two")
        encoder.blocks[max(taps) + 1 :].requires_grad_(False)  # their output is not used
        self.taps: tuple[int, ...] = taps
        self.channels: tuple[int, ...] = (width,) * len(STRIDES)
        self.neck = nn.ModuleList(_build_resizing(width, stride, wanted) for wanted in STRIDES)

    def _init_stages(self, encoder: Any) -> None:
        stages: dict[int, int] = {}
        for index, facts in enumerate(encoder.feature_info):
            stages[facts["reduction"]] = index
        if not set(STRIDES) <= set(stages):
            raise ConfigError(f"model: {type(encoder).__name__} has maps at strides {sorted(stages)}, not 4, 8, 16, 32")
        self.any_size = not hasattr(encoder, "set_input_size")  # timm's Swins have it, convolutions need none
        taps: list[int] = []
        channels: list[int] = []
        for stride in STRIDES:
            taps.append(stages[stride])
            channels.append(encoder.feature_info[stages[stride]]["num_chs"])
        self.taps = tuple(taps)
        self.channels = tuple(channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See the class."""
        if self.scale != 1:
            size = round(images.shape[2] * self.scale), round(images.shape[3] * self.scale)
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        blocks = sorted(set(self.taps))  # a shallow encoder has fewer than four
        outputs: list[Tensor] = self.encoder.forward_intermediates(
            images, indices=blocks, output_fmt="NCHW", intermediates_only=True
        )
        maps = []
        for level, tap in enumerate(self.taps):
            feature_map = outputs[blocks.index(tap)]
            if self.neck is not None:
                feature_map = self.neck[level](feature_map)
            maps.append(feature_map)
        return maps


def load_pyramid(
    source: ModelSource,
    image_size: tuple[int, int] | None = None,
    taps: Taps = list_ends_of_thirds,
    weights: Weights | None = None,
) -> tuple[Pyramid, LoadedModel]:
    """Load the encoder that ``source`` names, without head, as a pyramid for images of ``image_size`` = (H, W).

    ``image_size`` is the encoder's own if left out. An encoder that takes images of any size keeps the positions of its
    weights and resamples them in every pass; any other is made for ``image_size``. The rest of the pyramid begins with
    random weights. ``weights`` are what ``source`` names if that was opened already. Raises as ``load_model`` and
    :class:`Pyramid` do.
    """
    if weights is None and names_weights(source):
        weights = open_model(source, read_arrays)  # once for both attempts
    loaded = load_model(source, weights=weights)
    pyramid = Pyramid(loaded.model, taps)
    if not pyramid.any_size and image_size not in (None, loaded.image_size):
        loaded = load_model(source.model_copy(update={"image_size": image_size}), weights=weights)
        pyramid = Pyramid(loaded.model, taps)
    return pyramid, loaded


def find_nested_layers(model: nn.Module) -> dict[str, int]:
    """Return the layer of every parameter of ``model``; everything outside its encoder lies above the encoder.

    The encoder is the one module that has the name ``encoder``; see :func:`find_layers` for its layers.
    """
    (prefix,) = (name for name, _ in model.named_modules() if name.split(".")[-1] == "encoder")
    encoder = model.get_submodule(prefix)
    inner = find_layers(encoder)
    trained_layers = [inner[name] for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    above = 1 + max(trained_layers, default=0)  # none of an encoder that is frozen as a whole
    layers: dict[str, int] = {}
    for name, _ in model.named_parameters():
        layers[name] = above
        if name.startswith(f"{prefix}."):
            # frozen layers, such as a last norm that is not used, must not lift the rest
            layers[name] = min(inner[name.removeprefix(f"{prefix}.")], above)
    return layers


def _build_resizing(width: int, stride: int, wanted: int) -> nn.Module:
    """Build a module that brings maps of ``stride`` to the stride ``wanted``."""
    resizing = plan_resizing(stride, wanted)
    if resizing.shrinking > 1:
        return nn.MaxPool2d(resizing.shrinking)
    layers: list[nn.Module] = []
    for _ in range(resizing.doublings):
        if layers:
            layers += [nn.BatchNorm2d(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width, 2, stride=2))
    return nn.Sequential(*layers)


def can_take_any_size(model: Any) -> bool:
    """Return whether :func:`take_any_size` works for ``model``, a network of timm's."""
    if isinstance(model, Eva):
        # other kinds of rotary positions keep the angles of one size in each block
        return model.rope is None or isinstance(model.rope, RotaryEmbeddingCat | RotaryEmbeddingDinoV3)
    return isinstance(model, VisionTransformer)


def take_any_size(model: Any) -> None:
    """Let timm compute the positions in every pass, as a ViT that is built with ``dynamic_img_size`` does.

    This sets the attributes that timm's constructors derive from that argument (``VisionTransformer.__init__``,
    ``Eva.__init__``, ``RotaryEmbeddingCat.__init__`` and ``PatchEmbed.__init__`` of 1.0.31), because the network has
    been built by then, perhaps by timm's name, and only the network shows whether it takes any size. It can go when
    timm has a method for it, as ``set_input_size`` is one for a single size
    (https://github.com/huggingface/pytorch-image-models, ``timm/models/vision_transformer.py``).
    """
    _keep_angles(model, False)
    model.dynamic_img_size = True
    model.patch_embed.strict_img_size = False
    model.patch_embed.flatten = False
    model.patch_embed.output_fmt = Format.NHWC


def fix_size(pyramid: Pyramid, image_size: tuple[int, int]) -> None:
    """Resample the positions of a ViT that takes any size once and for all, for images of (H, W).

    For such images the outputs stay the same; the network becomes simpler to export. The attributes are those of
    :func:`take_any_size`, set back.
    """
    encoder: Any = pyramid.encoder
    if not getattr(encoder, "dynamic_img_size", False):
        return
    height = round(image_size[0] * pyramid.scale)
    width = round(image_size[1] * pyramid.scale)
    encoder.set_input_size(img_size=(height, width))
    _keep_angles(encoder, True)
    encoder.dynamic_img_size = False
    encoder.patch_embed.flatten = True
    encoder.patch_embed.output_fmt = Format.NCHW


def _keep_angles(model: Any, kept: bool) -> None:
    """Let EVA-02's rotary positions be those of one size, or else be computed for the size of each pass."""
    rope = getattr(model, "rope", None)
    if isinstance(rope, RotaryEmbeddingCat):
        # without this it gives the angles of its own size whatever size it is asked for
        rope._use_cached_embed = kept
