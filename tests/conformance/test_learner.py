"""The behaviour of learners that the shared loop relies on, for every backend."""

import os

import numpy as np
import pytest

from ehm.backends.base import TakesMaskPieces
from ehm.config import ModelSource
from ehm.errors import BackendError, CheckpointError
from ehm.masking import BatchMasks, make_masker
from ehm.masking.similarity import NotFiniteAttentionError
from ehm.storage.arrays import LearnerState, split_average
from ehm.storage.checkpoint import save_checkpoint

LOOKS = ("similarity", "saliency")

either_look = pytest.mark.parametrize("look", LOOKS)
full_for_mindspore = pytest.mark.full_for("mindspore")


def take_steps(learner, images, mask, count, look="similarity"):
    """Take steps on the same images, each behind a ``look`` at them if there is one; returns the loss of each step."""
    losses = []
    for _ in range(count):
        prepared = learner.prepare_batch(images)
        if look is not None:
            getattr(prepared, f"compute_{look}")()
        losses.append(float(learner.train_step(prepared, mask, 1e-3, 0.05)["loss"]))
    return losses


def compute_look(learner, images, look="similarity"):
    """Return the similarity, or the saliency, of all images at once."""
    return np.concatenate(list(getattr(learner.prepare_batch(images), f"compute_{look}")()))


def assert_equal(left, right, rtol=0.0, atol=0.0):
    for name in ("model", "optimizer"):
        ours, theirs = getattr(left, name), getattr(right, name)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            np.testing.assert_allclose(value, theirs[key], rtol=rtol, atol=atol, err_msg=key)


def test_similarity_is_a_symmetric_matrix_of_attention(make_learner, config, batch):
    similarity = compute_look(make_learner(config()), batch[0])
    assert similarity.shape == (6, 24, 24)
    assert similarity.dtype == np.float32
    np.testing.assert_array_equal(similarity, similarity.transpose(0, 2, 1))
    assert np.all(similarity > 0)
    assert np.all(similarity.sum((1, 2)) < 24)  # the class token takes its share of every row


def test_saliency_is_the_share_of_its_attention_that_the_class_token_gives_to_patches(
    backend, make_learner, config, batch
):
    for dtype in backend.describe_device().dtypes:
        saliency = compute_look(make_learner(config(optim={"dtype": dtype})), batch[0], "saliency")
        assert saliency.shape == (6, 24)
        assert saliency.dtype == np.float32
        assert np.all(saliency > 0)
        assert np.all(saliency.sum(axis=1) < 1)  # it looks at itself, too
        assert np.all(saliency.sum(axis=1) > 0.5)


def test_saliency_is_that_of_the_encoder(backend, make_learner, config, batch, tmp_path):
    """The last block's attention as the backend's encoder gives it, from the same weights."""
    settings = config()
    learner = make_learner(settings)
    take_steps(learner, *batch, count=3)
    meta = {"kind": "pretrain", "step": 3, "config": settings.model_dump(mode="json")}
    path = save_checkpoint(tmp_path, learner.state(), meta)
    attention = backend.create_encoder(ModelSource(init=str(path))).compute_attention(batch[0])
    np.testing.assert_allclose(compute_look(learner, batch[0], "saliency"), attention.mean(axis=1)[:, 0, 1:], atol=1e-6)


@pytest.mark.parametrize("objective", ["mae", pytest.param("simmim", marks=full_for_mindspore)])
def test_pooled_features_are_those_of_the_encoder(backend, make_learner, config, batch, tmp_path, objective):
    """The model and its average have them from the same weights; to look at them changes no step."""
    settings = config(objective=objective, optim={"ema_decay": 0.5}, mask={"unit": 8}, model={"drop_path": 0})
    learner = make_learner(settings)
    other = make_learner(settings)
    images, mask = batch
    learner.compute_features(images)
    learner.compute_features(images[:4], average=True)
    take_steps(learner, images, mask, count=3)
    take_steps(other, images, mask, count=3)
    state = learner.state()
    assert_equal(state, other.state())

    _, average = split_average(state.optimizer)
    meta = {"kind": "pretrain", "step": 3, "config": settings.model_dump(mode="json")}
    for name, arrays in (("online", state.model), ("average", average)):
        path = save_checkpoint(tmp_path / name, LearnerState(arrays, {}), meta)
        expected = backend.create_encoder(ModelSource(init=str(path))).compute_features(images)
        found = learner.compute_features(images, average=name == "average")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not np.allclose(learner.compute_features(images), found, atol=1e-3)


@pytest.mark.parametrize("masking", ["attmask_high", "attmask_hint", "attmask_low", "mst", "epm"])
def test_masks_by_what_the_model_sees_are_steps_like_others(make_learner, config, batch, masking):
    settings = config(mask={"views": 2})
    learner = make_learner(settings)
    masker = make_masker(masking, settings.masks, settings.units)
    for progress in (0.0, 1.0):
        prepared = learner.prepare_batch(batch[0])
        mask, _ = masker(prepared, progress, (5,))
        assert mask.shape == (12, 24)
        assert (mask.sum(axis=1) == 18).all()
        assert np.isfinite(float(learner.train_step(prepared, mask, 1e-3, 0.05)["loss"]))


@full_for_mindspore
def test_a_part_of_a_step_begins_when_its_masks_are_made(make_learner, config, batch):
    """The masks of the second part are made behind the loss of the first one, and the step is that of whole masks."""
    settings = config(optim={"accumulate": 2})
    masker = make_masker("evolved", settings.masks, settings.units)
    images = batch[0]
    states = []
    for by_pieces in (False, True):
        learner = make_learner(settings)
        prepared = learner.prepare_batch(images)
        if by_pieces:
            events = []
            note_losses(learner, events)
            pieces = note_pieces(masker.iterate_pieces(prepared, 0.5, (5,)), events)
            masks = BatchMasks(pieces, len(images))
        else:
            masks, _ = masker(prepared, 0.5, (5,))
        learner.train_step(prepared, masks, 1e-3, 0.05)
        states.append(learner.state())
    assert isinstance(learner, TakesMaskPieces)
    assert events == ["masks", "part", "masks", "part"]
    assert_equal(*states)


def note_pieces(pieces, events):
    for piece in pieces:
        events.append("masks")
        yield piece


def note_losses(learner, events):
    """Note each part of a step as it is given to the device."""
    split = learner._split_mask

    def note(mask):
        found = split(mask)
        events.append("part")
        return found

    learner._split_mask = note


def test_training_lowers_the_loss_and_state_is_complete(make_learner, config, batch):
    learner = make_learner(config())
    losses = take_steps(learner, *batch, count=12)
    assert losses[-1] < 0.95 * losses[0]

    again = make_learner(config())
    again.load(learner.state())
    assert take_steps(learner, *batch, count=3) == take_steps(again, *batch, count=3)
    assert_equal(learner.state(), again.state())


def test_a_state_is_loaded_into_a_learner_that_has_trained(backend, config, batch):
    """MindSpore's graphs once went on with the weights that they had."""
    learner = backend.create_learner(config())
    before = learner.state()
    losses = take_steps(learner, *batch, count=3)
    learner.load(before)
    assert_equal(before, learner.state())
    assert take_steps(learner, *batch, count=3) == losses


@full_for_mindspore
def test_a_resumed_run_hides_the_channels_that_it_would_have_hidden(make_learner, config, batch):
    settings = config(mask={"channels": 0.34})
    whole = make_learner(settings)
    resumed = make_learner(settings)
    take_steps(whole, *batch, count=1, look=None)
    resumed.load(whole.state())
    assert take_steps(whole, *batch, count=2, look=None) == take_steps(resumed, *batch, count=2, look=None)


def test_equal_seeds_start_equal_and_others_do_not(backend, config):
    first, second = backend.create_learner(config()).state(), backend.create_learner(config()).state()
    assert_equal(first, second)
    other = backend.create_learner(config(run={"seed": 1})).state()
    assert not np.array_equal(first.model["blocks.0.attn.qkv.weight"], other.model["blocks.0.attn.qkv.weight"])


@either_look
def test_a_look_changes_no_update(make_learner, config, batch, look):
    with_look, without = make_learner(config()), make_learner(config())
    take_steps(with_look, *batch, count=3, look=look)
    take_steps(without, *batch, count=3, look=None)
    assert_equal(with_look.state(), without.state(), atol=1e-6)


def test_accumulation_equals_the_whole_batch(make_learner, config, batch):
    whole = make_learner(config())
    parts = make_learner(config(optim={"accumulate": 3}))
    np.testing.assert_allclose(take_steps(whole, *batch, count=4), take_steps(parts, *batch, count=4), rtol=1e-5)
    for look in LOOKS:
        expected = compute_look(whole, batch[0], look)
        np.testing.assert_allclose(compute_look(parts, batch[0], look), expected, rtol=1e-3, atol=1e-6)


@full_for_mindspore
def test_a_short_last_batch_still_steps(make_learner, config, batch):
    learner = make_learner(config(optim={"accumulate": 3}))
    before = learner.state().model["decoder_pred.bias"]
    learner.train_step(learner.prepare_batch(batch[0][:2]), batch[1][:2], 1e-3, 0.0)
    assert not np.array_equal(before, learner.state().model["decoder_pred.bias"])


def test_decay_spares_biases_norms_and_positions(make_learner, config, batch):
    plain, decayed = make_learner(config()), make_learner(config())
    plain.train_step(plain.prepare_batch(batch[0]), batch[1], 1e-3, 0.0)
    decayed.train_step(decayed.prepare_batch(batch[0]), batch[1], 1e-3, 0.5)
    before, after = plain.state().model, decayed.state().model
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in before if before[name].ndim > 1 and not name.endswith("pos_embed")}


@full_for_mindspore
def test_clipping_reports_the_norm_and_shortens_the_gradient(make_learner, config, batch):
    learner = make_learner(config(optim={"clip_grad": 1e-3}))
    metrics = learner.train_step(learner.prepare_batch(batch[0]), batch[1], 1e-3, 0.0)
    assert float(metrics["grad_norm"]) > 1e-3


@pytest.mark.parametrize("look", ["similarity", pytest.param("saliency", marks=full_for_mindspore)])
def test_average_of_weights_follows_them_and_looks(make_learner, config, batch, look):
    settings = config(optim={"ema_decay": 0.75}, mask={"source": "ema"})
    learner = make_learner(settings)
    name = "decoder_pred.weight"
    start = learner.state().model[name]
    first = compute_look(learner, batch[0], look)
    learner.train_step(learner.prepare_batch(batch[0]), batch[1], 1e-2, 0.0)
    state = learner.state()
    average = 0.75 * start + 0.25 * state.model[name]
    np.testing.assert_allclose(state.optimizer["ema/" + name], average, atol=1e-6)

    # a step may have a decay of its own, which rises over the run
    learner.train_step(learner.prepare_batch(batch[0]), batch[1], 1e-2, 0.0, 0.5)
    state = learner.state()
    average = 0.5 * average + 0.5 * state.model[name]
    np.testing.assert_allclose(state.optimizer["ema/" + name], average, atol=1e-6)

    online = make_learner(config())
    np.testing.assert_allclose(first, compute_look(online, batch[0], look), atol=1e-6)  # equal until the first step
    online.train_step(online.prepare_batch(batch[0]), batch[1], 1e-2, 0.0)
    online.train_step(online.prepare_batch(batch[0]), batch[1], 1e-2, 0.0)
    assert not np.allclose(compute_look(learner, batch[0], look), compute_look(online, batch[0], look), atol=1e-6)

    again = make_learner(settings)
    again.load(learner.state())
    np.testing.assert_array_equal(compute_look(learner, batch[0], look), compute_look(again, batch[0], look))


def test_bad_states_and_types_are_refused(backend, make_learner, config):
    learner = make_learner(config())
    state = learner.state()
    del state.model["norm.bias"]
    with pytest.raises(CheckpointError, match=r"norm\.bias is missing"):
        learner.load(state)
    absent = {"float32", "bfloat16", "float16"} - set(backend.describe_device().dtypes)
    for dtype in absent:
        with pytest.raises(BackendError, match=f"optim.dtype {dtype}"):
            backend.create_learner(config(optim={"dtype": dtype}))


@full_for_mindspore
def test_mixed_precision_trains_and_goes_on(backend, make_learner, config, batch):
    for dtype in backend.describe_device().dtypes:
        settings = config(optim={"dtype": dtype, "clip_grad": 1.0})
        learner = make_learner(settings)
        losses = take_steps(learner, *batch, count=12)
        assert losses[-1] < 0.95 * losses[0], dtype
        again = make_learner(settings)
        again.load(learner.state())
        assert take_steps(learner, *batch, count=3) == take_steps(again, *batch, count=3), dtype
        assert_equal(learner.state(), again.state())


def test_a_float16_step_that_overflows_is_skipped_and_halves_the_scale(backend, make_learner, config, batch):
    if "float16" not in backend.describe_device().dtypes:
        pytest.skip("no float16")
    learner = make_learner(config(optim={"dtype": "float16"}))
    take_steps(learner, *batch, count=1)
    state = learner.state()
    state.optimizer["scaler/scale"] = np.array(2.0**120, np.float32)
    learner.load(state)
    loss = float(learner.train_step(learner.prepare_batch(batch[0]), batch[1], 1e-3, 0.05)["loss"])
    after = learner.state()
    assert np.isfinite(loss)
    assert_equal(LearnerState(state.model, {}), LearnerState(after.model, {}))
    assert after.optimizer["scaler/scale"] == 2.0**119
    assert after.optimizer["scaler/growth_tracker"] == 0


def test_a_state_moves_between_types(backend, make_learner, config, batch):
    """A run that went on in another type has the other's weights; a loss scale is left behind, or starts afresh."""
    dtypes = backend.describe_device().dtypes
    for before, after in zip(dtypes, (*dtypes[1:], dtypes[0]), strict=True):
        first, second = (make_learner(config(optim={"dtype": dtype})) for dtype in (before, after))
        take_steps(first, *batch, count=2)
        second.load(first.state())
        assert_equal(LearnerState(first.state().model, {}), LearnerState(second.state().model, {}))
        assert np.isfinite(take_steps(second, *batch, count=2)).all()


@pytest.mark.parametrize(
    "run",
    [
        pytest.param({"grad_checkpointing": True}, marks=full_for_mindspore),
        pytest.param({"deterministic": True}, marks=full_for_mindspore),
        {"grad_checkpointing": True, "deterministic": True},
    ],
)
def test_how_to_compute_changes_no_result(make_learner, config, batch, run):
    plain, other = make_learner(config()), make_learner(config(run=run))
    np.testing.assert_allclose(take_steps(plain, *batch, count=4), take_steps(other, *batch, count=4), rtol=1e-6)
    assert_equal(plain.state(), other.state(), atol=1e-6)
    for look in LOOKS:
        np.testing.assert_allclose(compute_look(plain, batch[0], look), compute_look(other, batch[0], look), atol=1e-6)


# torch 2.14's compiler writes vector code for ATEN_CPU_CAPABILITY=default that does not compile ("'at::vec' has not
# been declared"); this can go when it compiles.
@pytest.mark.skipif(os.environ.get("ATEN_CPU_CAPABILITY") == "default", reason="torch cannot compile for them")
# torch 2.14 looks at .grad of every input while it compiles, and warns about what is no leaf: the shared embedding.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
# torch 2.6 warns of a setting of its own that it leaves out of the key of its cache.
@pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles_inline_module_allowlist:UserWarning")
@full_for_mindspore
def test_compiled_steps_are_the_same_or_refused(make_learner, config, batch):
    small = {"model": {"depth": 1}, "mask": {"blocks": 1}}
    try:
        compiled = make_learner(config(**small, run={"compile": True}))
    except BackendError as error:
        assert str(error).startswith("run.compile: ")  # noqa: PT017 - the other of two right answers
        return
    plain = make_learner(config(**small))
    np.testing.assert_allclose(take_steps(plain, *batch, count=3), take_steps(compiled, *batch, count=3), rtol=1e-5)


@pytest.mark.parametrize("masking", ["evolved", "shallow"])
@pytest.mark.parametrize("balance", ["none", "sinkhorn"])
def test_masks_made_on_the_device_are_the_hosts(backend, make_learner, config, batch, masking, balance):
    skip_where_refused(backend, config(mask={"build": "device"}))
    settings = config(mask={"balance": balance})
    images = batch[0]
    learner = make_learner(settings)
    for progress in (0.0, 0.4, 1.0):
        losses = []
        figures = []
        for build in ("host", "device"):
            masker = make_masker(masking, settings.masks, settings.units, build)
            mask, found = masker(learner.prepare_batch(images), progress, (5,))
            losses.append(take_steps(copy_learner(make_learner, settings, learner), images, mask, count=2, look=None))
            figures.append({name: float(value) for name, value in found.items()})
        assert losses[0] == losses[1]  # which differ if the masks do
        assert figures[0] == pytest.approx(figures[1], rel=1e-6)


@full_for_mindspore
@pytest.mark.parametrize("build", ["host", "device"])
def test_attention_that_is_not_finite_is_told_from_a_mistake(backend, make_learner, config, batch, build):
    """The loop then goes on with random masks to the end of the step, as other processes wait for this one."""
    settings = config(mask={"build": build})
    skip_where_refused(backend, settings)
    learner = make_learner(settings)
    state = learner.state()
    state.model["blocks.0.norm1.weight"][:] = np.nan
    learner.load(state)
    masker = make_masker("evolved", settings.masks, settings.units, build)
    with pytest.raises(NotFiniteAttentionError, match="must be finite"):
        masker(learner.prepare_batch(batch[0]), 0.5, (5,))


@full_for_mindspore
@pytest.mark.parametrize("build", ["host", "device"])
def test_several_masks_of_an_image_are_a_larger_batch(backend, make_learner, config, batch, build):
    """Three masks each of two images: the same step as on six images, each of the two three times."""
    skip_where_refused(backend, config(mask={"build": build}))
    images = batch[0][:2]
    settings = config(mask={"views": 3, "balance": "none"})
    learner = make_learner(settings)
    mask, _ = make_masker("evolved", settings.masks, settings.units, build)(learner.prepare_batch(images), 0.6, (5,))
    assert mask.shape == (6, 24)
    several = take_steps(learner, images, mask, count=3, look=None)
    learner = make_learner(config(mask={"balance": "none"}))
    larger = take_steps(learner, np.repeat(images, 3, axis=0), mask, count=3, look=None)
    np.testing.assert_allclose(several, larger, rtol=1e-6)


def skip_where_refused(backend, settings):
    """Skip a test if the backend builds no trees on its device and says so before anything is trained."""
    try:
        backend.create_learner(settings)
    except BackendError as error:
        assert str(error).startswith("mask.build device: ")  # noqa: PT017 - the other of two right answers
        pytest.skip(str(error))


def copy_learner(make_learner, settings, learner):
    """Return another learner in the same state."""
    other = make_learner(settings)
    other.load(learner.state())
    return other


def test_an_examined_step_names_where_its_numbers_break(make_learner, config, batch):
    images, mask = batch
    learner = make_learner(config())
    found = learner.examine_step(learner.prepare_batch(images), mask, 1e-3, 0.05)
    plain = make_learner(config())
    metrics = plain.train_step(plain.prepare_batch(images), mask, 1e-3, 0.05)
    assert found.metrics["loss"] == float(metrics["loss"])
    assert (found.first_output, found.first_gradient, found.operator) == (None, None, None)
    assert found.largest_outputs[0][1] > 1

    state = plain.state()
    state.model["blocks.1.mlp.fc1.weight"][2, 3] = np.nan
    broken = make_learner(config())
    broken.load(state)
    found = broken.examine_step(broken.prepare_batch(images), mask, 1e-3, 0.05)
    assert np.isnan(found.metrics["loss"])
    assert found.first_output == "blocks.1.mlp.fc1"
    assert found.has_finite_inputs
    assert found.first_gradient.startswith("decoder")  # the backward pass begins at the end
