"""Retrieval and segmentation of every device against torch on the CPU, from the same weights and images in float32.

Measured between torch 2.14 and MindSpore 2.10: descriptors 3e-7, losses 1e-6, gradients 2e-5 of each tensor's largest,
in UperNet up to 2e-4, whose batch norms take the moments of few values.
"""

import elsewhere
import numpy as np
import parity
import pytest
from conftest import PRESENT
from task_checkpoints import HEAD, OPTIM, PLAIN, SWIN, save_embedder, save_pretrained, save_segmenter
from test_parity import every_other_device

from ehm.deploy.export import export
from ehm.storage.checkpoint import open_checkpoint

if "cpu" not in PRESENT:
    pytest.skip("parity is measured against torch on the CPU", allow_module_level=True)

SMALL = {**PLAIN, "depth": 2, "patch_size": 8, "image_size": [32, 48]}
TINY_SWIN = {**SWIN, "depth": [1, 1, 2, 1], "image_size": [64, 32]}
REGISTERS = {**SMALL, "patch_size": 14, "image_size": 42}
REGISTERS |= {"form": {"registers": 2, "layer_scale": True, "prefix_positions": False}}
AVERAGE = {"optim": {**OPTIM, "ema_decay": 0.8}}
LORA = {"lora": {"rank": 2, "alpha": 1, "targets": ["attn.qkv", "attn.proj", "mlp"]}}
ROTARY = {**SMALL, "width": 48, "form": {"added_positions": False, "rotary": {"kind": "dinov3"}}}
QUERY = {**SMALL, "form": {"attention_pool": True}}
WHOLE = {"mode": "whole"}
SEGMENTER = {"head": {**HEAD, "dropout": 0}, "optimizer": "sgd", "layer_decay": 0.8}


def relative(folder):
    return {"init": str(save_pretrained(folder / "pretrained")), "drop_path": 0}


CASES = {
    "embedder": lambda folder: save_embedder(folder, SMALL, scale=8, optimizer="adamw", layer_decay=0.8),
    "embedder-token-relative-average": lambda folder: save_embedder(
        folder, relative(folder), pool="token", dim=None, scale=8, **AVERAGE
    ),
    "segmenter": lambda folder: save_segmenter(folder, {**PLAIN, "depth": 2}, [32, 64], **SEGMENTER),
    "segmenter-patches-of-14": lambda folder: save_segmenter(
        folder, {**PLAIN, "patch_size": 14, "image_size": 42}, 64, **SEGMENTER
    ),
    "embedder-swin": lambda folder: save_embedder(folder, TINY_SWIN, scale=8, optimizer="adamw", layer_decay=0.8),
    "segmenter-swin": lambda folder: save_segmenter(folder, TINY_SWIN, [64, 32], **SEGMENTER),
    "segmenter-registers": lambda folder: save_segmenter(folder, REGISTERS, 64, **SEGMENTER),
    "segmenter-relative-lora-average": lambda folder: save_segmenter(
        folder, relative(folder), [64, 32], **SEGMENTER, **LORA, **AVERAGE
    ),
}
SHORT = ("embedder", "segmenter")
"""Cases that every change of ehm runs."""
OF_ANY_SIZE = {
    "embedder-scales": lambda folder: save_embedder(folder, REGISTERS, scales=[0.7, 1, 1.5]),
    "embedder-longest": lambda folder: save_embedder(folder, SMALL, longest=48, scales=[1, 1.5]),
    "embedder-longest-query": lambda folder: save_embedder(folder, QUERY, longest=48, pool="map"),
    "segmenter-whole": lambda folder: save_segmenter(folder, REGISTERS, 64, inference=WHOLE, **SEGMENTER),
    "segmenter-whole-rotary": lambda folder: save_segmenter(folder, ROTARY, [32, 64], inference=WHOLE, **SEGMENTER),
}
"""Cases whose images have several sizes."""


@pytest.fixture
def first(case, tmp_path):
    """A checkpoint with images in the size that it takes beside it."""
    path = (CASES | OF_ANY_SIZE)[case](tmp_path)
    size = open_checkpoint(path).metadata["image_size"]
    np.save(path / "images.npy", np.random.default_rng(0).integers(0, 256, (4, *size, 3), dtype=np.uint8))
    return path


def is_trained(name):
    """Not the biases that a batch norm takes off again: rounding alone gives them a gradient."""
    return not (".neck." in name and name.endswith(".bias"))


def assert_alike(ours, theirs):
    left = np.load(ours / "results.npz")
    right = np.load(theirs / "results.npz")
    assert sorted(left.files) == sorted(right.files)
    np.testing.assert_allclose(left["losses"], right["losses"], rtol=2e-5)
    for name in filter(is_trained, right.files):
        if name == "after/pixels":
            # weights that differ in their last digits by then decide near-ties between two classes
            assert (left[name] != right[name]).mean() < 0.02
            continue
        largest = np.abs(right[name]).max()
        limit = 1e-3 if name.startswith("gradient/pooling.parts") else 1e-4
        np.testing.assert_allclose(left[name], right[name], rtol=0, atol=limit * largest, err_msg=name)
    weights = dict(elsewhere.trained(list_weights(theirs)))
    for name, value in elsewhere.trained(list_weights(ours)):
        if is_trained(name):
            np.testing.assert_allclose(value, weights[name], rtol=1e-4, atol=2e-4, err_msg=name)


def list_weights(checkpoint):
    """The parameters, and the weights in training and low-rank updates beside them."""
    state = open_checkpoint(checkpoint).state
    beside = {name: value for name, value in state.optimizer.items() if name.startswith(("trained/", "lora"))}
    return state.model | beside


@every_other_device
@pytest.mark.parametrize("case", elsewhere.mark_full(CASES, SHORT))
def test_predictions_losses_gradients_and_weights_are_torchs(device, case, first, tmp_path):
    here = parity.run("cpu", first, 4, tmp_path / "here")
    there = device(first, 4, tmp_path / "there")
    assert_alike(there, here)
    # a run that comes back goes on as if it had stayed
    back = parity.run("cpu", there, 2, tmp_path / "back")
    stayed = parity.run("cpu", here, 2, tmp_path / "stayed")
    losses = [np.load(path / "results.npz")["losses"] for path in (here, stayed, back)]
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-4)
    assert losses[1][-1] < losses[0][0]


@every_other_device
@pytest.mark.parametrize("case", elsewhere.mark_full(OF_ANY_SIZE, ("embedder-longest",)))
def test_predictions_of_images_of_any_size_are_torchs(device, case, first, tmp_path):
    ours = np.load(device(first, 0, tmp_path / "there") / "results.npz")
    theirs = np.load(parity.run("cpu", first, 0, tmp_path / "here") / "results.npz")
    assert sorted(ours.files) == sorted(theirs.files)
    for name in theirs.files:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-5, err_msg=name)


@elsewhere.needs_mindspore
@pytest.mark.full_for("mindspore")
@pytest.mark.parametrize("case", ["segmenter-swin"])
def test_both_frameworks_export_the_same_file(first, tmp_path):
    said = elsewhere.ehm("export", first, "--out", tmp_path / "there")
    assert "Differs from mindspore by at most" in said
    export(first, out=tmp_path / "here")
    assert (tmp_path / "there/model.onnx").read_bytes() == (tmp_path / "here/model.onnx").read_bytes()
