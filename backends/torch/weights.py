"""Where a downstream task's encoder comes from: our runs, published files, timm, or nothing.

Files keep the names of timm and of the published MAE checkpoints, which are the same for an encoder. What the file has
beyond the encoder (a decoder, a head) is left aside and said in ``Loaded.notes``; what the encoder needs and the file
lacks is a CheckpointError. Reading a file never executes anything in it.
"""

from __future__ import annotations

import argparse
import difflib
import math
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from ehm import checkpoint
from ehm.backends.torch.models.vit import build_vit
from ehm.config import ModelSource, TrainConfig, Triple, vit_spec
from ehm.encoders import VIT_PRESETS, VitSpec
from ehm.errors import CheckpointError, ConfigError

__all__ = ["Loaded", "classifier_name", "load_model", "read_tensors"]

MEAN: Triple = (0.485, 0.456, 0.406)
STD: Triple = (0.229, 0.224, 0.225)
"""ImageNet's, with which the published MAE checkpoints were trained."""


@dataclass(frozen=True)
class Loaded:
    """A model with its weights in place, and what it is: ``architecture`` rebuilds it, as JSON."""

    model: Any
    architecture: dict[str, Any]
    mean: Triple = MEAN
    std: Triple = STD
    notes: tuple[str, ...] = ()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.architecture["image_size"]
        return height, width


@dataclass(frozen=True)
class _Weights:
    """Tensors under timm's names, and the sizes of their encoder, or the name of timm's model."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    spec: VitSpec | None = None
    timm: str | None = None
    image_size: tuple[int, int] | None = None
    mean: Triple = MEAN
    std: Triple = STD


def load_model(
    source: ModelSource, classes: int = 0, pool: Literal["avg", "token"] = "avg", fc_norm: bool | None = None
) -> Loaded:
    """The encoder that ``source`` names under a fresh head of ``classes`` (0: none, the model gives pooled features).

    ``pool`` and ``fc_norm`` are :func:`build_vit`'s; a timm model keeps its own pooling. Position embeddings are
    resampled to ``source.image_size``. A norm behind an average starts afresh, as in MAE's fine-tuning, unless the
    weights are those of a fine-tuned encoder.

    Raises CheckpointError where weights are missing or do not fit, ConfigError where the settings do not.
    """
    if source.init.startswith("timm:"):
        return _load_timm(source, classes)
    if source.init == "scratch":
        try:
            spec = vit_spec(source.encoder, source.image_size or (224, 224), source.patch_size, source)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return Loaded(build_vit(spec, classes, source.drop_path, pool, fc_norm), _describe(spec))
    weights = _read(source)
    if weights.timm is not None:
        model = _create(weights.timm, False, source, classes, weights.image_size)
        size = source.image_size or weights.image_size or (224, 224)
        architecture = {"family": "timm", "name": weights.timm, "image_size": list(size)}
    else:
        assert weights.spec is not None
        spec = _resize(weights.spec, source)
        if pool == "avg" and "fc_norm.weight" in weights.tensors and "norm.weight" not in weights.tensors:
            fc_norm = True  # a fine-tuned encoder, whose norm stands behind the average already
        model, architecture = build_vit(spec, classes, source.drop_path, pool, fc_norm), _describe(spec)
        weights.tensors["pos_embed"] = resample_abs_pos_embed(
            weights.tensors["pos_embed"].float(), list(spec.grid), list(weights.spec.grid), num_prefix_tokens=1
        )
    return Loaded(model, architecture, weights.mean, weights.std, _fill(model, weights.tensors, source.init))


def classifier_name(model: Any) -> str:
    """Name of a timm model's last linear layer: ``head``, ``fc``, ``head.fc`` ..."""
    return str(getattr(model, "pretrained_cfg", {}).get("classifier", "head"))


def _read(source: ModelSource) -> _Weights:
    path = Path(source.init)
    if path.is_file() and not (path.parent / "state.json").is_file():
        tensors = read_tensors(path)
        spec = _infer(tensors, source)
        return _Weights(tensors, spec)
    if path.is_file() or path.is_dir():
        return _read_checkpoint(path.parent if path.is_file() else path)
    raise CheckpointError(
        f"model.init {source.init}: no such file or folder; it takes a run folder, a .safetensors or .pth file, "
        "timm:NAME or scratch"
    )


def _read_checkpoint(path: Path) -> _Weights:
    arrays, meta = checkpoint.read_model(path)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    data = meta["config"]["data"]
    weights = _Weights(tensors, mean=tuple(data["mean"]), std=tuple(data["std"]))
    if meta["kind"] == "pretrain":
        return replace(weights, spec=TrainConfig.model_validate(meta["config"]).vit)
    encoder = dict(meta["encoder"])
    size = (encoder["image_size"][0], encoder["image_size"][1])
    if encoder.pop("family") == "timm":
        return replace(weights, timm=encoder["name"], image_size=size)
    return replace(weights, spec=VitSpec(**{**encoder, "image_size": size}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file, or of a torch file that holds them itself or under ``model``."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a safetensors file: {error}") from None
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # `args` of the published full checkpoints
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: not a file of tensors that torch reads safely: {_first_line(error)}") from None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _infer(tensors: Mapping[str, Tensor], source: ModelSource) -> VitSpec:
    """Sizes of a bare file's ViT from its shapes; heads from the preset of that width. The grid is taken as square."""
    missing = [name for name in _NEEDED if name not in tensors]
    if missing:
        raise CheckpointError(f"{source.init}: not a ViT with timm's names: {', '.join(missing)} missing")
    width, channels, patch, across = tensors["patch_embed.proj.weight"].shape
    if channels != 3 or patch != across:
        raise CheckpointError(
            f"{source.init}: its patches are {patch} x {across} of {channels} channels; only square ones of 3 load"
        )
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    heads = source.heads or {preset["width"]: preset["heads"] for preset in VIT_PRESETS.values()}.get(width)
    if heads is None:
        raise CheckpointError(
            f"{source.init}: no published ViT is {width} wide; give the number of heads as model.heads"
        )
    patches = tensors["pos_embed"].shape[1] - 1
    side = math.isqrt(patches)
    size = (side * patch, side * patch)
    if side * side != patches:
        size = source.image_size or (0, 0)
        if (size[0] // patch) * (size[1] // patch) != patches:
            raise CheckpointError(
                f"{source.init}: its {patches} patches make no square; give the height and width as model.image_size"
            )
    return VitSpec(size, patch, width, depth, heads, tensors["blocks.0.mlp.fc1.weight"].shape[0] / width)


def _resize(spec: VitSpec, source: ModelSource) -> VitSpec:
    """``spec`` at the image size that is asked for; what ``source`` says about the other sizes must be true."""
    for key in ("width", "depth", "heads"):
        wanted, found = getattr(source, key), getattr(spec, key)
        if wanted is not None and wanted != found:
            raise CheckpointError(f"model.{key} {wanted}: the weights in {source.init} have {key} {found}")
    size = source.image_size or spec.image_size
    if size[0] % spec.patch_size or size[1] % spec.patch_size:
        raise ConfigError(f"model.image_size {list(size)}: not a multiple of the weights' patch size {spec.patch_size}")
    return replace(spec, image_size=size)


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> tuple[str, ...]:
    """Copy ``tensors`` into ``model``; its head and a norm behind the average may stay fresh, nothing else."""
    own = model.state_dict()
    head = classifier_name(model)
    fresh = {name for name in own if name.startswith((f"{head}.", "fc_norm.")) and name not in tensors}
    fresh |= {name for name in own if name.startswith(f"{head}.")}
    problems = [f"{name} is missing" for name in own if name not in tensors and name not in fresh]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(value.shape)}"
        for name, value in own.items()
        if name in tensors and name not in fresh and tensors[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{origin}: does not fit the encoder: " + "; ".join(problems[:3]) + more)
    model.load_state_dict({name: own[name] if name in fresh else tensors[name] for name in own})
    unused = [name for name in tensors if name not in own or name in fresh]
    notes = [f"encoder from {origin}"]
    if fresh:
        notes.append("starts afresh: " + _groups(fresh))
    if unused:
        notes.append("not used from there: " + _groups(unused))
    return tuple(notes)


def _load_timm(source: ModelSource, classes: int) -> Loaded:
    """A model of timm's by name, with its published weights unless ``?pretrained=false`` follows the name."""
    name, _, option = source.init.removeprefix("timm:").partition("?")
    if option not in ("", "pretrained=true", "pretrained=false"):
        raise ConfigError(f"model.init {source.init}: after ? only pretrained=false is known")
    if not timm.is_model(name.partition(".")[0]):
        close = ", ".join(difflib.get_close_matches(name, timm.list_models(), 3)) or "timm.list_models() names them"
        raise ConfigError(f"model.init {source.init}: timm {timm.__version__} has no such model; near it: {close}")
    pretrained = option != "pretrained=false"
    model = _create(name, pretrained, source, classes, None)
    facts = model.pretrained_cfg
    size = source.image_size or facts["input_size"][1:]
    architecture = {"family": "timm", "name": name, "image_size": list(size)}
    note = f"{name} of timm, " + ("with its published weights" if pretrained else "untrained")
    return Loaded(model, architecture, tuple(facts["mean"]), tuple(facts["std"]), (note,))


def _create(name: str, pretrained: bool, source: ModelSource, classes: int, size: tuple[int, int] | None) -> Any:
    size = source.image_size or size
    options: dict[str, Any] = {"num_classes": classes, "drop_path_rate": source.drop_path or None, "img_size": size}
    try:
        try:
            return timm.create_model(name, pretrained=pretrained, **options)
        except TypeError:  # convolutional networks take images of any size, and no img_size
            return timm.create_model(name, pretrained=pretrained, **{**options, "img_size": None})
    except (OSError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"model.init {source.init}: timm cannot make it: {_first_line(error)} "
            f"(timm:{name}?pretrained=false needs no download, and starts untrained)"
        ) from None


def _describe(spec: VitSpec) -> dict[str, Any]:
    return {"family": "vit", **asdict(spec), "image_size": list(spec.image_size)}


def _groups(names: Iterable[str]) -> str:
    """Names shortened to their first parts, each with its number of tensors."""
    counts: dict[str, int] = {}
    for name in names:
        first = "decoder" if name.startswith(("decoder", "mask_token")) else name.partition(".")[0]
        counts[first] = counts.get(first, 0) + 1
    return ", ".join(f"{first} ({count} tensors)" if count > 1 else first for first, count in sorted(counts.items()))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_NEEDED = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
