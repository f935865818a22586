"""Feature prediction: targets, loss, teachers and their average, against the published formulas in plain lines."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer

from ehm.backends.torch.learners.pretraining import TorchLearner
from ehm.backends.torch.objectives.feature import FeaturePredictor, compute_patch_features
from ehm.config import OptimConfig, TrainConfig
from ehm.masking import split_mask
from ehm.storage.arrays import split_average
from ehm.storage.checkpoint import save_checkpoint
from ehm.training.schedule import compute_ema_decay, ema_decay_at

CPU = torch.device("cpu")
WIDTH, DEPTH, DECODER_WIDTH, BETA = 24, 4, 16, 0.5
VALUES = {
    "objective": "feature",
    "encoder": "vit_tiny",
    "image_size": [32, 48],
    "patch_size": 8,
    "model": {
        "width": WIDTH,
        "depth": DEPTH,
        "heads": 3,
        "decoder_width": DECODER_WIDTH,
        "decoder_depth": 2,
        "decoder_heads": 2,
        "loss_beta": BETA,
    },
    "mask": {"blocks": 3},
    "optim": {"batch_size": 6, "epochs": 2, "warmup_epochs": 0, "dtype": "float32", "ema_decay": 0.9},
}


def configure(**sections):
    values = dict(VALUES)
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return TrainConfig.model_validate(values)


def draw_images(count=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)


def draw_masks(count=6, seed=1):
    order = np.random.default_rng(seed).random((count, 24)).argsort(axis=1)
    return order < 18


def make_model(**model):
    """A predictor whose every weight is drawn, so that none is 0 or 1 by initialisation."""
    config = configure(model=model)
    predictor = FeaturePredictor(config.spec, config.model)
    generator = torch.Generator().manual_seed(0)
    for parameter in predictor.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn(parameter.shape, generator=generator)
    return predictor


def as_timm(model):
    """timm's own ViT with the weights of the encoder."""
    encoder = VisionTransformer(
        img_size=(32, 48), patch_size=8, embed_dim=WIDTH, depth=DEPTH, num_heads=3, num_classes=0, global_pool=""
    )
    arrays = model.state_dict()
    encoder.load_state_dict({name: arrays[name] for name in encoder.state_dict()})
    return encoder.eval()


def predict_by_hand(model, images, mask):
    """The predictions for the hidden patches of one image after the other, by timm's modules, patch by patch."""
    encoder = as_timm(model)
    blocks = torch.nn.Sequential(
        *(Block(DECODER_WIDTH, 2, qkv_bias=True, norm_layer=model.norm.__class__) for _ in "12")
    )
    for norm in (module for module in blocks.modules() if isinstance(module, torch.nn.LayerNorm)):
        norm.eps = 1e-6
    blocks.load_state_dict(model.decoder_blocks.state_dict())
    predictions = []
    for image, hidden in zip(images, mask, strict=True):
        patches = encoder.patch_embed(image[None]) + encoder.pos_embed[:, 1:]
        shown = [patches[0, place] for place in range(24) if not hidden[place]]
        tokens = torch.stack([encoder.cls_token[0, 0] + encoder.pos_embed[0, 0], *shown])
        tokens = model.decoder_embed(encoder.norm(encoder.blocks(tokens[None])))[0]
        queue = list(tokens[1:])
        full = [tokens[0]]
        for place in range(24):
            full.append(model.mask_token[0, 0] if hidden[place] else queue.pop(0))
        decoded = model.decoder_norm(blocks((torch.stack(full) + model.decoder_pos_embed[0])[None]))[0, 1:]
        predictions.append(model.feature_pred(decoded[torch.from_numpy(hidden)]))
    return torch.stack(predictions)


@pytest.mark.parametrize("loss", ["smooth_l1", "cosine"])
def test_the_loss_is_that_of_the_published_formula(loss):
    model = make_model(loss=loss)
    images = torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    mask = draw_masks(3)
    features = torch.randn(3, 24, WIDTH, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = model(images, *(torch.from_numpy(part) for part in split_mask(mask)), features=features)
        predicted = predict_by_hand(model, images, mask)
    target = torch.stack([image[torch.from_numpy(hidden)] for image, hidden in zip(features, mask, strict=True)])
    if loss == "cosine":
        expected = (1 - F.cosine_similarity(predicted, target, dim=-1)).mean()
    else:
        distance = (predicted - target).abs()
        squares = distance**2 / (2 * BETA)
        lines = distance - BETA / 2
        assert 0.05 < (distance < BETA).float().mean() < 0.95  # both branches count
        expected = torch.where(distance < BETA, squares, lines).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_features_of_an_average_are_those_of_data2vec(blocks):
    model = make_model()
    images = torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        outputs = as_timm(model).forward_intermediates(
            images, indices=blocks, output_fmt="NLC", intermediates_only=True
        )
        normed = [F.layer_norm(output, (WIDTH,)) for output in outputs]
        target = F.layer_norm(sum(normed) / len(normed), (WIDTH,))
        found = compute_patch_features(model, images, blocks)
    assert len(outputs) == blocks
    torch.testing.assert_close(found, target, rtol=1e-4, atol=1e-5)


def test_the_features_of_a_frozen_teacher_are_those_of_ijepa():
    """h = layer_norm(target_encoder(images)), without weights of the norm's own."""
    model = make_model()
    images = torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        target = F.layer_norm(as_timm(model)(images)[:, 1:], (WIDTH,))
        found = compute_patch_features(model, images)
    torch.testing.assert_close(found, target, rtol=1e-4, atol=1e-5)


def test_hidden_pixels_change_the_targets_and_no_prediction():
    model = make_model()
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    mask = draw_masks(2)
    visible, masked, restore = (torch.from_numpy(part) for part in split_mask(mask))

    def look(images):
        with torch.no_grad():
            predicted = model.feature_pred(model.decode(model.encode(model.embed(images), visible), restore, masked))
            return predicted, compute_patch_features(model, images, 2)

    pixels_hidden = torch.from_numpy(mask.reshape(2, 1, 4, 6)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    predicted, features = look(images)
    others, other_features = look(torch.where(pixels_hidden, -images, images))
    torch.testing.assert_close(others, predicted, rtol=0, atol=0)
    assert (other_features - features).abs().mean() > 0.1
    seen, _ = look(torch.where(pixels_hidden, images, -images))
    assert (seen - predicted).abs().mean() > 1e-3


@pytest.fixture
def start(tmp_path):
    """A run of MAE, to begin with, and its state."""
    values = {**VALUES, "objective": "mae", "optim": {**VALUES["optim"], "ema_decay": None}}
    config = TrainConfig.model_validate(values)
    learner = TorchLearner(config, CPU)
    for seed in range(3):
        learner.train_step(learner.prepare_batch(draw_images(seed=seed)), draw_masks(seed=seed), 1e-2, 0.05)
    state = learner.state()
    save_checkpoint(
        tmp_path / "checkpoints", state, {"kind": "pretrain", "step": 3, "config": config.model_dump(mode="json")}
    )
    return tmp_path, state


def train(learner, steps=5, lr=3e-3, decay=None):
    metrics = {}
    for seed in range(steps):
        batch = learner.prepare_batch(draw_images(seed=seed % 2))
        metrics = learner.train_step(batch, draw_masks(seed=seed), lr, 0.05, decay)
    return {name: float(value) for name, value in metrics.items()}


def test_a_frozen_teacher_stays_what_the_run_began_with(start):
    folder, state = start
    config = configure(model={"teacher": "start", "init": str(folder)}, optim={"ema_decay": None})
    learner = TorchLearner(config, CPU)
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    before = learner._objective.compute_targets(images)["features"]
    train(learner)
    torch.testing.assert_close(learner._objective.compute_targets(images)["features"], before, rtol=0, atol=0)
    teacher = learner._objective.teacher.state_dict()
    moved = []
    for name, value in teacher.items():
        np.testing.assert_array_equal(value.numpy(), state.model[name], err_msg=name)
        moved.append(not np.array_equal(value.numpy(), learner.state().model[name]))
    assert sum(moved) > len(moved) / 2
    # neither the parameters nor the optimiser's arrays hold it
    assert set(learner.state().model) == set(dict(learner.model.state_dict()))
    assert not split_average(learner.state().optimizer)[1]


@pytest.mark.parametrize("teacher", ["start", "ema"])
def test_masks_go_by_the_teacher(start, teacher):
    folder, _ = start
    model = {"teacher": teacher, "init": str(folder)}
    learners = {}
    for source in ("teacher", "online", "ema"):
        learners[source] = TorchLearner(configure(model=model, mask={"source": source}), CPU)
        train(learners[source])

    def similarity(source):
        return np.concatenate(list(learners[source].prepare_batch(draw_images()).compute_similarity()))

    assert not np.allclose(similarity("teacher"), similarity("online"), atol=1e-6)
    if teacher == "ema":
        np.testing.assert_array_equal(similarity("teacher"), similarity("ema"))
        return
    untrained = TorchLearner(configure(model=model, mask={"source": "online"}), CPU)
    first = np.concatenate(list(untrained.prepare_batch(draw_images()).compute_similarity()))
    np.testing.assert_allclose(similarity("teacher"), first, atol=1e-7)


def test_the_average_follows_the_decay_of_each_step():
    optim = OptimConfig(epochs=4, warmup_epochs=0, ema_decay=(0.5, 1.0), ema_ramp=0.5)
    learner = TorchLearner(configure(optim={"ema_decay": [0.5, 1.0]}), CPU)
    expected = {name: value.astype(np.float64) for name, value in learner.state().model.items()}
    for step in range(6):
        decay = ema_decay_at(optim, step, 2)
        assert decay == pytest.approx(min(1, 0.5 + 0.5 * step / 4))  # the ramp takes 4 of 8 steps
        batch = learner.prepare_batch(draw_images(seed=step))
        learner.train_step(batch, draw_masks(seed=step), 1e-2, 0.05, decay)
        for name, value in learner.state().model.items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    _, average = split_average(learner.state().optimizer)
    for name, value in expected.items():
        np.testing.assert_allclose(average[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_ramp_is_that_of_data2vec_and_of_ijepa():
    for step in (0, 1, 7, 30, 99):
        # fairseq's get_annealed_rate, over the first 30 steps
        annealed = 0.9999 if step >= 30 else 0.9999 - (0.9999 - 0.999) * (1 - step / 30)
        assert compute_ema_decay(step, 30, 0.999, 0.9999) == pytest.approx(annealed, abs=1e-12)
        # I-JEPA's momentum schedule, over 100 steps
        assert compute_ema_decay(step, 100, 0.996, 1.0) == pytest.approx(0.996 + step * (1 - 0.996) / 100, abs=1e-12)
    constant = OptimConfig(epochs=4, warmup_epochs=0, ema_decay=0.9)
    assert [ema_decay_at(constant, step, 10) for step in (0, 39)] == [0.9, 0.9]
    assert ema_decay_at(OptimConfig(epochs=4, warmup_epochs=0), 3, 10) is None


def test_the_spread_is_that_over_the_images_and_shows_a_collapse():
    learner = TorchLearner(configure(model={"teacher_blocks": 2}), CPU)
    pixels = learner._pixels(draw_images())
    features = learner._objective.compute_targets(pixels)["features"].numpy()
    metrics = train(learner, steps=1, lr=0.0)
    assert metrics["target_spread"] == pytest.approx(features.std(axis=0).mean(), rel=1e-5)
    for parameter in learner._average.patch_embed.parameters():
        parameter.data.zero_()  # all images look alike, though not all places do
    assert train(learner, steps=1, lr=0.0)["target_spread"] < 1e-4


@pytest.mark.parametrize("teacher", ["start", "ema"])
def test_the_loss_falls_and_features_do_not_collapse(start, teacher):
    folder, _ = start
    init = {"init": str(folder)} if teacher == "start" else {}
    learner = TorchLearner(configure(model={"teacher": teacher, **init}), CPU)
    first = train(learner, steps=1)
    last = train(learner, steps=60, decay=0.99)
    assert last["loss"] < 0.8 * first["loss"]
    assert last["target_spread"] > 0.3 * first["target_spread"]
