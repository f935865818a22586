"""When pages of reconstructions are drawn, of which images, and by which process."""

import numpy as np
import pytest
from fake_learner import FakeBackend, FakeLearner
from PIL import Image

from ehm import backends
from ehm.config import TrainConfig, load_config
from ehm.data import open_source
from ehm.errors import ConfigError
from ehm.training import pictures
from ehm.training.plan import plan_run
from ehm.training.pretrain import train
from ehm.training.run import Run

SETTINGS = [
    "encoder=vit_tiny", "image_size=32", "patch_size=8", "optim.batch_size=4", "optim.epochs=4",
    "optim.warmup_epochs=1", "data.workers=0", "run.trackers=[]",
]  # fmt: skip


@pytest.fixture
def fake(monkeypatch):
    backend = FakeBackend()
    monkeypatch.setattr(backends, "get", lambda device, deterministic=False: backend)
    return backend


@pytest.fixture
def blank(monkeypatch):
    """Pages without anything on them, which take no time."""
    monkeypatch.setattr(pictures, "draw_reconstruction_page", lambda *arguments: Image.new("RGB", (4, 4)))


def run(source, out, *overrides, **options):
    return train(overrides=[*SETTINGS, f"data.source={source}", *overrides], out=out, **options)


def steps_drawn(out):
    """The steps after which there is a page."""
    return [int(path.stem.rpartition("-")[2]) for path in sorted((out / "pictures").iterdir())]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("1", [3, 6, 9, 12]), ("0.67", [2, 4, 6, 8, 10, 12]), ("3", [9, 12]), ("100", [12])],
)
def test_pages_come_every_so_many_epochs_and_at_the_end(fake, blank, images, tmp_path, setting, expected):
    run(images, tmp_path / "out", f"watch.pictures={setting}")
    assert steps_drawn(tmp_path / "out") == expected


def test_zero_draws_nothing(fake, images, tmp_path):
    run(images, tmp_path / "out", "watch.pictures=0")
    assert not (tmp_path / "out" / "pictures").exists()
    assert not any(call[0] == "reconstruct" for call in fake.learners[0].calls)
    with pytest.raises(ConfigError, match=r"watch\.pictures: .*greater than or equal to 0"):
        run(images, tmp_path / "other", "watch.pictures=-1")


@pytest.mark.parametrize(("cost", "expected"), [(0.0, 10), (1000.0, 2)])
def test_by_default_a_tenth_of_the_run_lies_between_pages_unless_they_take_long(
    fake, blank, images, tmp_path, monkeypatch, cost, expected
):
    """By a clock of the test: each step takes a second, and a page what it is told; the first and last are drawn."""
    clock = [0.0]

    class Clock:
        perf_counter = staticmethod(lambda: clock[0])

    def step(self, *arguments):
        clock[0] += 1.0
        return take_step(self, *arguments)

    def draw(*arguments):
        clock[0] += cost
        return draw_page(*arguments)

    take_step = FakeLearner.train_step
    draw_page = pictures.draw_reconstruction_page
    monkeypatch.setattr(pictures, "time", Clock)
    monkeypatch.setattr(FakeLearner, "train_step", step)
    monkeypatch.setattr(pictures, "draw_reconstruction_page", draw)
    run(images, tmp_path / "out", "optim.steps=20")
    drawn = steps_drawn(tmp_path / "out")
    assert drawn[0] == 2
    assert drawn[-1] == 20
    assert len(drawn) == expected


def test_the_images_are_the_same_on_every_page(fake, images, tmp_path, monkeypatch):
    shown = []
    draw_page = pictures.draw_reconstruction_page

    def draw(masked, config, names, title, notes):
        shown.append((masked, names, title, " ".join(notes)))
        return draw_page(masked, config, names, title, notes)

    monkeypatch.setattr(pictures, "draw_reconstruction_page", draw)
    run(images, tmp_path / "out", "watch.pictures=2", "masking=random")
    first, second = shown
    np.testing.assert_array_equal(first[0].images, second[0].images)
    np.testing.assert_array_equal(first[0].mask, second[0].mask)  # by one seed, so that pages compare
    assert len(first[0].images) == 8
    assert first[1] == second[1]
    assert first[1][0] == "00.png"
    assert first[1][-1] == "11.png"
    assert "8 of the training images" in first[3]
    assert "after step 6 of 12 (epoch 2)" in first[2]
    assert (first[0].progress, second[0].progress) == (0.5, 1.0)


def test_images_are_held_out_if_the_source_has_a_validation_part(fake, images, tmp_path, capsys, monkeypatch):
    parts = tmp_path / "parts"
    (parts / "train").mkdir(parents=True)
    (parts / "val").mkdir()
    for file in sorted(images.iterdir()):
        file.rename(parts / ("val" if file.stem > "08" else "train") / file.name)
    origins = []
    draw_page = pictures.draw_reconstruction_page

    def draw(masked, config, names, title, notes):
        origins.append((names, " ".join(notes)))
        return draw_page(masked, config, names, title, notes)

    monkeypatch.setattr(pictures, "draw_reconstruction_page", draw)
    run(parts, tmp_path / "out", "watch.pictures=100", "data.layout=parts")
    ((names, notes),) = origins
    assert names == ["09.png", "10.png", "11.png"]
    assert "3 of the validation part" in notes
    assert f"Reconstructions: {tmp_path / 'out' / 'pictures'}" in capsys.readouterr().out


def test_an_unreadable_image_is_replaced(fake, images, tmp_path):
    (images / "00.png").write_bytes(b"no image")
    run(images, tmp_path / "out", "watch.pictures=100")
    with Image.open(tmp_path / "out" / "pictures" / "reconstruction-00000012.png") as page:
        assert page.mode == "RGB"
        assert page.width > 800


def test_of_several_processes_the_first_writes_and_decides(fake, images, tmp_path):
    """The second of two, whose first one says no to pages in between."""

    class Second:
        rank = 1
        size = 2
        local_size = 2

        def gather_values(self, value):
            return [False, value]

    config = load_config(TrainConfig, None, [*SETTINGS, f"data.source={images}"])
    fake.processes = Second()
    learner = fake.create_learner(config)
    plan = plan_run(config.optim, config.run, steps_per_epoch=5)
    run_of_two = Run(config, fake, tmp_path / "out", None)
    pages = pictures.open_pictures(run_of_two, learner, plan, open_source(config.data, "train"), None)
    assert [done for done in range(1, 21) if pages.is_due(done)] == [20]
    pages.draw(20)
    assert len([call for call in learner.calls if call[0] == "reconstruct"]) == 1  # as all processes do
    assert not (tmp_path / "out").exists()
