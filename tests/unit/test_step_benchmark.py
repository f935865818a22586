"""The benchmark of a pretraining step is run by hand: its rows have to follow what they reach into."""

import importlib
from pathlib import Path

import numpy as np
import torch

from ehm.masking import hierarchy_masker

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_step_of_ours_and_the_plain_one_are_measured(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = importlib.import_module("pretrain_step")
    # the benchmark replaces these for the rest of its process
    for name in ("balance", "build_hierarchy"):
        monkeypatch.setattr(hierarchy_masker, name, getattr(hierarchy_masker, name))
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    clock = benchmark.Clock(torch.device("cpu"), cpu=True)
    ours = benchmark.make_ehm_step("evolved", "vit_tiny", "float32", images, clock, "cpu")
    plain = benchmark.make_peer_step("plain", "vit_tiny", "float32", images, clock, "cpu")
    # the mean squared error of normalised patches, to which an untrained network adds its own variance
    for step in (ours, plain):
        assert 1 < float(step()) < 3
    measured = {name for name, seconds in clock.seconds.items() if seconds > 0}
    assert measured >= {"data", "similarity", "hierarchy", "tree", "mask", "forward/backward", "optimiser"}
