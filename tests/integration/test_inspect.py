"""``ehm inspect`` from files to pictures: what each tile shows is what the model and the masks say."""

import csv
import re

import numpy as np
import pytest
from fakes import FakeEncoder
from PIL import Image

from ehm import backends, masking
from ehm.analysis import draw, pages
from ehm.analysis.colours import PALETTE
from ehm.analysis.inspect import inspect
from ehm.cli import main
from ehm.config import MaskConfig, TrainConfig
from ehm.data import EvalTransform, decode_image
from ehm.errors import CheckpointError, ConfigError, DataError
from ehm.masking.streams import MaskStreams
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import save_checkpoint

MASK = {"ratio": 0.5, "blocks": 2, "balance": "sinkhorn", "depth_range": [0, 0.5]}
GRID = (6, 4)


@pytest.fixture
def encoder(monkeypatch):
    """A fake encoder of 6 x 4 patches behind every device name."""

    class Backend:
        def create_encoder(self, source):
            return fake

    fake = FakeEncoder((48, 32), 8)
    monkeypatch.setattr(backends, "get", lambda device, deterministic=False: Backend())
    return fake


@pytest.fixture
def run(tmp_path):
    """A checkpoint that says how its run masked."""
    empty = LearnerState({"weight": np.zeros(1, np.float32)}, {})
    meta = {"kind": "pretrain", "step": 7, "epoch": 1.5, "seed": 0, "config": {"mask": MASK}}
    save_checkpoint(tmp_path / "run" / "checkpoints", empty, meta)
    return tmp_path / "run"


@pytest.fixture
def pages_drawn(monkeypatch):
    """The arguments of every page that is laid out, in order."""
    drawn = []
    lay_out = pages.compose_mosaic

    def record(title, notes, headings, rows, *legend):
        drawn.append((" ".join(notes), headings, rows))
        return lay_out(title, notes, headings, rows, *legend)

    monkeypatch.setattr(pages, "compose_mosaic", record)
    return drawn


def centres(tile):
    """The colour in the middle of each patch."""
    height, width = tile.picture.shape[:2]
    cell = height // GRID[0]
    assert (height, width) == (GRID[0] * cell, GRID[1] * cell)
    return tile.picture[cell // 2 :: cell, cell // 2 :: cell]


def taken(files):
    return np.stack([EvalTransform((48, 32))(decode_image(file)) for file in files])


@pytest.mark.parametrize("kind", ["hierarchy", "masks", "attention"])
def test_a_picture_is_written_and_announced(kind, encoder, run, images, tmp_path, capsys):
    (path,) = inspect(kind, [images / "00.png", images / "01.png"], checkpoint=run, out=tmp_path / "out")
    assert path == tmp_path / "out" / f"{kind}.png"
    assert str(path) in capsys.readouterr().out
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with Image.open(path) as page:
        assert page.mode == "RGB"
        assert 1000 <= page.width <= 2000


def test_masks_are_those_of_the_run(encoder, run, images, tmp_path, pages_drawn):
    files = [images / "00.png", images / "01.png"]
    inspect("masks", files, checkpoint=run, out=tmp_path, progress=(0, 0.3, 1), seed=3)
    ((notes, headings, rows),) = pages_drawn
    assert headings == ["image", "progress 0", "progress 0.3", "progress 1"]
    assert "step 7" in notes
    assert "12 of 24" in notes
    hierarchy = masking.build_hierarchy(masking.balance(encoder.compute_similarity(taken(files), 2)))
    for column, depth in enumerate((0, 0.15, 0.5), 1):  # the run's depth_range halves the progress
        expected = masking.hierarchical_mask(hierarchy, depth, 0.5, MaskStreams((3,), range(2)))
        for row, mask in zip(rows, expected, strict=True):
            hidden = (centres(row[column]) == draw.HIDDEN).all(-1)
            assert hidden.sum() == 12
            assert (hidden == mask.reshape(GRID)).all()


@pytest.mark.parametrize("name", ["attmask_high", "attmask_hint", "mst", "epm", "large_block", "random", "deep"])
def test_other_masks_are_those_of_the_run_too(name, encoder, images, tmp_path, pages_drawn):
    empty = LearnerState({"weight": np.zeros(1, np.float32)}, {})
    config = {"masking": name, "mask": {**MASK, "views": 2}}
    meta = {"kind": "pretrain", "step": 7, "epoch": 1.5, "seed": 0, "config": config}
    run = save_checkpoint(tmp_path / "checkpoints", empty, meta)
    files = [images / "00.png", images / "01.png"]
    inspect("masks", files, checkpoint=run, out=tmp_path, progress=(0, 1), seed=3)
    ((notes, _, rows),) = pages_drawn
    assert name in notes
    assert ("Similarity" in notes) == (name in ("epm", "deep"))

    class Batch:
        images = taken(files)

        def compute_similarity(self):
            yield encoder.compute_similarity(self.images, 2)

        def compute_saliency(self):
            yield encoder.compute_attention(self.images)[:, :, 0, 1:].mean(axis=1)

    masker = masking.make_masker(name, MaskConfig(**MASK), GRID)
    for column, progress in enumerate((0, 1), 1):
        expected, _ = masker(Batch(), progress, (3,))
        for row, mask in zip(rows, expected, strict=True):
            hidden = (centres(row[column]) == draw.HIDDEN).all(-1)
            assert (hidden == mask.reshape(GRID)).all()
    lines = {"epm": r"(\d+) parts?", "deep": r"(\d+) parts?, level \d+ of \d+"}.get(name, "")
    assert re.fullmatch(lines, ", ".join(rows[0][1].lines))


def test_arguments_outrank_the_run(encoder, run, images, tmp_path, pages_drawn):
    inspect("masks", [images / "00.png"], checkpoint=run, out=tmp_path, ratio=0.25, balance="none", progress=[0.5])
    ((notes, _, rows),) = pages_drawn
    assert (centres(rows[0][1]) == draw.HIDDEN).all(-1).sum() == 6
    assert "raw" in notes


def test_parts_are_the_cuts_of_the_tree(encoder, run, images, tmp_path, pages_drawn):
    file = images / "02.png"
    inspect("hierarchy", [file], checkpoint=run, out=tmp_path, depths=(1, 0.6, 0))
    ((_, headings, (row,)),) = pages_drawn
    assert headings == ["image", "depth 1", "depth 0.6", "depth 0"]
    hierarchy = masking.build_hierarchy(masking.balance(encoder.compute_similarity(taken([file]), 2)))
    assert row[0].lines == ("02.png", f"tree height {hierarchy.height[0]}")
    assert row[1].lines == ("1 part", f"level {hierarchy.height[0]} of {hierarchy.height[0]}")
    assert row[3].lines == ("24 parts", f"level 1 of {hierarchy.height[0]}")
    level = -(-6 * hierarchy.height // 10)
    parts = hierarchy.cut(level)[0].reshape(GRID)
    assert row[2].lines == (f"{len(np.unique(parts))} parts", f"level {level[0]} of {hierarchy.height[0]}")
    cell = row[2].picture.shape[0] // GRID[0]
    contour = draw.find_borders(parts, cell)
    assert ((row[2].picture == draw.CONTOUR).all(-1) == contour).mean() > 0.99  # a white image may add a pixel


def test_attention_is_that_of_the_boxed_patch(encoder, run, images, tmp_path, pages_drawn):
    file = images / "03.png"
    inspect("attention", [file], checkpoint=run, out=tmp_path, patches=["5,1", (0, 3)])
    ((_, headings, (row,)),) = pages_drawn
    assert headings == ["image", "from patch 5,1", "from patch 0,3"]
    attention = encoder.compute_attention(taken([file]))[0].mean(0)
    for tile, (down, across) in zip(row[1:], ((5, 1), (0, 3)), strict=True):
        weights = attention[1 + down * GRID[1] + across, 1:]
        assert tile.lines == (f"strongest {weights.max() * 25:.2g} x uniform",)
        yellow = centres(tile)[..., 0].astype(int) - centres(tile)[..., 2]
        assert np.corrcoef(yellow.ravel(), weights)[0, 1] > 0.8
        cell = tile.picture.shape[0] // GRID[0]
        frame = tile.picture[down * cell + cell // 2, across * cell - 1]
        assert frame.tolist() in PALETTE.tolist()
        assert (row[0].picture[down * cell + cell // 2, across * cell - 1] == frame).all()


def test_a_folder_gives_its_first_eight_and_further_files_further_pages(encoder, run, images, tmp_path, pages_drawn):
    assert len(inspect("masks", [images], checkpoint=run, out=tmp_path, progress=[0])) == 1
    assert [row[0].lines[0] for row in pages_drawn[0][2]] == [f"{n:02d}.png" for n in range(8)]
    written = inspect("masks", sorted(images.iterdir()), checkpoint=run, out=tmp_path, progress=[0])
    assert [path.name for path in written] == ["masks.png", "masks-2.png"]
    assert [len(rows) for _, _, rows in pages_drawn[1:]] == [8, 4]


@pytest.mark.parametrize(
    ("kind", "options", "error", "sentence"),
    [
        (
            "tree",
            {},
            ConfigError,
            "inspect tree: unknown; known are hierarchy, masks, reconstruction, attention, answers, distance, "
            "gradients",
        ),
        ("attention", {"patches": [(6, 0)]}, ConfigError, "patch 6,0: rows go from 0 to 5, columns from 0 to 3"),
        ("attention", {"patches": ["1,-1"]}, ConfigError, "patch 1,-1: rows go"),
        ("attention", {"patches": ["7"]}, ConfigError, "patch 7: expected row,column"),
        ("hierarchy", {"depths": [1.5]}, ConfigError, "depths"),
        ("masks", {"progress": []}, ConfigError, "progress"),
        ("masks", {"ratio": 1.0}, ConfigError, "ratio 1: must lie between 0 and 1"),
        ("masks", {"seed": -1}, ConfigError, "seed -1: must be a whole number from 0"),
        ("masks", {"balance": "both"}, ConfigError, "balance both: must be none or sinkhorn"),
        ("masks", {"checkpoint": "nowhere"}, CheckpointError, "nowhere"),
        (
            "masks",
            {"checkpoint": ["a", "b"]},
            ConfigError,
            "takes one checkpoint; distance and gradients compare several",
        ),
        ("distance", {"checkpoint": "nowhere"}, CheckpointError, "nowhere"),
    ],
)
def test_a_wrong_argument_is_one_sentence(
    kind, options, error, sentence, encoder, run, images, tmp_path, monkeypatch, request
):
    if options.get("checkpoint") == "nowhere":
        monkeypatch.undo()  # the real backend says that the checkpoint is missing
    with pytest.raises(error) as raised:
        inspect(kind, [images / "00.png"], **{"checkpoint": run, "out": tmp_path / "out", **options})
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_missing_broken_and_no_images_are_named(encoder, run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no image")
    for image in ("nowhere.png", "empty", "broken.png"):
        with pytest.raises(DataError, match=image):
            inspect("masks", [tmp_path / image], checkpoint=run, out=tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_the_command_draws_a_real_checkpoint(images, tmp_path, capsys):
    config = TrainConfig.model_validate(
        {
            "encoder": "vit_tiny",
            "image_size": [32, 48],
            "patch_size": 8,
            "model": {"width": 24, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
        }
    )
    state = backends.get("cpu").create_learner(config).state()
    meta = {"kind": "pretrain", "step": 1, "epoch": 0.1, "seed": 0, "config": config.model_dump(mode="json")}
    save_checkpoint(tmp_path / "run" / "checkpoints", state, meta)
    for kind, extra in (("hierarchy", ["--depths", "0.5", "0.9"]), ("masks", []), ("attention", ["--patches", "3,5"])):
        argv = ["inspect", kind, str(images / "00.png"), "--checkpoint", str(tmp_path / "run"), *extra]
        assert main([*argv, "--device", "cpu", "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["attention.png", "hierarchy.png", "masks.png"]


def test_several_encoders_are_compared_layer_by_layer(images, stripes, tmp_path, capsys):
    names = ["timm:test_vit?pretrained=false", "timm:vit_tiny_patch16_224?pretrained=false"]
    out = ["--device", "cpu", "--out", str(tmp_path)]
    assert main(["inspect", "distance", str(images / "00.png"), "--checkpoint", *names, *out]) == 0
    assert main(["inspect", "gradients", str(stripes), "--checkpoint", names[0], *out]) == 0
    assert str(tmp_path / "gradients.csv") in capsys.readouterr().out
    with (tmp_path / "distance.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    heads = {name: len({row["head"] for row in rows if row["checkpoint"] == name}) for name in names}
    assert heads == {names[0]: 2, names[1]: 3}
    assert [row["layer"] for row in rows if row["checkpoint"] == names[1] and row["head"] == "2"][-1] == "12"
    for row in rows:
        assert 0 < float(row["pixels"]) < 224 * 2**0.5
        assert float(row["pixels"]) == pytest.approx(16 * float(row["patches"]), rel=1e-4)
    with (tmp_path / "gradients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [str(layer) for layer in range(len(rows))]
    assert all(0 < float(row["mean_magnitude"]) < float(row["norm"]) for row in rows)
    for kind in ("distance", "gradients"):
        with Image.open(tmp_path / f"{kind}.png") as page:
            assert page.size[0] == 1200
    assert main(["inspect", "gradients", str(images), "--checkpoint", names[0], *out]) == 1
    assert "has no labels" in capsys.readouterr().err
    assert main(["inspect", "gradients", str(images), str(images), "--checkpoint", names[0], *out]) == 2
