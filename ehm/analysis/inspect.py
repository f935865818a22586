"""``ehm inspect``: draw the hierarchies, masks, reconstructions and attention of a model, and compare layers of models.

The pictures of one model are those of Fig. 6, 7 and 8 of the paper (section IV-C), the charts that compare the layers
of several models those of Fig. 2b and 11.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ehm import backends
from ehm.analysis.answerer import choose_questions, draw_answer_pages, open_answerer
from ehm.analysis.chart import check_matplotlib
from ehm.analysis.comparison import Comparison, compare_distances, compare_gradients, describe_image_count
from ehm.analysis.learner import PretrainedModel, open_pretrained_model
from ehm.analysis.masked_images import reconstruct_images
from ehm.analysis.model import InspectedModel
from ehm.analysis.pages import draw_attention_page, draw_hierarchy_page, draw_masks_page
from ehm.analysis.picture_files import PictureFiles
from ehm.analysis.reconstruction import draw_reconstruction_page
from ehm.config import MaskConfig, ModelSource, TrainConfig
from ehm.config.inputs import describe_inputs
from ehm.console import console
from ehm.data import EvalTransform
from ehm.data.decoding.channels import load_image
from ehm.data.decoding.decode import SUFFIXES
from ehm.data.questions import Question
from ehm.errors import ConfigError, DataError
from ehm.storage.checkpoint import find_checkpoint, find_value_range
from ehm.storage.reading import describe_value, shorten
from ehm.storage.writing import replace_file

__all__ = ["inspect"]

DEPTHS = (0.9, 0.8, 0.6, 0.4, 0.2)
"""The fractions of a tree's height that hierarchies are drawn at by default."""
PROGRESS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The moments of training that masks are drawn for by default."""
_KINDS = ("hierarchy", "masks", "reconstruction", "attention", "answers", "distance", "gradients")
_COMPARING_KINDS = ("distance", "gradients")
"""Kinds that compare several checkpoints."""
_PAGE_IMAGES = 8
"""Images on one page, and images that are taken from a folder."""
_DISTANCE_IMAGES = 64
"""Images that are taken from a folder for ``distance``."""


def inspect(
    kind: str,
    images: Sequence[str | Path],
    *,
    checkpoint: str | Path | Sequence[str | Path],
    device: str = "auto",
    out: str | Path | None = None,
    balance: str | None = None,
    depths: Sequence[float] = DEPTHS,
    progress: Sequence[float] | None = None,
    patches: Sequence[str | tuple[int, int]] = (),
    ratio: float | None = None,
    seed: int = 0,
    question: str | None = None,
) -> list[Path]:
    """Draw pictures of one model on ``images``, or charts that compare the layers of several models.

    ``images`` are files or folders; of a folder, the first eight images are taken. ``kind`` is one of

    - ``hierarchy``: partitions at the fractions ``depths`` of the tree's height;
    - ``masks``: masks of ``ratio``, drawn with ``seed``, at the fractions ``progress`` of training; six of them by
      default;
    - ``reconstruction``: the model of a pretraining run fills in images under such masks. There is a page for each of
      ``progress``, by default one, for the moment at which the checkpoint was written;
    - ``attention``: the attention of the last block from ``patches``, each (row, column) counted from 0, or the text
      "row,column"; by default from three patches on the diagonal;
    - ``answers``: the answers of a vision_language model to ``question`` about images, and the attention of its
      latents. Without ``question``, ``images`` is one set of questions, such as ``easy-vqa``, and ``seed`` draws
      sixteen of them;
    - ``distance``: the mean attention distance of every layer and head of one or several checkpoints, on files or on
      the first 64 images of a folder;
    - ``gradients``: the size of each layer's gradients before the first step of fine-tuning, for one or several
      checkpoints. ``images`` is ``elpv`` or one folder that has a folder for each class, and ``seed`` draws 128 images.

    Masking, blocks, balance (``none`` or ``sinkhorn``), ratio and schedule are those of the run behind the checkpoint
    unless given. Writes ``out/KIND.png`` (``runs/inspect`` if ``out`` is left out), one more file for every further
    eight images, for charts also ``out/KIND.csv``, and returns the paths.

    Raises ConfigError for a wrong argument, DataError for a missing or unreadable image, CheckpointError for a missing
    or unreadable checkpoint, and BackendError if a chart needs matplotlib and it is not installed.
    """
    moments = PROGRESS if progress is None else progress
    _check_arguments(kind, depths, moments, seed)
    checkpoints = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    names = [str(each) for each in checkpoints]
    folder = Path("runs") / "inspect" if out is None else Path(out)
    if kind in _COMPARING_KINDS:
        check_matplotlib(f"inspect {kind}")  # before minutes of computing
        if kind == "distance":
            comparison = compare_distances(names, _list_images(images, _DISTANCE_IMAGES), device)
        else:
            comparison = compare_gradients(names, images, device, seed)
        return _write_comparison(folder, kind, comparison)

    if len(names) != 1:
        raise ConfigError(f"inspect {kind}: takes one checkpoint; {' and '.join(_COMPARING_KINDS)} compare several")
    if kind == "answers":
        return _write_pages(folder, kind, _draw_answers(names[0], device, images, question, seed))
    files = _list_images(images, _PAGE_IMAGES)
    if kind == "reconstruction":
        pretrained = open_pretrained_model(names[0], device, ratio, balance)
        console.print(f"Drawing reconstructions of {describe_image_count(files)} with {pretrained.origin}")
        return _write_pages(folder, kind, _draw_reconstructions(pretrained, files, progress, seed))
    model = _open_model(names[0], device, balance, ratio)
    chosen = _choose_patches(patches, model.encoder.grid)
    console.print(f"Drawing {kind} of {describe_image_count(files)} with {model.origin}")
    for note in (*model.encoder.notes, describe_inputs(model.encoder.inputs)):
        console.print(f"  {note}")
    draw_page: Callable[[Sequence[Path]], Image.Image]
    if kind == "hierarchy":
        draw_page = partial(draw_hierarchy_page, model, depths=depths)
    elif kind == "masks":
        draw_page = partial(draw_masks_page, model, progress=moments, seed=seed)
    else:
        draw_page = partial(draw_attention_page, model, patches=chosen)
    return _write_pages(folder, kind, map(draw_page, _split_files(files)))


def _check_arguments(kind: str, depths: Sequence[float], progress: Sequence[float], seed: int) -> None:
    """Raise ConfigError for an unknown kind, fractions that are not in [0, 1] or a negative seed."""
    if kind not in _KINDS:
        raise ConfigError(f"inspect {kind}: unknown; known are {', '.join(_KINDS)}")
    for name, fractions in (("depths", depths), ("progress", progress)):
        if not fractions or not all(0 <= fraction <= 1 for fraction in fractions):
            raise ConfigError(f"{name} {list(fractions)}: must be numbers from 0 to 1")
    if seed < 0:
        raise ConfigError(f"seed {describe_value(seed)}: must be a whole number from 0")


def _draw_reconstructions(
    model: PretrainedModel, files: Sequence[Path], progress: Sequence[float] | None, seed: int
) -> Iterator[Image.Image]:
    """Yield a page for each eight images and each moment of training, by default the moment of the checkpoint."""
    config = model.config
    data = config.data
    transform = EvalTransform.from_spec(config.image_size, data.inputs)
    notes = [f"Model: {model.origin}, a {config.encoder} pretrained with {config.objective}."]
    moments = [model.progress] if progress is None else progress
    for page_files in _split_files(files):
        images = np.stack([transform(load_image(file, data.pixels)) for file in page_files])
        for moment in moments:
            masked = reconstruct_images(model.learner, config, images, moment, seed)
            names = [file.name for file in page_files]
            yield draw_reconstruction_page(masked, config, names, "Reconstructions of hidden patches", notes)


def _draw_answers(
    checkpoint: str, device: str, images: Sequence[str | Path], question: str | None, seed: int
) -> Iterator[Image.Image]:
    """Return the pages of answers to one question about images, or to the questions of a set."""
    if question is None and len(images) != 1:
        raise ConfigError("inspect answers: takes one set of questions, or images and --question")
    model = open_answerer(checkpoint, device)
    if question is None:
        questions = choose_questions(model, str(images[0]), 2 * _PAGE_IMAGES, seed)
    else:
        questions = [Question(question, (), "other", str(file)) for file in _list_images(images, _PAGE_IMAGES)]
    console.print(f"Drawing answers to {len(questions)} question{'s' * (len(questions) != 1)} with {model.origin}")
    return draw_answer_pages(model, questions, _PAGE_IMAGES)


def _split_files(files: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """Yield the files of each page."""
    for first in range(0, len(files), _PAGE_IMAGES):
        yield files[first : first + _PAGE_IMAGES]


def _write_pages(folder: Path, kind: str, pages: Iterable[Image.Image]) -> PictureFiles:
    """Write ``folder/KIND.png``, ``KIND-2.png`` and so on, each as soon as it is drawn; return their paths."""
    written = PictureFiles()
    for number, page in enumerate(pages, 1):
        path = folder / (f"{kind}.png" if number == 1 else f"{kind}-{number}.png")
        _write_picture(page, path)
        console.print(f"Wrote {path}")
        written.append(path)
    return written


def _open_model(checkpoint: str, device: str, balance: str | None, ratio: float | None) -> InspectedModel:
    """Open the encoder of ``checkpoint`` with the masking of its run, or with the defaults if that has none.

    ``balance`` and ``ratio`` replace those of the masking unless they are None.
    """
    if balance not in (None, "none", "sinkhorn"):
        raise ConfigError(f"balance {balance}: must be none or sinkhorn")
    if ratio is not None and not 0 < ratio < 1:
        raise ConfigError(f"ratio {ratio:g}: must lie between 0 and 1")
    masking = "evolved"
    mask = MaskConfig()
    side = 1
    origin = checkpoint
    # Files of weights and timm's models have no run whose masking could be taken.
    opened = find_checkpoint(checkpoint) if Path(checkpoint).is_dir() else None
    if opened is not None:
        metadata = opened.metadata
        if metadata["kind"] == "pretrain":
            run = TrainConfig.model_validate(metadata["config"])
            masking = run.masking
            mask = run.masks
            side = run.unit // run.spec.stride
        origin = f"{checkpoint} ({metadata['kind']}, step {metadata['step']}, epoch {metadata['epoch']:g})"
    if balance is not None:
        mask = mask.model_copy(update={"balance": balance})
    if ratio is not None:
        mask = mask.model_copy(update={"ratio": ratio})
    encoder = backends.get(device).create_encoder(ModelSource(init=checkpoint))
    return InspectedModel(encoder, origin, masking, mask, side, find_value_range(checkpoint))


def _list_images(images: Sequence[str | Path], most: int) -> list[Path]:
    """List the files among ``images`` and the first ``most`` of each folder among them."""
    files: list[Path] = []
    for image in map(Path, images):
        if image.is_dir():
            inside = sorted(path for path in image.iterdir() if path.suffix.lower() in SUFFIXES)
            if not inside:
                raise DataError(f"{image}: no images in this folder")
            files += inside[:most]
        elif image.is_file():
            files.append(image)
        else:
            raise DataError(f"{image}: no such image or folder")
    if not files:
        raise DataError("inspect: needs an image or a folder of images")
    return files


def _choose_patches(chosen: Sequence[str | tuple[int, int]], grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Return ``chosen`` as (row, column), or three patches down the diagonal if none is chosen."""
    rows, columns = grid
    if not chosen:
        return [(rows * quarter // 4, columns * quarter // 4) for quarter in (1, 2, 3)]
    patches = []
    for patch in chosen:
        numbers = patch.split(",") if isinstance(patch, str) else patch
        try:
            row, column = map(int, numbers)
        except ValueError:
            example = f"{rows // 2},{columns // 2}"
            raise ConfigError(f"patch {shorten(str(patch))}: expected row,column, for example {example}") from None
        if not (0 <= row < rows and 0 <= column < columns):
            raise ConfigError(f"patch {row},{column}: rows go from 0 to {rows - 1}, columns from 0 to {columns - 1}")
        patches.append((row, column))
    return patches


def _write_comparison(folder: Path, kind: str, comparison: Comparison) -> PictureFiles:
    """Write a chart and its table of figures; return the two paths."""
    chart_path = folder / f"{kind}.png"
    table_path = folder / f"{kind}.csv"
    _write_picture(comparison.picture, chart_path)
    with (
        replace_file(table_path) as temporary,
        # Names of checkpoints need not be UTF-8; a table that escapes them is better than none.
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows([comparison.columns, *comparison.rows])
    for path in (chart_path, table_path):
        console.print(f"Wrote {path}")
    return PictureFiles([chart_path, table_path])


def _write_picture(picture: Image.Image, path: Path) -> None:
    with replace_file(path) as temporary:
        picture.save(temporary, format="PNG")
