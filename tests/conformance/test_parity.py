"""Every device against torch on the CPU: from the same weights, images and masks, the same numbers in float32.

Tolerances are about ten times what was measured between torch 2.14 and MindSpore 2.10: similarity 3e-8, saliency 7e-8,
loss 1e-7, gradients 2e-6 of each tensor's largest, weights after 20 steps of 1e-3 4e-6. A block that is off by a
thousandth is far outside of them. The gradient of SimMIM's loss jumps where a pixel is met: its weights differ by 5e-5.
Feature prediction follows a teacher that follows it: in torch alone, a change of the first weights by a millionth
becomes 1e-4. The first weights of a tokenizer, changed by 3e-7 in torch alone, end 2e-3 apart.
"""

from pathlib import Path

import elsewhere
import numpy as np
import parity
import pytest
from conftest import PRESENT
from task_checkpoints import scatter_updates, take_updates

from ehm import backends
from ehm.config import FinetuneConfig, TokenizerConfig
from ehm.storage.checkpoint import open_checkpoint, save_checkpoint

if "cpu" not in PRESENT:
    pytest.skip("parity is measured against torch on the CPU", allow_module_level=True)

OTHERS = [device for device in PRESENT if device not in ("cpu", "mindspore")]
SCRIPT = Path(parity.__file__)


SIMMIM = {"objective": "simmim", "mask": {"views": 2, "unit": 16, "channels": 0.34}, "model": {"drop_path": 0}}
SWIN = {
    "encoder": "swin_tiny",
    "patch_size": 2,
    # windows that do not divide the map, some of them moved
    "model": {"width": 8, "depth": [2, 1], "heads": [1, 2], "window": 3, "drop_path": 0, "decoder_heads": 1},
    "mask": {"views": 2, "unit": 8, "blocks": 3},
}
DINOV2 = {"registers": 1, "layer_scale": True, "mlp": "swiglu_packed"}
DINOV3 = {
    "registers": 1,
    "added_positions": False,
    "layer_scale": True,
    "rotary": {"kind": "dinov3"},
    "norm_before": True,  # CLIP's
}
EVA = {
    "rotary": {"kind": "eva", "halves": False, "reference_grid": [2, 3]},
    "norm_values": True,
    "separate_heads": True,
    "mlp": "swiglu",
    "norm_mlp": True,
    "prefix_positions": False,
}
AIMV2 = {
    "class_token": False,
    "norm": "rms",
    "norm_patches": True,
    "bias": False,
    "output_bias": False,
    "mlp": "quick_gelu",  # CLIP's
}
OBJECTIVES = {
    "mae": {},
    "simmim": SIMMIM,
    "swin": {"objective": "simmim", **SWIN},
    "beit": {**SIMMIM, "objective": "beit"},
    "beit-swin": {"objective": "beit", **SWIN},
    "feature": {"objective": "feature", "mask": {"source": "teacher"}, "optim": {"ema_decay": 0.9}},
    "feature-cosine": {
        "objective": "feature",
        "model": {"loss": "cosine", "form": DINOV2, "teacher": "start"},
        "mask": {"source": "teacher", "channels": 0.34},
    },
    "mae-dinov3": {"model": {"form": DINOV3}},
    "mae-eva": {"model": {"form": EVA}},
    "mae-relative": {"model": {"relative": True, "freeze": 1}, "mask": {"channels": 0.34}, "layer_decay": 0.8},
    "beit-aimv2": {
        **SIMMIM,
        "objective": "beit",
        "model": {"drop_path": 0, "relative": False, "form": {**AIMV2, "norm_queries": True, "mlp": "gelu_tanh"}},
    },
}
"""Settings of the objectives, with encoders that show every part of a Swin and of each family of ViTs.

Some hide one channel of three.
"""


@pytest.fixture
def objective():
    return "mae"


@pytest.fixture
def dalle(tmp_path):
    """Tensors of an untrained encoder of DALL-E's, of tiny sizes, as both frameworks read them."""
    import torch
    from safetensors.torch import save_file

    from ehm.backends.torch.models.dalle import DalleEncoder

    torch.manual_seed(0)
    save_file(DalleEncoder(vocabulary=16, width=16, groups=3, blocks=1).state_dict(), tmp_path / "dalle.safetensors")
    return tmp_path / "dalle.safetensors"


@pytest.fixture
def first(objective, config, batch, tmp_path, request):
    values = OBJECTIVES[objective]
    if values.get("objective") == "beit":
        tokenizer = str(request.getfixturevalue("dalle" if objective == "beit-swin" else "tokenizer"))
        values = {**values, "model": {**values["model"], "tokenizer": tokenizer}}
    if values.get("model", {}).get("teacher") == "start":
        taught = config(model={"form": values["model"]["form"]})
        meta = {"kind": "pretrain", "step": 0, "config": taught.model_dump(mode="json")}
        teacher = save_checkpoint(tmp_path / "teacher", backends.get("cpu").create_learner(taught).state(), meta)
        values = {**values, "model": {**values["model"], "init": str(teacher)}}
    settings = config(**values)
    state = backends.get("cpu").create_learner(settings).state()
    # the others would enlarge the last bits of float32 in torch alone
    scatter(state.model, enlarge=objective in ("simmim", "beit"))
    return parity.start(tmp_path / "start", state, batch[0], kind="pretrain", config=settings.model_dump())


def scatter(weights, enlarge=True):
    """Enlarge what forms of ViTs start with, zeros and small numbers, under which errors would not show."""
    rng = np.random.default_rng(1)
    for name, value in weights.items():
        if name.endswith(("q_bias", "v_bias", "bias_table")):
            value[:] = rng.normal(size=value.shape)
        elif "gamma" in name:
            value[:] = rng.uniform(0.5, 1.5, value.shape)
        elif enlarge and name.startswith("blocks.") and value.ndim == 2:
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
    assert sorted(left.files) == sorted(right.files)
    for name in right.files:
        largest = np.abs(right[name]).max()
        limit = 2e-5 * largest if name.startswith("gradient/") else 5e-6 * max(largest, 1)
        if name.startswith("gradient/") and name.endswith("relative_position_bias_table"):
            # summed over all images and places, in another order where attention is not fused
            limit = 1e-4 * largest
        if name in ("saliency", "gradient/head.1.bias"):
            # the latter is a sum of thirds that cancel, as the batch has as many images of each class
            limit = 1e-6
        np.testing.assert_allclose(left[name], right[name], rtol=0, atol=limit, err_msg=name)
    weights = dict(elsewhere.trained(open_checkpoint(theirs).model))
    limit = 4e-5
    if weights.keys() & {"decoder.0.weight", "feature_pred.weight"}:
        limit = 4e-4
    elif "codebook" in weights:
        limit = 5e-3
    for name, value in elsewhere.trained(open_checkpoint(ours).model):
        np.testing.assert_allclose(value, weights[name], rtol=1e-5, atol=limit, err_msg=name)
    compare_beside(ours, theirs, limit)
    return right.files


def compare_beside(ours, theirs, limit):
    """Compare what a state has beside the parameters: averages, weights in training, and low-rank updates."""
    others = dict(elsewhere.trained(open_checkpoint(theirs).state.optimizer))
    own = dict(elsewhere.trained(open_checkpoint(ours).state.optimizer))
    assert own.keys() == others.keys()
    for name, value in own.items():
        if name.startswith(("ema/", "trained/", "lora/", "lora_ema/")):
            np.testing.assert_allclose(value, others[name], rtol=1e-5, atol=limit, err_msg=name)


@every_other_device
@pytest.mark.parametrize("objective", elsewhere.mark_full(OBJECTIVES, ("mae", "beit-swin")))
def test_similarity_saliency_loss_gradients_and_weights_are_torchs(device, first, objective, tmp_path):
    found = compare(device(first, 20, tmp_path / "there"), parity.run("cpu", first, 20, tmp_path / "here"))
    names = {name.removeprefix("gradient/") for name in found if name.startswith("gradient/")}
    fixed = ("pos_embed", "decoder_pos_embed")  # MAE's
    if "freeze" in OBJECTIVES[objective].get("model", {}):
        fixed += ("patch_embed", "cls_token", "rel_pos_bias", "blocks.0")
    assert names >= {name for name in open_checkpoint(first).model if not name.startswith(fixed)}


@elsewhere.needs_mindspore
@pytest.mark.full_for("mindspore")
def test_an_error_in_one_block_is_seen(first, tmp_path):
    here, there = parity.run("cpu", first, 20, tmp_path / "here"), in_mindspore(first, 20, tmp_path / "there", True)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        compare(there, here)


@every_other_device
@pytest.mark.parametrize(
    ("objective", "tolerance"),
    [
        ("mae", 1e-6),
        # with weights that are scattered, rounding grows faster
        pytest.param("beit-swin", 1e-4, marks=pytest.mark.full_for("mindspore")),
        pytest.param("feature", 1e-4, marks=pytest.mark.full_for("mindspore")),
    ],
)
def test_a_run_that_crosses_over_and_back_goes_on_as_if_it_had_stayed(device, first, objective, tolerance, tmp_path):
    stayed = np.load(parity.run("cpu", first, 30, tmp_path / "stayed") / "results.npz")["losses"]
    there = device(parity.run("cpu", first, 10, tmp_path / "before"), 10, tmp_path / "there")
    back = parity.run("cpu", there, 10, tmp_path / "back")
    crossed = [np.load(path / "results.npz")["losses"] for path in (there, back)]
    np.testing.assert_allclose(np.concatenate(crossed), stayed[10:], rtol=tolerance)
    assert stayed[-1] < 0.95 * stayed[10]


@every_other_device
@pytest.mark.full_for("mindspore")
def test_a_tokenizer_and_its_steps_are_torchs(device, batch, tmp_path):
    sizes = {"vocabulary": 24, "width": 16, "stride": 4, "image_size": [32, 48]}
    optim = {"batch_size": 6, "epochs": 1, "warmup_epochs": 0, "dtype": "float32", "clip_grad": None}
    config = TokenizerConfig.model_validate({**sizes, "kl_weight": 0.1, "optim": optim})
    state = backends.get("cpu").create_tokenizer(config).state()
    meta = {"kind": "tokenizer", "config": config.model_dump(mode="json")}
    first = parity.start(tmp_path / "start", state, batch[0], **meta)
    here, there = parity.run("cpu", first, 20, tmp_path / "here"), device(first, 20, tmp_path / "there")
    found = compare(there, here)
    assert sum(name.startswith("gradient/") for name in found) == len(state.model) - 3  # all but running moments
    losses = np.load(here / "results.npz")["losses"]
    assert losses[-1] < losses[0]


@every_other_device
@pytest.mark.full_for("mindspore")
def test_low_rank_updates_and_their_average_are_torchs_and_cross_over(device, config, batch, tmp_path):
    taught = config(model={"form": DINOV3})
    meta = {"kind": "pretrain", "step": 0, "config": taught.model_dump(mode="json")}
    start = save_checkpoint(tmp_path / "taught", backends.get("cpu").create_learner(taught).state(), meta)
    lora = {"rank": 2, "alpha": 8, "targets": ["attn.qkv", "attn.proj", "mlp"], "norms": True}
    settings = config(
        model={"form": DINOV3, "init": str(start), "freeze": 1}, lora=lora, layer_decay=0.8, optim={"ema_decay": 0.8}
    )
    state = backends.get("cpu").create_learner(settings).state()
    scatter_updates(state, settings.lora)
    state.optimizer = take_updates(state) | {f"ema/{name}": value for name, value in state.model.items()}
    first = parity.start(tmp_path / "start", state, batch[0], kind="pretrain", config=settings.model_dump())
    here, there = parity.run("cpu", first, 12, tmp_path / "here"), device(first, 12, tmp_path / "there")
    found = compare(there, here)
    learning = {name.removeprefix("gradient/") for name in found if name.startswith("gradient/")}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    factors = {
        f"blocks.{block}.{layer}.lora_{part}.default.weight" for block in (1, 2) for layer in layers for part in "AB"
    }
    norms = {
        f"blocks.{block}.norm{number}.{part}" for block in (1, 2) for number in (1, 2) for part in ("weight", "bias")
    }
    encoders = {name for name in learning if not name.startswith(("decoder", "mask_token"))}
    assert encoders == factors | norms | {"norm.weight", "norm.bias"}
    back = parity.run("cpu", there, 4, tmp_path / "back")
    stayed = parity.run("cpu", here, 4, tmp_path / "stayed")
    losses = [np.load(path / "results.npz")["losses"] for path in (stayed, back)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


TASKS = {
    "finetune": {"layer_decay": 0.65, "optim": {"clip_grad": 0.1, "accumulate": 2}},
    "finetune-token-relative": {"pool": "token", "layer_decay": 0.8},
    "probe-lars": {"frozen": True, "pool": "token", "layer_decay": 1, "optimizer": "lars"},
    "finetune-labels-average": {"loss": "binary_cross_entropy", "optim": {"ema_decay": 0.8}},
    "probe-sgd-labels-average": {
        "frozen": True,
        "layer_decay": 1,
        "optimizer": "sgd",
        "loss": "binary_cross_entropy",
        "optim": {"accumulate": 2, "ema_decay": 0.8},
    },
}


@every_other_device
@pytest.mark.parametrize("task", elsewhere.mark_full(TASKS, ("finetune",)))
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
