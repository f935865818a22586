"""Figures of the features while a run pretrains: they say what they should, and training does not notice them."""

import json

import numpy as np
import pytest
from tiny import RUN, TINY

import ehm
from ehm.config import ProbeConfig
from ehm.errors import ConfigError
from ehm.storage.checkpoint import open_checkpoint
from ehm.tasks.classification.probe import probe

SETTINGS = {
    **TINY,
    **RUN,
    "optim.batch_size": 16,
    "optim.epochs": 8,
    "optim.ema_decay": 0.9,
    "mask.source": "ema",
    "run.log_every": 4,
    "run.keep": 20,
}


def run(source, out, resume=False, **more):
    settings = {**SETTINGS, "data.source": source, **more}
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return ehm.train(device="cpu", overrides=overrides, out=out, resume=resume)


def measured(out, name="knn"):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def assert_same_weights(left, right):
    first, second = open_checkpoint(left).state, open_checkpoint(right).state
    for ours, theirs in ((first.model, second.model), (first.optimizer, second.optimizer)):
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_a_watched_run_ends_with_the_weights_of_one_that_is_not(stripes, tmp_path):
    """Also if it is stopped and resumed between two measurements."""
    alone = run(stripes, tmp_path / "alone", **{"watch.every": 0})
    watched = run(stripes, tmp_path / "watched", **{"watch.every": 1})
    assert_same_weights(alone.checkpoint, watched.checkpoint)
    every = {"watch.every": 1}
    run(stripes, tmp_path / "parts", **every, **{"run.max_steps": 10})
    parts = run(stripes, tmp_path / "parts", resume=True, **every, **{"run.max_steps": "null"})
    assert_same_weights(alone.checkpoint, parts.checkpoint)
    for name in ("knn", "linear_ema", "rankme", "feature_spread_ema"):
        by_step = measured(tmp_path / "watched", name)
        assert list(by_step) == [3, 6, 9, 12, 15, 18, 21, 24]
        again = measured(tmp_path / "parts", name)
        assert {step: value for step, value in again.items() if step != 10} == by_step

    # the best one, by figures that the encoder of its checkpoint has too
    accuracies = measured(tmp_path / "watched")
    best = max(accuracies.values())
    assert best > 0.8  # stripes across and down
    (kept,) = (tmp_path / "watched/best").iterdir()
    assert kept.name == f"step-{next(step for step, value in accuracies.items() if value == best):08d}"
    assert_same_weights(kept, tmp_path / "watched/checkpoints" / kept.name)
    assert not (tmp_path / "alone/best").exists()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A run without labels; what it measures at its end."""
    images = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    from PIL import Image

    for number in range(24):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((32, 32)).save(
            images / f"{number:02d}.png"
        )
    out = tmp_path_factory.mktemp("run")
    run(images, out, **{"optim.epochs": 1})
    return images, out


def measure(encoder, source, out, only):
    values = {"model": {"init": str(encoder)}, "data": {"source": str(source), "workers": 0}, "neighbours": 5}
    values["optim"] = {"epochs": 2, "batch_size": 8, "base_lr": 1.0, "warmup_epochs": 0}
    values |= {"optimizer": "sgd", "pool": "avg", "run": {"trackers": []}}
    result = probe(ProbeConfig.model_validate(values), device="cpu", out=out, only=only)
    return result, json.loads((out / "metrics.json").read_text())


def test_a_run_without_labels_has_the_rank_that_the_probe_measures(encoder, tmp_path, capsys):
    images, out = encoder
    (rank,) = measured(out, "rankme").values()
    (spread,) = measured(out, "feature_spread").values()
    assert not (out / "best").exists()
    result, written = measure(out, images, tmp_path / "probe", "rankme")
    assert written == {"rankme": result.rank.rankme, "feature_spread": result.rank.feature_spread}
    assert written["rankme"] == pytest.approx(rank, rel=1e-4)
    assert written["feature_spread"] == pytest.approx(spread, rel=1e-4)
    assert "RankMe" in capsys.readouterr().out
    assert not (tmp_path / "probe/checkpoints").exists()


def test_the_probe_measures_what_is_asked_for(encoder, stripes, tmp_path, capsys):
    _, out = encoder
    result, written = measure(out, stripes, tmp_path / "some", "knn,rankme")
    assert written.keys() == {"neighbours", "rankme", "feature_spread"}
    assert (result.linear, result.checkpoint) == (None, None)
    said = capsys.readouterr().out
    assert "5 nearest neighbours" in said
    assert "linear" not in said
    assert not (tmp_path / "some/checkpoints").exists()
    alone, written = measure(out, stripes, tmp_path / "rank", "rankme")
    assert alone.rank == result.rank
    everything, written = measure(out, stripes, tmp_path / "all", None)
    assert written.keys() == {"checkpoint", "linear", "neighbours", "rankme", "feature_spread"}
    assert everything.neighbours == result.neighbours
    _, written = measure(out, stripes, tmp_path / "linear", "linear")
    assert written.keys() == {"checkpoint", "linear"}
    with pytest.raises(ConfigError, match="--only knn,mse: mse is no figure; it takes knn, linear, rankme"):
        measure(out, stripes, tmp_path / "wrong", "knn,mse")
