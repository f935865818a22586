"""Charts that compare the layers of several encoders, and tables of their figures (paper, Fig. 2b and 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ehm import backends
from ehm.analysis.chart import Line, draw_chart, render_figure
from ehm.analysis.layers import measure_encoder_distances, measure_fine_tuning_gradients
from ehm.config import ModelSource
from ehm.console import console
from ehm.errors import ConfigError
from ehm.storage.checkpoint import find_value_range

__all__ = ["Comparison", "compare_distances", "compare_gradients", "describe_image_count"]


@dataclass(frozen=True)
class Comparison:
    """A chart of several checkpoints, and its figures as a table."""

    picture: Image.Image
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def compare_distances(checkpoints: Sequence[str], files: Sequence[Path], device: str) -> Comparison:
    """Compare the mean attention distance of each layer and head."""
    console.print(f"Measuring attention distance on {describe_image_count(files)}")
    backend = backends.get(device)
    lines = []
    rows: list[tuple[Any, ...]] = []
    inputs = set()
    for name in checkpoints:
        encoder = backend.create_encoder(ModelSource(init=name))
        patch_side = encoder.image_size[0] / encoder.grid[0]
        distances = measure_encoder_distances(encoder, files, find_value_range(name))
        lines.append(Line(name, distances.mean(axis=1), distances))
        # Encoders of other sizes can be compared, so the note names every size once.
        inputs.add(f"{encoder.image_size[0]} x {encoder.image_size[1]} pixels in patches of {patch_side:g}")
        for layer, heads in enumerate(distances.tolist(), 1):
            for head, distance in enumerate(heads):
                rows.append((name, layer, head, f"{distance:.6g}", f"{distance / patch_side:.6g}"))
    note = (
        f"On {describe_image_count(files)} of {', '.join(sorted(inputs))}. A line is the mean over the heads, a dot "
        "one head. Distance from a patch to all patches, weighted by its attention to them, tokens without a place "
        "left out (Dosovitskiy et al., 2021)."
    )
    figure = draw_chart("Mean attention distance of each layer", [note], lines, "layer", "pixels")
    return Comparison(render_figure(figure), ("checkpoint", "layer", "head", "pixels", "patches"), rows)


def compare_gradients(checkpoints: Sequence[str], images: Sequence[str | Path], device: str, seed: int) -> Comparison:
    """Compare the gradients of each layer before the first step of fine-tuning."""
    if len(images) != 1:
        raise ConfigError("inspect gradients: takes one folder, which has a folder for each class, or elpv")
    source = str(images[0])
    backend = backends.get(device)
    lines = []
    rows: list[tuple[Any, ...]] = []
    count = 0
    for name in checkpoints:
        console.print(f"Computing fine-tuning gradients of {name} on {source}")
        gradients, count = measure_fine_tuning_gradients(backend, name, source, seed)
        lines.append(Line(name, gradients[:, 0], first=0))
        for layer, (mean, norm) in enumerate(gradients.tolist()):
            rows.append((name, layer, f"{mean:.6g}", f"{norm:.6g}"))
    note = (
        f"On {count} images of {source}, before the first step of fine-tuning, under a head of normal weights "
        "(standard deviation 0.02, the same for every encoder of that width). Layer 0 is the embedding."
    )
    title = "Gradients of each layer at the start of fine-tuning"
    figure = draw_chart(title, [note], lines, "layer", "mean magnitude")
    return Comparison(render_figure(figure), ("checkpoint", "layer", "mean_magnitude", "norm"), rows)


def describe_image_count(files: Sequence[Path]) -> str:
    """Return the number of images in words, for example "1 image"."""
    return f"{len(files)} image{'s' * (len(files) != 1)}"
