"""The weights that a run begins with, for every backend: those of a relative ViT, and given ones."""

import math

import numpy as np
import pytest

from ehm.storage.checkpoint import save_checkpoint

SIMMIM = {"objective": "simmim", "model": {"width": 48, "depth": 4}, "mask": {"unit": 8}}


def test_a_relative_vit_starts_as_timms(backend, config):
    """timm's ``Beit``: ``init_weights``, ``fix_init_weight`` and torch's ``Conv2d.reset_parameters``."""
    own = backend.create_learner(config(**SIMMIM)).state().model
    assert own["rel_pos_bias.relative_position_bias_table"].shape == (7 * 11 + 3, 3)
    assert own["decoder.0.weight"].shape == (192, 48, 1, 1)
    for name, value in own.items():
        layer = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0
        if name.startswith(("patch_embed.", "decoder.")):
            limit = 1 / math.sqrt(math.prod(own[name.replace("bias", "weight")].shape[1:]))
            assert 0.9 * limit < np.abs(value).max() <= limit, name
            assert abs(value.mean()) < limit / 4, name
        elif "gamma_" in name or name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
            np.testing.assert_array_equal(value, np.float32(0.1 if "gamma_" in name else 1), err_msg=name)
        elif name.endswith((".bias", "_bias", "bias_table")):
            assert not value.any(), name
        else:
            writes = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
            std = 0.02 / math.sqrt(2 * layer) if writes else 0.02
            few = 0.35 if name.endswith("_token") else 0.1
            assert value.std() == pytest.approx(std, rel=few), name


@pytest.mark.parametrize("sections", [{}, SIMMIM], ids=["mae", "simmim"])
def test_a_run_begins_with_given_weights(backend, config, sections, tmp_path):
    settings = config(**sections, run={"seed": 3})
    given = backend.create_learner(settings).state()
    meta = {"kind": "pretrain", "step": 0, "config": settings.model_dump(mode="json")}
    init = str(save_checkpoint(tmp_path, given, meta))
    model = {**sections.get("model", {}), "init": init}
    learner = backend.create_learner(config(**{**sections, "model": model}, optim={"ema_decay": 0.9}))
    assert learner.notes == (f"begins with the weights of {init}",)
    state = learner.state()
    for name, value in given.model.items():
        np.testing.assert_array_equal(state.model[name], value, err_msg=name)
        np.testing.assert_array_equal(state.optimizer[f"ema/{name}"], value, err_msg=name)
    other = backend.create_learner(config(**sections))
    assert other.notes == ()
    assert not np.array_equal(other.state().model["cls_token"], given.model["cls_token"])
