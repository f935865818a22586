"""The norm of the gradient in every step: of all parameters, unscaled, and without a change of the step."""

import numpy as np
import pytest
import torch

from ehm.backends.torch.learners.pretraining import TorchLearner
from ehm.config import TrainConfig

SIZE = 32


def make_learner(**optim):
    config = {
        "encoder": "vit_tiny",
        "image_size": SIZE,
        "patch_size": 8,
        "model": {"width": 24, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
        "optim": {"batch_size": 4, "dtype": "float32", **optim},
    }
    return TorchLearner(TrainConfig.model_validate(config), torch.device("cpu"))


def take_step(learner):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    mask = np.tile(np.arange(16) % 4 > 0, (4, 1))
    return learner.train_step(learner.prepare_batch(images), mask, 1e-3, 0.05)


def measure_gradients(learner):
    """Compute the norm of the gradients that the step has left, in float64."""
    gradients = [p.grad.double().flatten() for p in learner.model.parameters() if p.grad is not None]
    return float(np.linalg.norm(torch.cat(gradients).numpy()))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_norm_is_that_of_the_gradients_of_the_step(dtype, accumulate):
    learner = make_learner(dtype=dtype, accumulate=accumulate)
    norm = float(take_step(learner)["grad_norm"])
    assert norm == pytest.approx(measure_gradients(learner), rel=1e-5)
    assert norm == pytest.approx(float(take_step(make_learner())["grad_norm"]), rel=0.05)  # and not a scaled one


def test_a_clipped_step_gives_the_norm_before():
    learner = make_learner(clip_grad=0.01)
    norm = float(take_step(learner)["grad_norm"])
    assert norm == pytest.approx(float(take_step(make_learner())["grad_norm"]), rel=1e-5)
    assert measure_gradients(learner) == pytest.approx(0.01, rel=1e-3)
