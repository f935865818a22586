"""What one device makes of given weights, images and masks: run as a script, in any environment.

    python parity.py DEVICE START STEPS OUT [broken]

START is a checkpoint with ``images.npy`` (B, H, W, 3) beside it. OUT becomes the checkpoint after STEPS steps, with the
same images beside it and ``results.npz``: the similarity before the first step, the gradients of the first step, and
the loss of every step.
"""

import shutil
import sys
from pathlib import Path

import numpy as np

from ehm import backends, checkpoint
from ehm.config import TrainConfig

LR, DECAY = 1e-3, 0.05


def masks(config, images, step):
    """Random masks (B, N) of a step, the same everywhere."""
    rng = np.random.default_rng([7, step])
    order = rng.random((images, config.vit.patches)).argsort(axis=1)
    return order < round(config.mask.ratio * config.vit.patches)


def start(folder, config, backend, images):
    """A checkpoint of a new learner that ``run`` begins with."""
    path = checkpoint.save(folder, backend.learner(config).state(), {"step": 0, "config": config.model_dump()})
    np.save(path / "images.npy", images)
    return path


def run(device, first, steps, out, broken=False):
    """See the module; ``broken`` makes one block compute something slightly else."""
    state, meta = checkpoint.read(first)
    config, images = TrainConfig.model_validate(meta["config"]), np.load(Path(first) / "images.npy")
    learner = backends.get(device).learner(config)
    learner.load(state)
    if broken:
        learner.model.blocks[1].attn.scale *= 1.001
    results = {"similarity": np.concatenate(list(learner.similarity(images)))}
    losses = []
    for step in range(meta["step"], meta["step"] + steps):
        losses.append(float(learner.train_step(images, masks(config, len(images), step), LR, DECAY)["loss"]))
        if step == 0:  # AdamW's first moment is then a known share of the gradient
            for key, value in learner.state().optimizer.items():
                name, _, slot = key.rpartition("/")
                if slot == "exp_avg":
                    results[f"gradient/{name}"] = value / (1 - config.optim.betas[0])
    path = checkpoint.save(Path(out), learner.state(), {"step": meta["step"] + steps, "config": meta["config"]})
    np.savez(path / "results.npz", losses=losses, **results)
    shutil.copy(Path(first) / "images.npy", path)
    return path


if __name__ == "__main__":
    print(run(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], broken=len(sys.argv) > 5))
