"""A device without a fault passes the checks of ``ehm verify``, and one with a fault fails them."""

import numpy as np
import pytest
from altered import AlteredCpu

from ehm import backends
from ehm.config import TokenizerConfig
from ehm.storage.checkpoint import save_checkpoint
from ehm.verification import curve
from ehm.verification.cases import GRIDS, KINDS, Case
from ehm.verification.check import SkipError
from ehm.verification.curve import check_curve
from ehm.verification.masks import check_host_trees, compare_device_masks, compare_host_masks
from ehm.verification.numerics import compare_with_cpu, compare_with_numpy
from ehm.verification.optimiser import follow_adamw
from ehm.verification.state import check_checkpoint, check_crossing, check_resume

TINY = 17
"""Tokens of a grid of 4 x 4, which these tests add."""
MAE = "plain ViT, MAE"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(GRIDS, TINY, 4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    config = TokenizerConfig(vocabulary=16, width=8)
    state = backends.get("cpu").create_tokenizer(config).state()
    metadata = {"kind": "tokenizer", "step": 0, "epoch": 0, "config": config.model_dump(mode="json")}
    return str(save_checkpoint(tmp_path_factory.mktemp("tokenizer"), state, metadata))


def failed(measurements):
    """Names of the measurements that are not within their bounds."""
    return {each.name for each in measurements if not each.value <= each.bound}


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_computes_as_numpy(kind, tokenizer):
    """Far within the bounds, which leave room for TF32."""
    for each in compare_with_numpy(backends.get("cpu"), Case(kind, TINY, 32, tokenizer=tokenizer)):
        assert each.value < each.bound / 10, each


def scale_gradient(state):
    for key in state.optimizer:
        if key == "blocks.0.attn.proj.weight/exp_avg":
            state.optimizer[key] = state.optimizer[key] * np.float32(1.02)


def turn_gradient(state):
    """Keep its length."""
    key = "blocks.1.mlp.fc1.bias/exp_avg"
    if key in state.optimizer:
        state.optimizer[key] = state.optimizer[key][::-1].copy()


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ({"similarity": lambda part: np.full_like(part, 1 / part.shape[1])}, {"attention"}),
        ({"similarity": lambda part: part * np.nan}, {"attention"}),
        ({"loss": lambda loss: 1.001 * loss}, {"loss"}),
        ({"state": scale_gradient}, {"gradients"}),
        ({"state": turn_gradient}, {"gradients"}),
    ],
)
def test_a_fault_in_the_numerics_is_seen(fault, seen):
    case = Case(MAE, TINY, 32)
    assert failed(compare_with_numpy(AlteredCpu(**fault), case)) == seen
    assert failed(compare_with_cpu(AlteredCpu(**fault), backends.get("cpu"), case)) == seen


def test_weights_that_another_optimiser_has_moved_are_seen():
    def shrink(state):
        if state.optimizer:
            state.model["norm.weight"] *= np.float32(0.9999)

    case = Case(MAE, TINY, 32)
    assert failed(follow_adamw(backends.get("cpu"), case)) == set()
    assert failed(follow_adamw(AlteredCpu(state=shrink), case)) == {"weights"}


def test_what_a_backend_lacks_is_skipped():
    with pytest.raises(SkipError, match="float64"):
        list(compare_with_numpy(Lacking(), Case(MAE, TINY, 32)))


class Lacking:
    name = "lacking"

    def create_learner(self, config):
        from ehm.errors import BackendError

        raise BackendError("optim.dtype float64: not here")


def test_wrong_trees_are_seen(monkeypatch):
    assert failed(check_host_trees()) == set()
    monkeypatch.setattr("ehm.verification.masks.build_hierarchy", lambda similarity: real(1 - similarity))
    from ehm.masking import build_hierarchy as real

    assert failed(check_host_trees()) >= {"49 patches", "64 patches", "196 patches"}


def test_wrong_masks_are_seen():
    case = Case(MAE, 50, 32)
    cpu = backends.get("cpu")
    assert failed(compare_host_masks(cpu, case)) == set()
    assert failed(compare_device_masks(cpu, case)) == set()
    rolled = AlteredCpu(mask=lambda mask: mask.roll(1, dims=1))
    assert failed(compare_device_masks(rolled, case)) == {"masks"}


def test_masks_of_other_trees_are_seen(monkeypatch):
    """The masker looks at a similarity that is another one than that of the check."""
    parts = iter(range(100))
    shuffled = AlteredCpu(similarity=lambda part: part if next(parts) == 0 else part[:, ::-1, ::-1].copy())
    assert failed(compare_host_masks(shuffled, Case(MAE, 50, 32))) == {""}


def test_a_lost_moment_is_seen():
    def lose(state):
        state.optimizer.pop("blocks.0.norm1.weight/exp_avg_sq", None)
        state.optimizer.pop("blocks.0.norm1.weight/exp_avg", None)
        state.optimizer.pop("blocks.0.norm1.weight/step", None)

    cpu = backends.get("cpu")
    for check in (check_checkpoint, lambda backend: check_resume(backend, deterministic=False)):
        assert failed(check(cpu)) == set()
        assert failed(check(AlteredCpu(load=lose))) == {""}
    assert failed(check_crossing(cpu, cpu)) == set()


def test_a_run_that_comes_back_as_another_one_is_seen():
    def forget(state):
        state.optimizer = {name: array for name, array in state.optimizer.items() if name.startswith("ema/")}

    assert failed(check_crossing(backends.get("cpu"), AlteredCpu(load=forget))) == {"losses"}


@pytest.mark.parametrize("masking", curve.MASKINGS)
def test_losses_are_the_stored_ones(masking):
    """They differ by 7e-7 at most with the kernels of SSE4.1 and AVX2; a mask that changes would make it more."""
    (found,) = check_curve(backends.get("cpu"), masking, "float32")
    assert found.value <= found.bound, found


def test_another_loss_is_seen(monkeypatch):
    monkeypatch.setattr(curve, "compute_curve", lambda *arguments: [2.0] * 20)
    assert failed(check_curve(backends.get("cpu"), "random", "float32")) == {""}
