"""``run.compile`` compiles the pass that masks are made of: as a whole, and without warnings, which are errors here."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ehm.backends.torch.engine.devices import FACTS
from ehm.backends.torch.learners.pretraining import TorchLearner
from ehm.config import TrainConfig

ENCODERS = {
    "vit": {"encoder": "vit_tiny", "patch_size": 8, "model": {"width": 24, "depth": 2, "heads": 2}},
    "swin": {"encoder": "swin_tiny", "patch_size": 2, "model": {"width": 8, "depth": [2, 1], "heads": [1, 2]}},
}
"""BEiT's biases in a ViT, and windows that are shifted."""


def look_at_images(encoder, compiles):
    config = {
        **ENCODERS[encoder],
        "objective": "simmim",
        "image_size": 32,
        "mask": {"unit": 16, "ratio": 0.5, "blocks": 2},
        "optim": {"batch_size": 4, "dtype": "float32"},
        "run": {"compile": compiles},
    }
    learner = TorchLearner(TrainConfig.model_validate(config), torch.device("cpu"))
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    return np.concatenate(list(learner.prepare_batch(images).compute_similarity()))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_pass_of_masks_is_one_graph(encoder, monkeypatch):
    graphs = []

    def compile_graph(graph, inputs):
        graphs.append(graph)
        # what inductor does before it writes code
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setitem(FACTS, "cpu", replace(FACTS["cpu"], compiler=compile_graph))
    torch._dynamo.reset()
    compiled = look_at_images(encoder, compiles=True)
    torch._dynamo.reset()
    assert len(graphs) == 1
    np.testing.assert_allclose(compiled, look_at_images(encoder, compiles=False), rtol=1e-6)
