"""Every objective on every encoder that it takes, whatever the backend."""

import numpy as np
import pytest

from ehm.config import ModelSource, TrainConfig
from ehm.errors import BackendError
from ehm.masking import cosine_similarity, make_masker
from ehm.storage.checkpoint import save_checkpoint

SIZES = {
    "vit_tiny": {"patch_size": 4, "model": {"width": 24, "depth": 2, "heads": 3, "decoder_depth": 1}},
    "swin_tiny": {"patch_size": 2, "model": {"width": 8, "depth": [2, 2, 1], "heads": [1, 2, 2]}},
}
COMBINATIONS = [
    ("mae", "vit_tiny"),
    ("simmim", "vit_tiny"),
    ("simmim", "swin_tiny"),
    ("beit", "vit_tiny"),
    ("beit", "swin_tiny"),
    ("feature", "vit_tiny"),
]

every_combination = pytest.mark.parametrize(("objective", "encoder"), COMBINATIONS)
full_for_mindspore = pytest.mark.full_for("mindspore")


@pytest.fixture
def make(backend, make_learner, request):
    """A configuration and its learner, or a skip that says why the backend has none."""

    def one(objective, encoder, **sections):
        values = {
            "objective": objective,
            "encoder": encoder,
            "image_size": [32, 48],
            "mask": {"blocks": 3, "unit": 16, "ratio": 0.5},
            "optim": {"batch_size": 6, "epochs": 2, "warmup_epochs": 0, "dtype": "float32"},
            **SIZES[encoder],
        }
        if objective == "feature":
            values["model"] = {**values["model"], "decoder_width": 16, "decoder_heads": 2}
            values["mask"] = {**values["mask"], "source": "online"}
        if objective == "beit":
            values["model"] = {**values["model"], "tokenizer": str(request.getfixturevalue("tokenizer"))}
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        config = TrainConfig.model_validate(values)
        if backend.name == "mindspore" and objective == "mae":
            pytest.skip("every graph takes seconds to compile there; test_learner.py and test_parity.py have mae")
        try:
            return config, make_learner(config)
        except BackendError as error:
            pytest.skip(str(error))

    return one


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 32, 48, 3), dtype=np.uint8)


def masks(config, count, step=0):
    """Random masks of units: (count, 6)."""
    units = config.units[0] * config.units[1]
    order = np.random.default_rng([3, step]).random((count, units)).argsort(axis=1)
    return order < round(config.masks.ratio * units)


def step(learner, images, mask, lr, weight_decay):
    """Take a training step; returns its loss."""
    return float(learner.train_step(learner.prepare_batch(images), mask, lr, weight_decay)["loss"])


def seen(learner, images, look="similarity"):
    return np.concatenate(list(getattr(learner.prepare_batch(images), f"compute_{look}")()))


@pytest.mark.parametrize(
    ("objective", "encoder"),
    [
        pytest.param(*each, marks=() if each == ("simmim", "vit_tiny") else full_for_mindspore, id="-".join(each))
        for each in COMBINATIONS
    ],
)
def test_it_learns_goes_on_and_repeats(make, images, objective, encoder):
    drop = 0.0 if objective in ("mae", "feature") else 0.3
    sections = {"optim": {"ema_decay": 0.9, "accumulate": 2}, "model": {"drop_path": drop}}
    config, learner = make(objective, encoder, **sections)
    mask = masks(config, 6)
    losses = [step(learner, images, mask, 3e-3, 0.05) for _ in range(15)]
    assert np.mean(losses[-3:]) < 0.98 * losses[0]

    _, again = make(objective, encoder, **sections)
    again.load(learner.state())
    for _ in range(2):
        ours, theirs = (step(one, images, mask, 3e-3, 0.05) for one in (learner, again))
        assert ours == theirs
    for name, value in learner.state().model.items():
        np.testing.assert_array_equal(value, again.state().model[name], err_msg=name)


@full_for_mindspore
@every_combination
@pytest.mark.parametrize("similarity", ["attention", "cosine"])
def test_hierarchies_are_of_mask_units(make, images, objective, encoder, similarity):
    config, learner = make(objective, encoder, mask={"similarity": similarity, "views": 2})
    found = seen(learner, images)
    assert found.shape == (6, 6, 6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, found.transpose(0, 2, 1), atol=1e-7)
    if similarity == "cosine":
        np.testing.assert_allclose(np.diagonal(found, axis1=1, axis2=2), 1, atol=1e-5)
    masker = make_masker("evolved", config.masks, config.units)
    mask, figures = masker(learner.prepare_batch(images), 0.6, (5,))
    assert mask.shape == (12, 6)
    assert (mask.sum(axis=1) == 3).all()
    assert 1 <= figures["tree_height"] <= 6
    assert np.isfinite(step(learner, images, mask, 1e-3, 0.05))


@full_for_mindspore
@every_combination
def test_units_are_the_mean_of_their_tokens(make, images, objective, encoder):
    """The same weights at units of one output cell, and at units of several."""
    config, coarse = make(objective, encoder)
    stride = config.spec.stride
    _, fine = make(objective, encoder, mask={"unit": stride})
    fine.load(coarse.state())
    (down, across), factor = config.units, 16 // stride
    looks = ["similarity"] if encoder == "swin_tiny" else ["similarity", "saliency"]
    for look in looks:
        cells = seen(fine, images, look)
        axes = cells.ndim - 1
        pooled = cells.reshape(6, *(down, factor, across, factor) * axes)
        pooled = pooled.mean(axis=tuple(axis for axis in range(1, pooled.ndim) if axis % 2 == 0))
        np.testing.assert_allclose(seen(coarse, images, look), pooled.reshape(6, *(6,) * axes), rtol=1e-5, atol=1e-7)


@full_for_mindspore
@every_combination
def test_the_encoder_of_a_run_sees_what_its_learner_saw(backend, make, images, tmp_path, objective, encoder):
    """Downstream the same weights make another network, in which every block has a table of biases."""
    stride = SIZES[encoder]["patch_size"] * (4 if encoder == "swin_tiny" else 1)
    config, learner = make(objective, encoder, mask={"unit": stride})
    for _ in range(2):
        learner.train_step(learner.prepare_batch(images), masks(config, 6), 1e-2, 0.05)
    meta = {"kind": "pretrain", "step": 2, "config": config.model_dump(mode="json")}
    path = save_checkpoint(tmp_path, learner.state(), meta)
    trained = backend.create_encoder(ModelSource(init=str(path)))
    assert trained.grid == config.units
    np.testing.assert_allclose(trained.compute_similarity(images, 3), seen(learner, images), atol=1e-6)
    _, other = make(objective, encoder, mask={"unit": stride, "similarity": "cosine"})
    other.load(learner.state())
    np.testing.assert_allclose(cosine_similarity(trained.compute_tokens(images, 3)), seen(other, images), atol=1e-6)


@full_for_mindspore
@every_combination
def test_recomputing_and_types(backend, make, images, objective, encoder):
    config, plain = make(objective, encoder)
    mask = masks(config, 6)
    _, recomputed = make(objective, encoder, run={"grad_checkpointing": True})
    losses = [[step(one, images, mask, 1e-3, 0.05) for _ in range(3)] for one in (plain, recomputed)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    for dtype in set(backend.describe_device().dtypes) - {"float32"}:
        _, lower = make(objective, encoder, optim={"dtype": dtype})
        assert step(lower, images, mask, 1e-3, 0.05) == pytest.approx(losses[0][0], rel=0.02)


@every_combination
def test_masks_made_on_the_device_are_the_hosts(make, images, objective, encoder):
    config, learner = make(objective, encoder, mask={"build": "device"}, model={"drop_path": 0.0})
    results = []
    for build in ("host", "device"):
        masker = make_masker("evolved", config.masks, config.units, build)
        mask, _ = masker(learner.prepare_batch(images), 0.4, (5,))
        results.append(step(learner, images, mask, 0.0, 0.0))
    assert results[0] == pytest.approx(results[1], rel=1e-6)


@full_for_mindspore
def test_what_decays(make, images):
    """Not the mask token, the class token and tables of biases, as in the published code."""
    config, plain = make("simmim", "vit_tiny", model={"drop_path": 0.0})
    _, decayed = make("simmim", "vit_tiny", model={"drop_path": 0.0})
    mask = masks(config, 6)
    plain.train_step(plain.prepare_batch(images), mask, 1e-3, 0.0)
    decayed.train_step(decayed.prepare_batch(images), mask, 1e-3, 0.5)
    before, after = plain.state().model, decayed.state().model
    still = {name for name in before if np.array_equal(before[name], after[name])}
    assert {"mask_token", "cls_token", "rel_pos_bias.relative_position_bias_table"} <= still
    assert {name for name in before if before[name].ndim > 1} - still == {
        name for name in before if name.endswith("weight") and before[name].ndim > 1
    }
