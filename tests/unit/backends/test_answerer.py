"""The learner of vision_language: what learns, what stays, and that a batch's loss does not depend on its parts."""

import errno
import tempfile

import numpy as np
import pytest
import torch

from ehm.config import VisionLanguageConfig

transformers = pytest.importorskip("transformers")

from ehm.backends.torch.engine import kept_tokens  # noqa: E402
from ehm.backends.torch.language.stand_in import create_language_model, create_word_tokenizer  # noqa: E402
from ehm.backends.torch.learners.vision_language import TorchAnswerer  # noqa: E402

CPU = torch.device("cpu")
TEXTS = ["the image shows a red blue green yellow circle . question : what colour ? answer : yes no"]
MODEL = {"encoder": "vit_tiny", "width": 24, "depth": 2, "heads": 2, "image_size": 16, "patch_size": 8}
PROMPTS = ["question: what colour? answer:", "question: red? answer:", "answer:", "question: blue circle? answer:"]
ANSWERS = ["red", "yes", "a red circle", "a blue circle of the image"]


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    path = tmp_path_factory.mktemp("language")
    tokenizer = create_word_tokenizer(TEXTS, CPU)
    torch.manual_seed(0)
    create_language_model(tokenizer, 16, 1, 2, CPU).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def make(language):
    def make_learner(**settings):
        sections = {
            "model": MODEL | settings.pop("model", {}),
            "resampler": {"latents": 2, "depth": 1, "heads": 2, "head_width": 8},
            "language": {"source": str(language), "dtype": "float32", "most": 4},
            "optim": {"batch_size": 4, "dtype": "float32", **settings.pop("optim", {})},
        }
        return TorchAnswerer(VisionLanguageConfig.model_validate({**sections, **settings}), 0, CPU)

    return make_learner


def draw_images():
    return np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


def step(learner, lr=0.01):
    return learner.train_step(draw_images(), PROMPTS, ANSWERS, lr, 0.05)


@pytest.mark.parametrize("frozen", [True, False])
def test_only_what_shall_learn_learns(make, frozen):
    learner = make(frozen=frozen)
    before = learner.state().model
    language = {name: value.clone() for name, value in learner._answering.model.state_dict().items()}
    for _ in range(3):
        step(learner)
    for name, array in learner.state().model.items():
        assert name.startswith(("encoder.", "resampler.")), name
        stays = np.array_equal(array, before[name])
        assert stays == (frozen and name.startswith("encoder.")), name
    for name, value in learner._answering.model.state_dict().items():
        assert torch.equal(value, language[name]), name


@pytest.mark.parametrize("frozen", [True, False])
def test_a_loss_is_weighted_by_tokens_whatever_the_parts(make, frozen):
    whole = make(frozen=frozen)
    parts = make(frozen=frozen, optim={"accumulate": 4})
    logged = [{name: float(value) for name, value in step(learner).items()} for learner in (whole, parts)]
    assert logged[0]["loss"] == pytest.approx(logged[1]["loss"], rel=1e-6)
    assert logged[0]["grad_norm"] == pytest.approx(logged[1]["grad_norm"], rel=1e-5)
    # the mean over tokens, computed by hand one question at a time
    fresh = make(frozen=frozen)
    total = 0.0
    for image, prompt, answer in zip(draw_images(), PROMPTS, ANSWERS, strict=True):
        visual = fresh.model.train()(fresh._pixels(image[None]))
        total += fresh._answering.sum_losses(visual, [prompt], [answer]).item()
    tokens = sum(len(answer.split()) + 1 for answer in ANSWERS)
    assert logged[0]["loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_the_encoder_may_learn_at_a_lower_rate(make):
    learner = make(encoder_rate=0.25, layer_decay=0.5)
    scales = {}
    for group in learner._training.optimizer.param_groups:
        for parameter in group["params"]:
            scales[id(parameter)] = group["lr_scale"]
    named = dict(learner.model.named_parameters())
    assert scales[id(named["resampler.latents"])] == 1
    assert scales[id(named["encoder.blocks.1.attn.qkv.weight"])] == 0.25 * 0.5
    assert scales[id(named["encoder.blocks.0.attn.qkv.weight"])] == 0.25 * 0.25


def test_all_that_learns_has_a_gradient(make):
    """Several processes wait for the gradients of all parameters that learn."""
    learner = make()
    step(learner)
    missing = [name for name, value in learner.model.named_parameters() if value.requires_grad and value.grad is None]
    assert missing == []


def test_recomputed_activations_change_nothing(make):
    plain, recomputing = make(), make(run={"grad_checkpointing": True})
    assert float(step(plain)["loss"]) == pytest.approx(float(step(recomputing)["loss"]), rel=1e-6)
    assert float(step(plain)["loss"]) == pytest.approx(float(step(recomputing)["loss"]), rel=1e-5)


def test_answers_of_a_batch_are_those_of_one_by_one(make):
    learner = make()
    for _ in range(5):
        step(learner)
    together = learner.answer(draw_images(), PROMPTS)
    assert together == [learner.answer(draw_images()[i : i + 1], [PROMPTS[i]])[0] for i in range(4)]


def count_encoded(learner):
    """Count the images that pass through the encoder from now on: a list that grows by a number for each pass."""
    counts = []
    encode = learner.model.encode
    learner.model.encode = lambda pixels: (counts.append(len(pixels)), encode(pixels))[1]
    return counts


def train_and_answer(learner):
    """Take five steps in which images come again, within a batch too, and ask about them; return losses and answers."""
    images = draw_images()
    losses = []
    for rows in ([0, 1, 0, 1], [1, 2, 0, 2], [3, 3, 1, 0], [0, 1, 2, 3], [3, 2, 1, 0]):
        losses.append(float(learner.train_step(images[rows], PROMPTS, ANSWERS, 0.01, 0.05)["loss"]))
    return losses, learner.answer(images, PROMPTS)


@pytest.mark.parametrize("optim", [{}, {"accumulate": 2}, {"dtype": "bfloat16"}])
def test_an_image_is_encoded_once_if_tokens_are_kept(make, tmp_path, optim):
    expected = train_and_answer(make(frozen=True, optim=optim))
    learner = make(frozen=True, optim=optim)
    note = learner.keep_features(tmp_path / "run", 4)
    assert "the encoder's tokens of 4 images" in note
    encoded = count_encoded(learner)
    losses, answers = train_and_answer(learner)
    assert sum(encoded) == 4
    assert losses == pytest.approx(expected[0], rel=1e-6)
    assert answers == expected[1]
    learner.forget_features()
    assert not list((tmp_path / "run").iterdir())


def test_images_for_which_there_is_no_place_are_encoded_again(make, tmp_path):
    learner = make(frozen=True)
    learner.keep_features(tmp_path, 2)
    encoded = count_encoded(learner)
    assert train_and_answer(learner)[0] == pytest.approx(train_and_answer(make(frozen=True))[0], rel=1e-6)
    assert sum(encoded) == 2 + 1 + 1 + 2 + 2 + 2  # images 0 and 1 are kept
    learner.forget_features()


def test_a_full_disk_ends_the_keeping_and_not_the_run(make, tmp_path, monkeypatch, capsys):
    expected, _ = train_and_answer(make(frozen=True))
    learner = make(frozen=True)
    learner.keep_features(tmp_path, 4)
    kept = learner._kept
    write = kept._file.write

    def write_a_part(data):
        if kept._file.tell():  # the second batch
            write(bytes(data)[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(data)

    monkeypatch.setattr(kept, "_file", Wrapped(kept._file, write=write_a_part))
    losses, _ = train_and_answer(learner)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert "No space left on device; from now on each image is encoded again" in capsys.readouterr().out
    assert kept._file.closed


def test_features_that_take_too_much_are_not_kept(make, tmp_path, monkeypatch):
    learner = make(frozen=True)
    assert "images take 4,8" in learner.keep_features(tmp_path, 10_000_000_000)
    assert learner._kept is None
    monkeypatch.setattr(kept_tokens.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    assert kept_tokens.find_room(tmp_path / "none" / "yet") == 25
    assert "each image is encoded every time" in learner.keep_features(tmp_path, 4)
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert (
        learner.keep_features(tmp_path, 4) == "cache_features: Read-only file system: each image is encoded every time"
    )


def refuse(**_):
    raise OSError(errno.EROFS, "Read-only file system")


class Wrapped:
    """A file of which some methods are others."""

    def __init__(self, file, **methods):
        self._file = file
        self._methods = methods

    def __getattr__(self, name):
        return self._methods.get(name) or getattr(self._file, name)
