"""Every task on ViTs of every form: a step, images of other sizes, rates of layers, and what does not decay."""

import numpy as np
import pytest
import torch
from timm.optim import param_groups_layer_decay
from tiny_learners import take_step, task_learner
from vit_forms import FORMS, random_network, write_form

from ehm.backends.torch.models.pyramid import fix_size, load_pyramid
from ehm.config import ModelSource

OWN = {"encoder": "vit_small", "width": None, "depth": None, "heads": None, "patch_size": None, "image_size": None}
"""Instead of the sizes of an untrained encoder: those of the weights."""
TASKS = {
    "classification": {},
    "retrieval": {},
    "segmentation": {"crop_size": 64},
    "detection": {"min_size": 64, "max_size": 96},
}
UNDECAYED = ("cls_token", "reg_token", "pos_embed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a file of every form."""
    folder = tmp_path_factory.mktemp("forms")
    for form in FORMS:
        write_form(form, folder / f"{form}.safetensors")
    return folder


def learner(task, file, **sections):
    model = {**OWN, "init": str(file), **sections.pop("model", {})}
    return task_learner(task, **{**TASKS[task], **sections, "model": model})


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", FORMS)
def test_a_step_with_recomputed_blocks_and_drop_path_is_the_step_itself(folder, form, task):
    file = folder / f"{form}.safetensors"
    steps = []
    for recomputed in (False, True):
        trained = learner(task, file, model={"drop_path": 0.2}, run={"grad_checkpointing": recomputed})
        torch.manual_seed(0)
        steps.append((float(take_step(trained)["loss"]), trained.state().model))
    (loss, weights), (again, recomputed_weights) = steps
    assert np.isfinite(loss)
    assert again == pytest.approx(loss, rel=1e-6)
    for name, values in weights.items():
        np.testing.assert_allclose(recomputed_weights[name], values, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_in_bfloat16_is_near_that_in_float32(folder, form):
    losses = {}
    for dtype in ("float32", "bfloat16"):
        trained = learner("classification", folder / f"{form}.safetensors", optim={"dtype": dtype})
        losses[dtype] = [float(take_step(trained)["loss"]) for _ in range(2)]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_layers_learn_at_timms_rates_and_tokens_do_not_decay(folder, form):
    trained = learner("classification", folder / f"{form}.safetensors", layer_decay=0.5)
    groups = param_groups_layer_decay(
        trained.model, layer_decay=0.5, no_weight_decay_list=trained.model.no_weight_decay()
    )
    name_of = {parameter: name for name, parameter in trained.model.named_parameters()}
    expected = {}
    for group in groups:
        for parameter in group["params"]:
            expected[name_of[parameter]] = (group["lr_scale"], group["weight_decay"] > 0)
    found = {}
    for group in trained._training.optimizer.param_groups:
        for parameter in group["params"]:
            found[name_of[parameter]] = (group["lr_scale"], group["decays"])
    assert found == expected
    for name in UNDECAYED:
        if name in found:
            assert found[name] == (0.5**3, False)
    assert not any(decays for name, (_, decays) in found.items() if "gamma" in name or "norm" in name)


@pytest.mark.parametrize("form", FORMS)
def test_maps_of_another_size_are_those_of_timms_network_of_that_size(folder, form):
    """The network of timm's is built for that size; here positions are resampled, or angles computed, in the pass."""
    side = FORMS[form][1]
    patch = {64: 16, 56: 14}[side]
    pyramid, _ = load_pyramid(ModelSource(init=str(folder / f"{form}.safetensors")), taps=(0, 0, 1, 1))
    assert pyramid.any_size
    images = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    network = random_network(form)
    network.set_input_size(img_size=(6 * patch, 10 * patch))
    resized = images
    if patch == 14:
        resized = torch.nn.functional.interpolate(images, (84, 140), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        pyramid.eval()
        seen = []
        pyramid.encoder.blocks[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
        found = pyramid(images)
        expected = network.forward_intermediates(resized, indices=[1], intermediates_only=True)[0]
        assert [tuple(level.shape[2:]) for level in found] == [(24, 40), (12, 20), (6, 10), (3, 5)]
        tokens = seen[0][:, pyramid.encoder.num_prefix_tokens :]
        torch.testing.assert_close(tokens, expected.flatten(2).mT, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(found[2], expected, atol=2e-5, rtol=1e-5)
        # fixed for an export, it gives the same
        fix_size(pyramid, (96, 160))
        for level, fixed in zip(found, pyramid(images), strict=True):
            torch.testing.assert_close(fixed, level, atol=2e-5, rtol=1e-5)
