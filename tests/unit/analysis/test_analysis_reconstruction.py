"""The page of reconstructions: each tile and each caption is what images, masks and predictions say."""

import re

import numpy as np
import pytest
from fake_learner import FakeLearner

from ehm import masking
from ehm.analysis import draw, reconstruction
from ehm.analysis.masked_images import reconstruct_images
from ehm.analysis.reconstruction import draw_reconstruction_page
from ehm.backends.base import Reconstruction
from ehm.config import TrainConfig
from ehm.masking.streams import MaskStreams

UNIT = 8
NAMES = ["one.png", "two.png", "three.png"]


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)


@pytest.fixture
def tiles(monkeypatch):
    """The tiles of every page that is laid out, column by column, and its notes."""
    drawn = []
    lay_out = reconstruction.compose_mosaic

    def record(title, notes, headings, rows, bar=None):
        columns = dict(zip(headings, zip(*rows, strict=True), strict=True))
        drawn.append((columns, " ".join(notes)))
        return lay_out(title, notes, headings, rows, bar)

    monkeypatch.setattr(reconstruction, "compose_mosaic", record)
    return drawn


class Painter(FakeLearner):
    """A learner that predicts what it is told."""

    answer = Reconstruction()

    def reconstruct_images(self, images, mask):
        return self.answer


def config(**values):
    mask = {"ratio": 0.5, **values.pop("mask", {})}
    sizes = {"encoder": "vit_tiny", "image_size": [16, 24], "patch_size": 8}
    return TrainConfig.model_validate({**sizes, "mask": mask, **values})


def draw_page(images, answer, progress=0.5, seed=3, **values):
    settings = config(**values)
    learner = Painter(settings)
    learner.answer = answer
    masked = reconstruct_images(learner, settings, images, progress, seed)
    draw_reconstruction_page(masked, settings, NAMES, "A page", ["A note."])
    return masked


def shrink(tile):
    """A tile at the size of its image: the colours at the centres of its pixels, which the page enlarges smoothly."""
    height, width = tile.picture.shape[:2]
    rows = ((np.arange(16) + 0.5) * height / 16).astype(int)
    columns = ((np.arange(24) + 0.5) * width / 24).astype(int)
    return tile.picture[rows][:, columns].astype(float)


def smooth(height=16, width=24):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 10, columns * 8, 200 - rows * 3], axis=-1).astype(np.uint8)


def test_masks_and_parts_are_those_of_the_tree(images, tiles):
    masked = draw_page(images, Reconstruction(images / np.float32(255)), mask={"depth_range": [0, 0.8]})
    ((columns, notes),) = tiles
    assert list(columns) == ["image", "parts", "mask", "reconstruction", "all predicted"]
    assert [tile.lines[0] for tile in columns["image"]] == NAMES
    similarity = np.concatenate(list(FakeLearner(config()).prepare_batch(images).compute_similarity()))
    hierarchy = masking.build_hierarchy(masking.balance(similarity))
    expected = masking.hierarchical_mask(hierarchy, 0.4, 0.5, MaskStreams((3,), range(3)))
    np.testing.assert_array_equal(masked.mask, expected)
    levels = masking.masking_level(0.4, hierarchy.height)
    for index, (mask, part) in enumerate(zip(columns["mask"], columns["parts"], strict=True)):
        cell = mask.picture.shape[0] // 2
        hidden = (mask.picture[cell // 2 :: cell, cell // 2 :: cell] == draw.HIDDEN).all(axis=-1)
        np.testing.assert_array_equal(hidden.ravel(), expected[index])
        assert mask.lines == ("3 of 6 hidden",)
        count = len(np.unique(hierarchy.cut(levels)[index]))
        assert part.lines[0] == f"{count} part{'s' * (count > 1)}"
        assert part.lines[1] == f"level {levels[index]} of {hierarchy.height[index]}"
    assert "3 of 6" in notes
    assert "progress 0.5" in notes


def test_predictions_stand_where_patches_are_hidden_and_nowhere_else(tiles):
    images = np.stack([smooth()] * 3)
    predicted = np.stack([1 - image / np.float32(255) for image in images])
    masked = draw_page(images, Reconstruction(predicted), masking="random")
    ((columns, _),) = tiles
    assert "parts" not in columns
    for index in range(3):
        hidden = np.kron(masked.mask[index].reshape(2, 3), np.ones((UNIT, UNIT), bool)).astype(bool)
        filled = np.where(hidden[..., None], 255 - images[index], images[index])
        everything = shrink(columns["all predicted"][index])
        # the borders of cells are sharp in the picture, and the enlargement is smooth
        inside = np.zeros((16, 24), bool)
        for top in (0, 8):
            for left in (0, 8, 16):
                inside[top + 3 : top + 5, left + 3 : left + 5] = True
        np.testing.assert_allclose(shrink(columns["reconstruction"][index])[inside], filled[inside], atol=6)
        np.testing.assert_allclose(everything[inside], 255.0 - images[index][inside], atol=6)


def test_captions_give_the_error_of_hidden_pixels(images, tiles):
    predicted = (images / np.float32(255) + np.float32(0.1)).clip(-1, 2)
    masked = draw_page(images, Reconstruction(predicted), masking="random")
    ((columns, notes),) = tiles
    for index, tile in enumerate(columns["reconstruction"]):
        hidden = masked.mask[index].reshape(2, 3).repeat(UNIT, axis=0).repeat(UNIT, axis=1)
        true = images[index][hidden] / 255
        error = np.mean((predicted[index][hidden].clip(0, 1) - true) ** 2)
        flat = 0.0
        for patch in np.flatnonzero(masked.mask[index]):
            row, column = divmod(int(patch), 3)
            pixels = images[index, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].reshape(-1, 3) / 255
            flat += pixels.var(axis=0).mean() / 3
        assert tile.lines == (f"PSNR {-10 * np.log10(error):.1f} dB", f"flat patches {-10 * np.log10(flat):.1f} dB")
    assert "PSNR" in notes


def test_what_predicts_no_pixels_shows_how_well_it_agrees(images, tiles):
    agreement = np.array([[1, 0, -0.5, 0.25, 0.5, 1]] * 3, np.float32)
    answer = Reconstruction(agreement=agreement, agreement_name="cosine", note="No pixels here.")
    masked = draw_page(images, answer, masking="grid")
    ((columns, notes),) = tiles
    assert list(columns) == ["image", "mask", "cosine"]
    assert "No pixels here." in notes
    assert "PSNR" not in notes
    for index, tile in enumerate(columns["cosine"]):
        assert tile.lines == (f"cosine {agreement[index][masked.mask[index]].mean():.2f}",)
    brightness = columns["cosine"][0].picture.mean(axis=-1)
    cell = brightness.shape[0] // 2
    means = brightness.reshape(2, cell, 3, cell).mean(axis=(1, 3)).ravel()
    assert means[0] > means[1]


def test_tokens_show_what_a_perfect_prediction_would_be(images, tiles):
    answer = Reconstruction(
        np.zeros(images.shape, np.float32),
        images / np.float32(255),
        np.ones((3, 6), np.float32),
        "right token",
        "Tokens.",
    )
    draw_page(images, answer, masking="random")
    ((columns, _),) = tiles
    assert list(columns)[-1] == "perfect prediction"
    assert columns["reconstruction"][0].lines[-1] == "right token 1.00"
    assert re.match("PSNR", columns["all predicted"][0].lines[0])


@pytest.mark.parametrize("name", ["attmask_hint", "epm", "random", "deep"])
def test_the_masks_of_a_page_are_those_of_the_seed(images, name):
    settings = config(masking=name, mask={"views": 2})
    learner = Painter(settings)
    first, again = (reconstruct_images(learner, settings, images, 0.5, 3).mask for _ in range(2))
    np.testing.assert_array_equal(first, again)
    masker = masking.make_masker(name, settings.masks.model_copy(update={"views": 1}), settings.units)
    expected, _ = masker(learner.prepare_batch(images), 0.5, (3,))
    np.testing.assert_array_equal(first, expected)
    assert first.shape == (3, 6)
    if name == "random":
        assert not np.array_equal(first, reconstruct_images(learner, settings, images, 0.5, 4).mask)
