"""What the shared loop relies on, whatever the backend."""

import numpy as np
import pytest

from ehm.errors import BackendError, CheckpointError


def steps(learner, images, mask, count, similarity=True):
    losses = []
    for _ in range(count):
        if similarity:
            learner.similarity(images)
        losses.append(float(learner.train_step(images, mask, 1e-3, 0.05)["loss"]))
    return losses


def seen(learner, images):
    """Similarity of all images at once."""
    return np.concatenate(list(learner.similarity(images)))


def assert_equal(left, right, rtol=0.0, atol=0.0):
    for name in ("model", "optimizer"):
        ours, theirs = getattr(left, name), getattr(right, name)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            np.testing.assert_allclose(value, theirs[key], rtol=rtol, atol=atol, err_msg=key)


def test_similarity_is_a_symmetric_matrix_of_attention(backend, config, batch):
    similarity = seen(backend.learner(config()), batch[0])
    assert similarity.shape == (6, 24, 24)
    assert similarity.dtype == np.float32
    np.testing.assert_array_equal(similarity, similarity.transpose(0, 2, 1))
    assert np.all(similarity > 0)
    assert np.all(similarity.sum((1, 2)) < 24)  # the class token takes its share of every row


def test_training_lowers_the_loss_and_state_is_complete(backend, config, batch):
    learner = backend.learner(config())
    losses = steps(learner, *batch, count=12)
    assert losses[-1] < 0.95 * losses[0]

    again = backend.learner(config())
    again.load(learner.state())
    assert steps(learner, *batch, count=3) == steps(again, *batch, count=3)
    assert_equal(learner.state(), again.state())


def test_equal_seeds_start_equal_and_others_do_not(backend, config):
    first, second = backend.learner(config()).state(), backend.learner(config()).state()
    assert_equal(first, second)
    other = backend.learner(config(run={"seed": 1})).state()
    assert not np.array_equal(first.model["blocks.0.attn.qkv.weight"], other.model["blocks.0.attn.qkv.weight"])


def test_the_similarity_pass_changes_no_update(backend, config, batch):
    with_pass, without = backend.learner(config()), backend.learner(config())
    steps(with_pass, *batch, count=3)
    steps(without, *batch, count=3, similarity=False)
    assert_equal(with_pass.state(), without.state(), atol=1e-6)


def test_accumulation_equals_the_whole_batch(backend, config, batch):
    whole = backend.learner(config())
    parts = backend.learner(config(optim={"accumulate": 3}))
    np.testing.assert_allclose(steps(whole, *batch, count=4), steps(parts, *batch, count=4), rtol=1e-5)
    np.testing.assert_allclose(seen(whole, batch[0]), seen(parts, batch[0]), rtol=1e-3, atol=1e-6)


def test_a_short_last_batch_still_steps(backend, config, batch):
    learner = backend.learner(config(optim={"accumulate": 3}))
    before = learner.state().model["decoder_pred.bias"]
    learner.train_step(batch[0][:2], batch[1][:2], 1e-3, 0.0)
    assert not np.array_equal(before, learner.state().model["decoder_pred.bias"])


def test_decay_spares_biases_norms_and_positions(backend, config, batch):
    plain, decayed = backend.learner(config()), backend.learner(config())
    plain.train_step(*batch, 1e-3, 0.0)
    decayed.train_step(*batch, 1e-3, 0.5)
    before, after = plain.state().model, decayed.state().model
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in before if before[name].ndim > 1 and not name.endswith("pos_embed")}


def test_clipping_reports_the_norm_and_shortens_the_gradient(backend, config, batch):
    metrics = backend.learner(config(optim={"clip_grad": 1e-3})).train_step(*batch, 1e-3, 0.0)
    assert float(metrics["grad_norm"]) > 1e-3


def test_average_of_weights_follows_them_and_gives_the_similarity(backend, config, batch):
    settings = config(optim={"ema_decay": 0.75}, mask={"source": "ema"})
    learner = backend.learner(settings)
    name = "decoder_pred.weight"
    start = learner.state().model[name]
    first = seen(learner, batch[0])
    learner.train_step(*batch, 1e-2, 0.0)
    state = learner.state()
    np.testing.assert_allclose(state.optimizer["ema/" + name], 0.75 * start + 0.25 * state.model[name], atol=1e-6)

    online = backend.learner(config())
    np.testing.assert_allclose(first, seen(online, batch[0]), atol=1e-6)  # equal until the first step
    online.train_step(*batch, 1e-2, 0.0)
    assert not np.allclose(seen(learner, batch[0]), seen(online, batch[0]), atol=1e-6)

    again = backend.learner(settings)
    again.load(learner.state())
    np.testing.assert_array_equal(seen(learner, batch[0]), seen(again, batch[0]))


def test_bad_states_and_types_are_refused(backend, config):
    learner = backend.learner(config())
    state = learner.state()
    del state.model["norm.bias"]
    with pytest.raises(CheckpointError, match=r"norm\.bias is missing"):
        learner.load(state)
    absent = {"float32", "bfloat16", "float16"} - set(backend.info().dtypes)
    for dtype in absent:
        with pytest.raises(BackendError, match=f"optim.dtype {dtype}"):
            backend.learner(config(optim={"dtype": dtype}))


def test_mixed_precision_trains(backend, config, batch):
    for dtype in backend.info().dtypes:
        losses = steps(backend.learner(config(optim={"dtype": dtype})), *batch, count=12)
        assert losses[-1] < 0.95 * losses[0], dtype
