"""Every device against torch on the CPU: from the same weights, images and masks, the same numbers in float32.

Tolerances are about ten times what was measured between torch 2.14 and MindSpore 2.10 (similarity 3e-8, loss 1e-7,
gradients 2e-6 of each tensor's largest, weights after 20 steps of 1e-3 4e-6); a block that is off by a thousandth is
far outside of them.
"""

from pathlib import Path

import elsewhere
import numpy as np
import parity
import pytest
from conftest import PRESENT

from ehm import backends, checkpoint

if "cpu" not in PRESENT:
    pytest.skip("parity is measured against torch on the CPU", allow_module_level=True)

OTHERS = [device for device in PRESENT if device not in ("cpu", "mindspore")]
SCRIPT = Path(parity.__file__)


@pytest.fixture
def first(config, batch, tmp_path):
    return parity.start(tmp_path / "start", config(), backends.get("cpu"), batch[0])


def in_process(device):
    return lambda *arguments, **options: parity.run(device, *arguments, **options)


def in_mindspore(first, steps, out, broken=False):
    done = elsewhere.run(SCRIPT, "mindspore:cpu", first, steps, out, *(["broken"] if broken else []))
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.split()[-1])


def every_other_device(test):
    return pytest.mark.parametrize(
        "device",
        [
            *(pytest.param(in_process(device), id=device) for device in OTHERS),
            pytest.param(in_mindspore, id="mindspore", marks=elsewhere.needs_mindspore),
        ],
    )(test)


def compare(ours, theirs):
    """Raise AssertionError where the results of two checkpoints, or their weights, differ."""
    left, right = np.load(ours / "results.npz"), np.load(theirs / "results.npz")
    np.testing.assert_allclose(left["similarity"], right["similarity"], atol=1e-6)
    np.testing.assert_allclose(left["losses"], right["losses"], rtol=1e-6)
    gradients = [name for name in right.files if name.startswith("gradient/")]
    assert len(gradients) == 60  # every parameter but the two fixed positions
    for name in gradients:
        np.testing.assert_allclose(left[name], right[name], atol=2e-5 * np.abs(right[name]).max(), err_msg=name)
    weights = dict(elsewhere.trained(checkpoint.read_model(theirs)[0]))
    for name, value in elsewhere.trained(checkpoint.read_model(ours)[0]):
        np.testing.assert_allclose(value, weights[name], atol=4e-5, err_msg=name)


@every_other_device
def test_similarity_loss_gradients_and_weights_are_torchs(device, first, tmp_path):
    compare(device(first, 20, tmp_path / "there"), parity.run("cpu", first, 20, tmp_path / "here"))


@elsewhere.needs_mindspore
def test_an_error_in_one_block_is_seen(first, tmp_path):
    here, there = parity.run("cpu", first, 20, tmp_path / "here"), in_mindspore(first, 20, tmp_path / "there", True)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        compare(there, here)


@every_other_device
def test_a_run_that_crosses_over_and_back_goes_on_as_if_it_had_stayed(device, first, tmp_path):
    stayed = np.load(parity.run("cpu", first, 30, tmp_path / "stayed") / "results.npz")["losses"]
    there = device(parity.run("cpu", first, 10, tmp_path / "before"), 10, tmp_path / "there")
    back = parity.run("cpu", there, 10, tmp_path / "back")
    crossed = [np.load(path / "results.npz")["losses"] for path in (there, back)]
    np.testing.assert_allclose(np.concatenate(crossed), stayed[10:], rtol=1e-6)
    assert stayed[-1] < 0.95 * stayed[10]
