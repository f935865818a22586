"""The results of one device for given weights and images: run as a script, in any environment.

    python parity.py DEVICE START STEPS OUT [broken]

START is a checkpoint, of a model in pretraining, of a tokenizer or of a task, with ``images.npy`` (B, H, W, 3) beside
it. OUT becomes the checkpoint after STEPS steps, with the same images beside it and ``results.npz``: what the model
says before the first step, the gradients of the first step as far as the optimiser shows them, and the loss of every
step.
"""

import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

from ehm import backends
from ehm.config import FinetuneConfig, ModelSource, RetrievalConfig, SegmentationConfig, TokenizerConfig, TrainConfig
from ehm.storage.checkpoint import open_checkpoint, save_checkpoint

LR, DECAY = {"adamw": 1e-3, "sgd": 0.1, "lars": 1.0}, 0.05


def masks(config, images, step):
    """Random masks (B * views, U) of a step, the same everywhere."""
    rng, units = np.random.default_rng([7, step]), config.units[0] * config.units[1]
    order = rng.random((images * config.mask.views, units)).argsort(axis=1)
    return order < round(config.masks.ratio * units)


def start(folder, state, images, **meta):
    """A checkpoint that :func:`run` begins with."""
    path = save_checkpoint(folder, state, {"step": 0, **meta})
    np.save(path / "images.npy", images)
    return path


def pretraining(backend, meta, images, first):
    """A learner, what it sees in the images, and its step."""
    config = TrainConfig.model_validate(meta["config"])
    learner = backend.create_learner(config)
    by_cosine = config.mask.model_copy(update={"similarity": "cosine"})
    cosine = backend.create_learner(config.model_copy(update={"mask": by_cosine}))

    def step(number):
        return learner.train_step(learner.prepare_batch(images), masks(config, len(images), number), LR["adamw"], DECAY)

    def seen():
        cosine.load(learner.state())
        batch = learner.prepare_batch(images)
        looks = {
            "similarity": batch.compute_similarity(),
            "cosine": cosine.prepare_batch(images).compute_similarity(),
        }
        if config.spec.has_class_token:
            looks["saliency"] = batch.compute_saliency()
        return {name: np.concatenate(list(look)) for name, look in looks.items()}

    return learner, seen, step, config


def tokenizing(backend, meta, images, first):
    """A tokenizer in training, what it makes of the images, and its step, always with the same Gumbel noise."""
    config = TokenizerConfig.model_validate(meta["config"])
    places = (config.image_size[0] // config.stride, config.image_size[1] // config.stride)
    noise = np.random.default_rng(8).gumbel(size=(len(images), config.vocabulary, *places)).astype(np.float32)
    learner = backend.create_tokenizer(config)

    def seen():
        pixels, tokens = learner.reconstruct_images(images)
        return {"pixels": pixels, "tokens": tokens}

    def step(number):
        with fix_noise(backend.name, noise):
            return learner.train_step(images, 0.5, LR["adamw"], DECAY)

    return learner, seen, step, config


@contextmanager
def fix_noise(framework, noise):
    """Let a tokenizer draw ``noise`` within this context."""
    if framework == "mindspore":
        from mindspore import Tensor

        from ehm.backends.mindspore.learners import tokenizer

        fixed = Tensor(noise)

        def draw_fixed(keys, shape):  # no lambda: MindSpore compiles its source
            return fixed

        with patch.object(tokenizer, "draw_gumbel", draw_fixed):
            yield
        return
    import torch

    def fill(numbers):
        # torch takes the logarithm of exponential numbers
        return numbers.copy_(torch.from_numpy(np.exp(-noise)))

    with patch.object(torch.Tensor, "exponential_", fill):
        yield


def classification(backend, meta, images, first):
    """A classifier, what it and its encoder see in the images, and its step."""
    config = FinetuneConfig.model_validate(meta["config"])
    source = ModelSource(init=str(first))
    model, encoder = config.model.model_copy(update={"init": str(first)}), backend.create_encoder(source)
    classifier = backend.create_task_learner(config.model_copy(update={"model": model}), len(meta["classes"]))
    targets = np.eye(len(meta["classes"]), dtype=np.float32)[np.arange(len(images)) % len(meta["classes"])]
    weights = None
    if config.loss == "binary_cross_entropy":
        # the first image has two labels
        targets[0] = [1, 0, 1]
        weights = np.array([0.5, 1, 3], np.float32)

    def step(number):
        return classifier.train_step(images, targets, lr, DECAY, weights)

    def seen():
        found = {
            "logits": classifier.compute_logits(images),
            "features": encoder.compute_features(images),
            "similarity": encoder.compute_similarity(images, 2),
            "attention": encoder.compute_attention(images),
        }
        if not config.frozen:
            found["gradient/layers"] = classifier.measure_gradients(images, targets)
        return found

    lr = LR[config.optimizer]
    return classifier, seen, step, config


def retrieval(backend, meta, images, first):
    """An embedder, the descriptors of the images, and its step."""
    config = RetrievalConfig.model_validate(meta["config"])
    embedder = backend.create_task_learner(begin_with(config, first), len(meta["classes"]))
    labels = np.arange(len(images)) % len(meta["classes"])

    def seen():
        found = {"descriptors": embedder.compute_descriptors(images)}
        if config.longest is not None:
            for height, width in ((27, 40), (13, 48)):
                found[f"photograph of {height}"] = embedder.compute_descriptors(images[:1, :height, :width])
        return found

    lr = LR[config.optimizer]
    return embedder, seen, lambda number: embedder.train_step(images, labels, lr, DECAY), config


def segmentation(backend, meta, images, first):
    """A segmenter, the classes of the pixels of a photograph of another size, and its step."""
    config = SegmentationConfig.model_validate(meta["config"])
    segmenter = backend.create_task_learner(begin_with(config, first), len(meta["classes"]))
    height, width = config.crop_size
    photograph = np.concatenate(list(images), axis=1)[: height - 7, : 2 * width - 11]
    # blocks of classes, with some pixels that do not count
    cells = np.random.default_rng(3).integers(0, len(meta["classes"]) + 1, (len(images), height // 8, width // 8))
    labels = cells.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)
    labels[labels == len(meta["classes"])] = 255

    def seen():
        found = {"pixels": segmenter.segment_image(photograph, (height + 3, 2 * width))}
        if config.inference.mode == "whole":
            # five times the widest stride, and no multiple of a crop
            large = np.random.default_rng(4).integers(0, 256, (150, 153, 3), dtype=np.uint8)
            found["scores"] = score_whole(segmenter, large)
        return found

    lr = LR[config.optimizer]
    return segmenter, seen, lambda number: segmenter.train_step(images, labels, lr, DECAY), config


def score_whole(segmenter, photograph):
    """Scores before the highest is taken, because many differences leave the classes as they are."""
    if "mindspore" in type(segmenter).__module__:
        return segmenter._score_whole(segmenter._normalise(photograph))
    import torch

    with torch.no_grad():
        return segmenter._score_whole(segmenter._pixels(photograph[None]))[0].cpu().numpy()


def begin_with(config, first):
    return config.model_copy(update={"model": config.model.model_copy(update={"init": str(first)})})


KINDS = {
    "pretrain": pretraining,
    "tokenizer": tokenizing,
    "classifier": classification,
    "embedder": retrieval,
    "segmenter": segmentation,
}


def run(device, first, steps, out, broken=False):
    """See the module; ``broken`` makes one block compute something slightly else."""
    opened = open_checkpoint(first)
    state = opened.state
    meta = opened.metadata
    images = np.load(Path(first) / "images.npy")
    learner, seen, step, config = KINDS[meta["kind"]](backends.get(device), meta, images, first)
    learner.load(state)
    if broken:
        learner.model.blocks[1].attn.scale *= 1.001
    results, losses = seen(), []
    averages = meta["kind"] != "pretrain" and config.optim.ema_decay is not None
    for number in range(meta["step"], meta["step"] + steps):
        metrics = step(number)
        if averages:
            learner.update_average(config.optim.last_ema_decay)
        losses.append(float(metrics["loss"]))
        if number == 0:
            results |= {f"metric/{name}": float(value) for name, value in metrics.items()}
            # AdamW's first moment is a known share of the gradient now, SGD's buffer it with decay
            for key, value in learner.state().optimizer.items():
                name, _, slot = key.rpartition("/")
                if slot == "exp_avg":
                    results[f"gradient/{name}"] = value / (1 - config.optim.betas[0])
                elif slot == "momentum_buffer":
                    results[f"gradient/{name}"] = value
    if averages:
        # what is measured of the average
        results |= {f"after/{name}": value for name, value in seen().items()}
    path = save_checkpoint(Path(out), learner.state(), {**meta, "step": meta["step"] + steps})
    np.savez(path / "results.npz", losses=losses, **results)
    shutil.copy(Path(first) / "images.npy", path)
    return path


if __name__ == "__main__":
    print(run(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], broken=len(sys.argv) > 5))
