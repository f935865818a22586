"""``ehm inspect``: a model's hierarchies, masks and attention as pictures (paper, section IV-C, Fig. 6, 7 and 8), and
figures for each layer of several models (Fig. 2b and 11).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ehm import backends
from ehm.analysis.chart import Line, chart
from ehm.analysis.layers import encoder_distances, fine_tuning_gradients
from ehm.analysis.pages import Model, attention_page, hierarchy_page, masks_page
from ehm.config import MaskConfig, ModelSource, TrainConfig
from ehm.console import console
from ehm.data.decoding.decode import SUFFIXES
from ehm.errors import ConfigError, DataError
from ehm.storage.checkpoint import find_value_range, open_checkpoint
from ehm.storage.reading import describe_value, shorten
from ehm.storage.writing import replace_file

__all__ = ["inspect"]

KINDS = ("hierarchy", "masks", "attention", "distance", "gradients")
OF_SEVERAL = ("distance", "gradients")
"""Kinds that compare checkpoints."""
DEPTHS = (0.9, 0.8, 0.6, 0.4, 0.2)
PROGRESS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

PAGE = 8
"""Images on one page, and images taken of a folder."""
MANY = 64
"""Images taken of a folder for ``distance``."""


def inspect(
    kind: str,
    images: Sequence[str | Path],
    *,
    checkpoint: str | Path | Sequence[str | Path],
    device: str = "auto",
    out: str | Path | None = None,
    balance: str | None = None,
    depths: Sequence[float] = DEPTHS,
    progress: Sequence[float] = PROGRESS,
    patches: Sequence[str | tuple[int, int]] = (),
    ratio: float | None = None,
    seed: int = 0,
) -> list[Path]:
    """Draw what the encoder of ``checkpoint`` makes of ``images``: files, or folders, of which the first eight count.

    ``kind`` is ``hierarchy`` (partitions at the fractions ``depths`` of the tree's height), ``masks`` (masks of
    ``ratio`` at ``progress`` through training, drawn with ``seed``) or ``attention`` (of the last block, from
    ``patches``, each (row, column) counted from 0, or "row,column"; three on the diagonal if left out). Masking,
    blocks, balance (``none`` or ``sinkhorn``), ratio and schedule are those of the run behind the checkpoint unless
    given.

    Of one or several checkpoints, ``distance`` draws the mean attention distance of every layer and head on files, or
    on the first 64 of a folder; ``gradients`` the size of each layer's gradients before the first step of fine-tuning,
    on 128 images, drawn with ``seed``, of one folder that has a folder for each class, or of ``elpv``. Both write their
    figures as ``out/KIND.csv`` too.

    Writes ``out/KIND.png`` (``runs/inspect`` if ``out`` is left out), one more file for every further eight images, and
    returns the paths. Raises ConfigError for a wrong argument, DataError for an image that is missing or broken, and
    CheckpointError for a checkpoint that is.
    """
    if kind not in KINDS:
        raise ConfigError(f"inspect {kind}: unknown; known are {', '.join(KINDS)}")
    for name, fractions in (("depths", depths), ("progress", progress)):
        if not fractions or not all(0 <= fraction <= 1 for fraction in fractions):
            raise ConfigError(f"{name} {list(fractions)}: must be numbers from 0 to 1")
    if seed < 0:
        raise ConfigError(f"seed {describe_value(seed)}: must be a whole number from 0")
    checkpoints = [str(checkpoint)] if isinstance(checkpoint, str | Path) else [str(each) for each in checkpoint]
    folder = Path(out) if out is not None else Path("runs") / "inspect"
    if kind == "distance":
        return _distance(checkpoints, _files(images, MANY), device, folder)
    if kind == "gradients":
        return _gradients(checkpoints, images, device, seed, folder)
    if len(checkpoints) != 1:
        raise ConfigError(f"inspect {kind}: takes one checkpoint; {' and '.join(OF_SEVERAL)} compare several")
    files = _files(images, PAGE)
    masking, mask, side, origin = _settings(checkpoints[0], balance, ratio)
    model = Model(
        backends.get(device).create_encoder(ModelSource(init=checkpoints[0])),
        origin,
        masking,
        mask,
        side,
        find_value_range(checkpoints[0]),
    )
    chosen = _patches(patches, model.encoder.grid)

    console.print(f"Drawing {kind} of {len(files)} image{'s' * (len(files) != 1)} with {origin}")
    for note in model.encoder.notes:
        console.print(f"  {note}")
    written = []
    for number, first in enumerate(range(0, len(files), PAGE), 1):
        some = files[first : first + PAGE]
        if kind == "hierarchy":
            page = hierarchy_page(model, some, depths)
        elif kind == "masks":
            page = masks_page(model, some, progress, seed)
        else:
            page = attention_page(model, some, chosen)
        path = folder / (f"{kind}.png" if number == 1 else f"{kind}-{number}.png")
        _write(page, path)
        console.print(f"Wrote {path}")
        written.append(path)
    return written


def _settings(checkpoint: str, balance: str | None, ratio: float | None) -> tuple[str, MaskConfig, int, str]:
    """Masking and mask settings of the run behind ``checkpoint``, or what is given, and the side of its mask units in
    patches; and the checkpoint in words.
    """
    if balance not in (None, "none", "sinkhorn"):
        raise ConfigError(f"balance {balance}: must be none or sinkhorn")
    if ratio is not None and not 0 < ratio < 1:
        raise ConfigError(f"ratio {ratio:g}: must lie between 0 and 1")
    masking, config, side, origin = "evolved", MaskConfig(), 1, checkpoint
    if Path(checkpoint).is_dir():
        meta = open_checkpoint(checkpoint).metadata
        if meta["kind"] == "pretrain":
            run = TrainConfig.model_validate(meta["config"])
            masking, config, side = run.masking, run.masks, run.unit // run.spec.stride
        origin = f"{checkpoint} ({meta['kind']}, step {meta['step']}, epoch {meta['epoch']:g})"
    given = {"balance": balance, "ratio": ratio}
    update = {key: value for key, value in given.items() if value is not None}
    return masking, config.model_copy(update=update), side, origin


def _distance(checkpoints: Sequence[str], files: Sequence[Path], device: str, folder: Path) -> list[Path]:
    backend, lines, rows, sides = backends.get(device), [], [], set()
    console.print(f"Measuring attention distance on {len(files)} image{'s' * (len(files) != 1)}")
    for name in checkpoints:
        encoder = backend.create_encoder(ModelSource(init=name))
        side = encoder.image_size[0] / encoder.grid[0]
        found = encoder_distances(encoder, files, find_value_range(name))
        lines.append(Line(name, found.mean(axis=1), found))
        sides.add(f"{encoder.image_size[0]} x {encoder.image_size[1]} pixels in patches of {side:g}")
        for layer, heads in enumerate(found.tolist(), 1):
            rows += [(name, layer, head, f"{reach:.6g}", f"{reach / side:.6g}") for head, reach in enumerate(heads)]
    notes = [
        f"On {len(files)} images of {', '.join(sorted(sides))}. A line is the mean over the heads, a dot one head. "
        "Distance from a patch to all patches, weighted by its attention to them, the class token left out "
        "(Dosovitskiy et al., 2021)."
    ]
    page = chart("Mean attention distance of each layer", notes, lines, "layer", "pixels")
    return _write_both(folder, "distance", page, ("checkpoint", "layer", "head", "pixels", "patches"), rows)


def _gradients(
    checkpoints: Sequence[str], images: Sequence[str | Path], device: str, seed: int, folder: Path
) -> list[Path]:
    if len(images) != 1:
        raise ConfigError("inspect gradients: takes one folder, which has a folder for each class, or elpv")
    backend, source, lines, rows, count = backends.get(device), str(images[0]), [], [], 0
    for name in checkpoints:
        console.print(f"Computing fine-tuning gradients of {name} on {source}")
        found, count = fine_tuning_gradients(backend, name, source, seed)
        lines.append(Line(name, found[:, 0], first=0))
        rows += [(name, layer, f"{mean:.6g}", f"{norm:.6g}") for layer, (mean, norm) in enumerate(found.tolist())]
    notes = [
        f"On {count} images of {source}, before the first step of fine-tuning, under a head of normal weights "
        "(standard deviation 0.02, the same for every encoder of that width). Layer 0 is the embedding."
    ]
    page = chart("Gradients of each layer at the start of fine-tuning", notes, lines, "layer", "mean magnitude")
    return _write_both(folder, "gradients", page, ("checkpoint", "layer", "mean_magnitude", "norm"), rows)


def _write_both(
    folder: Path, name: str, page: Image.Image, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> list[Path]:
    paths = [folder / f"{name}.png", folder / f"{name}.csv"]
    _write(page, paths[0])
    with (
        replace_file(paths[1]) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows([columns, *rows])
    for path in paths:
        console.print(f"Wrote {path}")
    return paths


def _files(images: Sequence[str | Path], most: int) -> list[Path]:
    found: list[Path] = []
    for image in map(Path, images):
        if image.is_dir():
            inside = sorted(path for path in image.iterdir() if path.suffix.lower() in SUFFIXES)
            if not inside:
                raise DataError(f"{image}: no images in this folder")
            found += inside[:most]
        elif image.is_file():
            found.append(image)
        else:
            raise DataError(f"{image}: no such image or folder")
    if not found:
        raise DataError("inspect: needs an image or a folder of images")
    return found


def _patches(chosen: Sequence[str | tuple[int, int]], grid: tuple[int, int]) -> list[tuple[int, int]]:
    """``chosen`` as (row, column), or three of them down the diagonal."""
    rows, columns = grid
    if not chosen:
        return [(rows * quarter // 4, columns * quarter // 4) for quarter in (1, 2, 3)]
    patches = []
    for patch in chosen:
        try:
            row, column = (int(number) for number in (patch.split(",") if isinstance(patch, str) else patch))
        except ValueError:
            example = f"{rows // 2},{columns // 2}"
            raise ConfigError(f"patch {shorten(str(patch))}: expected row,column, for example {example}") from None
        if not (0 <= row < rows and 0 <= column < columns):
            raise ConfigError(f"patch {row},{column}: rows go from 0 to {rows - 1}, columns from 0 to {columns - 1}")
        patches.append((row, column))
    return patches


def _write(page: Image.Image, path: Path) -> None:
    with replace_file(path) as temporary:
        page.save(temporary, format="PNG")
