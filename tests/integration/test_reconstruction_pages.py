"""Pages of reconstructions beside real training, and ``ehm inspect reconstruction`` of what came of it."""

import numpy as np
import pytest
from PIL import Image
from tiny import RUN, TINY

import ehm
from ehm.analysis import inspect as inspecting
from ehm.cli import main
from ehm.errors import CheckpointError, ConfigError
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import open_checkpoint, save_checkpoint
from ehm.training import pictures

pytest.importorskip("torch", reason="the training here is torch's")

SIMMIM = {
    **TINY,
    **RUN,
    "objective": "simmim",
    "mask.unit": 8,
    "model.drop_path": 0.5,
    "optim.ema_decay": 0.9,
    "optim.base_lr": 0.005,
}
"""Blocks are dropped at random: a page that drew random numbers would change the weights."""


def run(out, settings, resume=False):
    return ehm.train(
        device="cpu", overrides=[f"{key}={value}" for key, value in settings.items()], out=out, resume=resume
    )


def assert_same_weights(left, right):
    first = open_checkpoint(left).state
    second = open_checkpoint(right).state
    for ours, theirs in ((first.model, second.model), (first.optimizer, second.optimizer)):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_pages_change_no_weight_of_a_run_even_of_a_resumed_one(images, tmp_path):
    settings = {**SIMMIM, "data.source": images}
    run(tmp_path / "without", {**settings, "watch.pictures": 0})
    run(tmp_path / "with", {**settings, "watch.pictures": 0.3})
    assert len(list((tmp_path / "with" / "pictures").iterdir())) == 6
    assert_same_weights(tmp_path / "without", tmp_path / "with")

    run(tmp_path / "parts", {**settings, "watch.pictures": 0.3, "run.max_steps": 4})
    run(tmp_path / "parts", {**settings, "watch.pictures": 1, "run.max_steps": "null"}, resume=True)
    assert_same_weights(tmp_path / "without", tmp_path / "parts")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of pictures, a run of MAE on them, and what was drawn on its last page."""
    folder = tmp_path_factory.mktemp("trained")
    source = folder / "images"
    source.mkdir()
    rng = np.random.default_rng(0)
    for index in range(8):
        corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        corners.resize((40, 36), Image.Resampling.BICUBIC).save(source / f"{index}.png")
    drawn = []
    draw_page = pictures.draw_reconstruction_page

    def record(masked, *arguments):
        drawn.append(masked)
        return draw_page(masked, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw_reconstruction_page", record)
        run(folder / "run", {**TINY, **RUN, "data.source": source, "watch.pictures": 100})
    return source, folder / "run", drawn[-1]


@pytest.fixture
def drawn(monkeypatch):
    """The contents of every page that ``ehm inspect`` draws."""
    pages = []
    draw_page = inspecting.draw_reconstruction_page

    def record(masked, *arguments):
        pages.append(masked)
        return draw_page(masked, *arguments)

    monkeypatch.setattr(inspecting, "draw_reconstruction_page", record)
    return pages


def test_a_checkpoint_gives_the_page_of_its_run(trained, drawn, tmp_path, capsys):
    source, folder, last = trained
    (path,) = ehm.inspect("reconstruction", [source], checkpoint=folder, out=tmp_path)
    assert path == tmp_path / "reconstruction.png"
    assert "8 images" in capsys.readouterr().out
    (page,) = drawn
    np.testing.assert_array_equal(page.images, last.images)
    np.testing.assert_array_equal(page.mask, last.mask)
    np.testing.assert_array_equal(page.levels, last.levels)
    np.testing.assert_allclose(page.reconstruction.pixels, last.reconstruction.pixels, atol=1e-6)
    assert page.progress == 1


def test_moments_ratio_and_seed_are_those_that_are_asked_for(trained, drawn, tmp_path):
    source, folder, _ = trained
    command = ["inspect", "reconstruction", str(source / "0.png"), "--checkpoint", str(folder), "--out", str(tmp_path)]
    assert main([*command, "--progress", "0", "0.5", "--ratio", "0.25", "--seed", "5", "--device", "cpu"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reconstruction-2.png", "reconstruction.png"]
    assert [page.progress for page in drawn] == [0, 0.5]
    assert [page.seed for page in drawn] == [5, 5]
    assert [page.mask.sum() for page in drawn] == [4, 4]
    assert (drawn[0].levels == 1).all()


def test_what_has_no_decoder_is_refused_in_a_sentence(trained, tmp_path):
    source, folder, _ = trained
    meta = {"kind": "classifier", "step": 1, "epoch": 1, "config": {}}
    tuned = save_checkpoint(tmp_path, LearnerState({"weight": np.zeros(1, np.float32)}, {}), meta)
    for path, problem in (
        (folder / "encoder.safetensors", "is an encoder alone"),
        (folder / "encoder", "is an encoder alone"),
        (tuned, "is a classifier, which predicts no hidden patches"),
        (tmp_path / "nowhere", "there is no such run"),
    ):
        with pytest.raises(CheckpointError, match=problem) as caught:
            ehm.inspect("reconstruction", [source], checkpoint=path, out=tmp_path / "out")
        assert "give the folder of a run of ehm train" in str(caught.value)
    with pytest.raises(ConfigError, match=r"ratio"):
        ehm.inspect("reconstruction", [source], checkpoint=folder, ratio=1.5, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
