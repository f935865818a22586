"""Every device against torch on the CPU: from the same weights, images and masks, the same numbers in float32.

Tolerances are about ten times what was measured between torch 2.14 and MindSpore 2.10: similarity 3e-8, saliency 7e-8,
loss 1e-7, gradients 2e-6 of each tensor's largest, weights after 20 steps of 1e-3 4e-6. A block that is off by a
thousandth is far outside of them. The gradient of SimMIM's loss jumps where a pixel is met: its weights differ by 5e-5.
"""

from pathlib import Path

import elsewhere
import numpy as np
import parity
import pytest
from conftest import PRESENT

from ehm import backends
from ehm.config import FinetuneConfig
from ehm.storage.checkpoint import open_checkpoint, save_checkpoint

if "cpu" not in PRESENT:
    pytest.skip("parity is measured against torch on the CPU", allow_module_level=True)

OTHERS = [device for device in PRESENT if device not in ("cpu", "mindspore")]
SCRIPT = Path(parity.__file__)


SIMMIM = {"objective": "simmim", "mask": {"views": 2, "unit": 16}, "model": {"drop_path": 0}}
SWIN = {
    "encoder": "swin_tiny",
    "patch_size": 2,
    # windows that do not divide the map, some of them moved
    "model": {"width": 8, "depth": [2, 1], "heads": [1, 2], "window": 3, "drop_path": 0, "decoder_heads": 1},
    "mask": {"views": 2, "unit": 8, "blocks": 3},
}
DINOV2 = {"registers": 1, "layer_scale": True, "mlp": "swiglu_packed"}
DINOV3 = {"registers": 1, "added_positions": False, "layer_scale": True, "rotary": {"kind": "dinov3"}}
EVA = {
    "rotary": {"kind": "eva", "halves": False, "reference_grid": [2, 3]},
    "norm_values": True,
    "separate_heads": True,
}
AIMV2 = {"class_token": False, "norm": "rms", "norm_patches": True, "bias": False, "output_bias": False}
OBJECTIVES = {
    "mae": {},
    "simmim": SIMMIM,
    "swin": {"objective": "simmim", **SWIN},
    "beit": {**SIMMIM, "objective": "beit"},
    "beit-swin": {"objective": "beit", **SWIN},
    "feature": {"objective": "feature", "mask": {"source": "teacher"}, "optim": {"ema_decay": 0.9}},
    "feature-cosine": {
        "objective": "feature",
        "model": {"loss": "cosine", "form": DINOV2},
        "mask": {"source": "ema"},
        "optim": {"ema_decay": 0.9},
    },
    "mae-dinov3": {"model": {"form": {**DINOV3, "mlp": "swiglu"}}},
    "mae-eva": {"model": {"form": EVA}},
    "mae-relative": {"model": {"relative": True}},
    "simmim-clip": {
        **SIMMIM,
        "model": {"drop_path": 0, "relative": False, "form": {"norm_before": True, "mlp": "quick_gelu"}},
    },
    "beit-aimv2": {
        **SIMMIM,
        "objective": "beit",
        "model": {"drop_path": 0, "relative": False, "form": {**AIMV2, "norm_queries": True, "mlp": "gelu_tanh"}},
    },
}
"""Settings of the objectives, with encoders that show every part of a Swin and of each family of ViTs."""


@pytest.fixture
def objective():
    return "mae"


@pytest.fixture
def first(objective, config, batch, tmp_path, request):
    values = OBJECTIVES[objective]
    if values.get("objective") == "beit":
        tokenizer = str(request.getfixturevalue("tokenizer"))
        values = {**values, "model": {**values["model"], "tokenizer": tokenizer}}
    settings = config(**values)
    state = backends.get("cpu").create_learner(settings).state()
    if objective != "mae":
        scatter(state.model)
    return parity.start(tmp_path / "start", state, batch[0], kind="pretrain", config=settings.model_dump())


def scatter(weights):
    """Enlarge what the relative form starts with, zeros and small numbers, under which errors would not show."""
    rng = np.random.default_rng(1)
    for name, value in weights.items():
        if name.endswith(("q_bias", "v_bias", "bias_table")):
            value[:] = rng.normal(size=value.shape)
        elif "gamma_" in name:
            value[:] = rng.uniform(0.5, 1.5, value.shape)
        elif name.startswith("blocks.") and value.ndim == 2:
            value *= 5


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
    assert left.files == right.files
    for name in right.files:
        largest = np.abs(right[name]).max()
        limit = 2e-5 * largest if name.startswith("gradient/") else 5e-6 * max(largest, 1)
        if name.startswith("gradient/") and name.endswith("relative_position_bias_table"):
            # summed over all images and places, in another order where attention is not fused
            limit = 1e-4 * largest
        if name == "saliency":
            limit = 1e-6
        np.testing.assert_allclose(left[name], right[name], rtol=0, atol=limit, err_msg=name)
    weights = dict(elsewhere.trained(open_checkpoint(theirs).model))
    limit = 4e-4 if "decoder.0.weight" in weights else 4e-5
    for name, value in elsewhere.trained(open_checkpoint(ours).model):
        np.testing.assert_allclose(value, weights[name], rtol=1e-5, atol=limit, err_msg=name)
    return right.files


@every_other_device
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_similarity_saliency_loss_gradients_and_weights_are_torchs(device, first, objective, tmp_path):
    found = compare(device(first, 20, tmp_path / "there"), parity.run("cpu", first, 20, tmp_path / "here"))
    names = {name.removeprefix("gradient/") for name in found if name.startswith("gradient/")}
    # all but MAE's fixed positions
    assert names >= {name for name in open_checkpoint(first).model if not name.endswith("pos_embed")}


@elsewhere.needs_mindspore
@pytest.mark.full_for("mindspore")
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


TASKS = {
    "finetune": {"layer_decay": 0.65, "optim": {"clip_grad": 0.1, "accumulate": 2}},
    "finetune-token-relative": {"pool": "token", "layer_decay": 0.8},
    "probe-lars": {"frozen": True, "pool": "token", "layer_decay": 1, "optimizer": "lars"},
    "probe-sgd": {"frozen": True, "layer_decay": 1, "optimizer": "sgd", "optim": {"accumulate": 2}},
}


@every_other_device
@pytest.mark.parametrize(
    "task",
    ["finetune", *(pytest.param(task, marks=pytest.mark.full_for("mindspore")) for task in list(TASKS)[1:])],
)
def test_a_classifier_its_steps_and_its_encoder_are_torchs(device, task, config, batch, tmp_path):
    optim = {"batch_size": 6, "epochs": 2, "warmup_epochs": 0, "dtype": "float32", "betas": [0.9, 0.999]}
    values = {**TASKS[task], "optim": {**optim, **TASKS[task].get("optim", {})}}
    values["model"] = {"width": 24, "depth": 3, "heads": 3, "image_size": [32, 48], "patch_size": 8, "drop_path": 0}
    if task.endswith("relative"):  # such a ViT comes from pretraining only
        pretraining = config(**SIMMIM)
        meta = {"kind": "pretrain", "step": 0, "config": pretraining.model_dump()}
        start = save_checkpoint(tmp_path / "simmim", backends.get("cpu").create_learner(pretraining).state(), meta)
        values["model"] = {"init": str(start), "drop_path": 0}
    settings = FinetuneConfig.model_validate(values)
    classifier = backends.get("cpu").create_task_learner(settings, 3)
    meta = {"kind": "classifier", "classes": ["a", "b", "c"], "image_size": [32, 48]}
    meta |= {"encoder": dict(classifier.architecture), "config": settings.model_dump()}
    state = classifier.state()
    for name in state.model.keys() & {"head.weight"}:
        state.model[name] *= 5000  # from MAE's 2e-5 to a head that lets gradients through
    if task.endswith("relative"):
        scatter(state.model)
    first = parity.start(tmp_path / "start", state, batch[0], **meta)
    here, there = parity.run("cpu", first, 12, tmp_path / "here"), device(first, 12, tmp_path / "there")
    compare(there, here)
    losses = np.load(here / "results.npz")["losses"]
    assert losses[-1] < losses[0]
