"""Every shipped configuration, made tiny, is built, hides what it says and takes a step."""

import math
from functools import cache

import numpy as np
import pytest
from shipped import (
    kind,
    tiny_answerer,
    tiny_classifier,
    tiny_embedder,
    tiny_segmenter,
    tiny_tokenizer,
    tiny_training,
)

from ehm import backends
from ehm.backends.base import Piece
from ehm.config import (
    FinetuneConfig,
    LanguageTrainingConfig,
    ModelSource,
    RetrievalConfig,
    SegmentationConfig,
    TokenizerConfig,
    TrainConfig,
    VisionLanguageConfig,
    load_config,
    shipped_configs,
)
from ehm.masking import make_masker
from ehm.models.pretraining import adopt_encoder
from ehm.storage.checkpoint import save_checkpoint
from ehm.training.schedule import compute_learning_rate

TRAINING = [name for name in shipped_configs() if kind(name) is TrainConfig]
DOWNSTREAM = [name for name in shipped_configs() if issubclass(kind(name), FinetuneConfig)]
SEGMENTATION = [name for name in shipped_configs() if kind(name) is SegmentationConfig]
RETRIEVAL = [name for name in shipped_configs() if kind(name) is RetrievalConfig]
VISION_LANGUAGE = [name for name in shipped_configs() if kind(name) is VisionLanguageConfig]
LANGUAGE = [name for name in shipped_configs() if kind(name) is LanguageTrainingConfig]
TOKENIZERS = [name for name in shipped_configs() if kind(name) is TokenizerConfig]


def rate(optim):
    """Return the learning rate in the middle of a run of ten steps an epoch."""
    steps, warmup = 10 * optim.epochs, 10 * optim.warmup_epochs
    return compute_learning_rate(steps // 2, steps, warmup, optim.lr, optim.min_lr, optim.schedule)


@cache
def step(config):
    """A mask and a loss of a tiny configuration (its JSON); many are alike when tiny."""
    config = TrainConfig.model_validate_json(config)
    images = np.random.default_rng(0).integers(0, 256, (2, *config.image_size, 3), dtype=np.uint8)
    learner = backends.get("cpu").create_learner(config)
    masker = make_masker(config.masking, config.masks, config.units)
    batch = learner.prepare_batch(images)
    mask, _ = masker(batch, 0.5, (1,))
    return mask, float(learner.train_step(batch, mask, rate(config.optim), 0.05)["loss"])


def save_untrained(config, folder):
    """Save a tiny encoder of the form of ``config``, for its recipe to begin with."""
    model = config.model.model_copy(update={"teacher": "ema"})
    optim = config.optim.model_copy(update={"ema_decay": 0.9})
    tiny = tiny_training(config.model_copy(update={"model": model, "optim": optim}), None)
    metadata = {"kind": "pretrain", "step": 0, "config": tiny.model_dump(mode="json")}
    return str(save_checkpoint(folder, backends.get("cpu").create_learner(tiny).state(), metadata))


@pytest.mark.parametrize("name", TRAINING)
def test_it_pretrains(name, tokenizer, tmp_path):
    config = load_config(TrainConfig, name)
    init = None
    if config.awaits_encoder:
        # the published network without its weights, which tells whether the recipe suits it
        source = ModelSource(init=config.model.init.partition(".")[0] + "?pretrained=false")
        config, _ = adopt_encoder(config, backends.get("cpu").open_weights(source))
        init = save_untrained(config, tmp_path)
    tiny = tiny_training(config, tokenizer, init)
    assert (tiny.units, tiny.spec.grid) == (config.units, config.spec.grid)
    mask, loss = step(tiny.model_dump_json())
    units = math.prod(config.units)
    hidden = config.mask.ratio * units
    assert mask.shape == (2, units)
    assert (mask.sum(axis=1) == (math.ceil(hidden) if config.objective == "simmim" else round(hidden))).all()
    assert np.isfinite(loss)


@pytest.mark.parametrize("name", DOWNSTREAM)
def test_it_classifies(name):
    config = tiny_classifier(load_config(kind(name), name))
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    classifier = backends.get("cpu").create_task_learner(config, classes=3)
    targets = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    first = float(classifier.train_step(images, targets, rate(config.optim), config.optim.weight_decay)["loss"])
    assert first == pytest.approx(math.log(3), abs=0.1)  # the head begins near zero
    assert np.isfinite(classifier.compute_logits(images)).all()


@pytest.mark.parametrize("name", SEGMENTATION)
def test_it_segments(name):
    config = tiny_segmenter(load_config(SegmentationConfig, name))
    rng = np.random.default_rng(0)
    images, labels = (
        rng.integers(0, high, shape, np.uint8) for high, shape in ((256, (4, 32, 32, 3)), (3, (4, 32, 32)))
    )
    segmenter = backends.get("cpu").create_task_learner(config, classes=3)
    first = float(segmenter.train_step(images, labels, config.optim.lr, config.optim.weight_decay)["loss"])
    assert first == pytest.approx(1.4 * math.log(3), abs=0.3)  # two heads that begin near zero, one of weight 0.4
    assert segmenter.segment_image(images[0], (40, 50)).shape == (40, 50)


@pytest.mark.parametrize("name", RETRIEVAL)
def test_it_describes(name):
    config = tiny_embedder(load_config(kind(name), name))
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    embedder = backends.get("cpu").create_task_learner(config, classes=3)
    loss = embedder.train_step(images, np.array([0, 1, 2, 0]), config.optim.lr, config.optim.weight_decay)["loss"]
    assert np.isfinite(float(loss))
    assert embedder.compute_descriptors(images).shape == (4, 8)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_it_makes_tokens(name):
    config = tiny_tokenizer(load_config(TokenizerConfig, name))
    images = np.random.default_rng(0).integers(0, 256, (2, *config.image_size, 3), dtype=np.uint8)
    tokenizer = backends.get("cpu").create_tokenizer(config)
    metrics = tokenizer.train_step(images, config.temperature[0], rate(config.optim), config.optim.weight_decay)
    assert np.isfinite(float(metrics["loss"]))
    _, tokens = tokenizer.reconstruct_images(images)
    assert tokens.shape == (2, 16)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """An untrained language model of a few words."""
    pytest.importorskip("transformers", reason="language models are those of transformers")
    folder = tmp_path_factory.mktemp("language")
    config = LanguageTrainingConfig(width=8, depth=1, heads=1)
    backends.get("cpu").create_text_learner(config, ["question: red? answer: yes no"]).save(folder)
    return folder


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_it_answers(name, language):
    config = tiny_answerer(load_config(VisionLanguageConfig, name), language)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    answerer = backends.get("cpu").create_task_learner(config, classes=0)
    prompts = [config.language.format_prompt("red?")] * 4
    metrics = answerer.train_step(images, prompts, ["yes", "no", "yes", "no"], config.optim.lr, 0.05)
    assert np.isfinite(float(metrics["loss"]))
    assert len(answerer.answer(images, prompts)) == 4


@pytest.mark.parametrize("name", LANGUAGE)
def test_it_reads(name):
    pytest.importorskip("transformers", reason="language models are those of transformers")
    config = load_config(LanguageTrainingConfig, name)
    learner = backends.get("cpu").create_text_learner(config, ["red? yes no"])
    document = [Piece("red?"), Piece("yes", is_answer=True)]
    first = float(learner.train_step([document, document], config.optim.lr, config.optim.weight_decay)["loss"])
    assert first == pytest.approx(math.log(learner.words), abs=1.5)  # all words are about equally likely
