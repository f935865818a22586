"""Attention distance of attention that is known, gradients beside plain torch, and a chart whose points are found."""

import math

import numpy as np
import pytest
import timm
import torch
from fakes import FakeEncoder
from PIL import Image

from ehm import backends
from ehm.analysis import chart
from ehm.analysis.chart import Line, check_matplotlib, draw_chart, render_figure
from ehm.analysis.layers import (
    compute_attention_distance,
    compute_patch_distances,
    measure_encoder_distances,
    measure_fine_tuning_gradients,
)
from ehm.config import FinetuneConfig, ModelSource
from ehm.errors import BackendError, DataError


def attention(patches, to_class=0.0):
    """Softmax attention (1, 1, L, L) of ``patches`` (N, N), each of which gives ``to_class`` to the class token."""
    count = len(patches)
    full = np.full((1 + count, 1 + count), 1 / (1 + count))
    full[1:, 0], full[1:, 1:] = to_class, patches * (1 - to_class)
    return full[None, None].astype(np.float32)


def test_patches_are_as_far_apart_as_their_centres():
    distances = compute_patch_distances((2, 3), (16, 8))
    assert distances.shape == (6, 6)
    assert distances[0].tolist() == [0, 8, 16, 16, math.hypot(16, 8), math.hypot(16, 16)]
    np.testing.assert_array_equal(distances, distances.T)


def test_the_distance_of_known_attention():
    distances = compute_patch_distances((2, 2), (16, 16))
    assert compute_attention_distance(attention(np.eye(4)), distances) == [0]
    # each of four patches: itself, two neighbours at 16, one at 16 sqrt 2
    uniform = (0 + 16 + 16 + 16 * math.sqrt(2)) / 4
    assert compute_attention_distance(attention(np.full((4, 4), 0.25)), distances) == pytest.approx(uniform)
    across = np.roll(np.eye(4), 2, axis=1)  # the patch above or below
    assert compute_attention_distance(attention(across), distances) == pytest.approx(16)
    # what goes to the class token changes nothing of how far the rest goes
    assert compute_attention_distance(attention(across, 0.7), distances) == pytest.approx(16, rel=1e-5)
    both = np.concatenate([attention(np.eye(4)), attention(across)], axis=1)  # two heads
    images = np.concatenate([both, both[:, ::-1]])  # which change places in the second image
    assert compute_attention_distance(both, distances).tolist() == pytest.approx([0, 16])
    assert compute_attention_distance(images, distances).tolist() == pytest.approx([8, 8])


def test_every_block_of_an_encoder_is_measured(images):
    encoder = FakeEncoder((48, 32), 8)
    found = measure_encoder_distances(encoder, [images / "00.png", images / "01.png"])
    assert found.shape == (2, 2)
    assert found[0] == pytest.approx(compute_patch_distances((6, 4), (8, 8)).mean())
    assert (found[1] < found[0]).all()  # it looks at near patches


def test_attention_of_every_block_is_what_the_blocks_compute(images):
    source = ModelSource(
        init="scratch", encoder="vit_tiny", width=24, depth=3, heads=3, image_size=(32, 32), patch_size=8
    )
    encoder = backends.get("cpu").create_encoder(source)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    seen = []
    for block in encoder.model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output.numpy()))
    found = list(encoder.iterate_attention(pixels))
    del seen[:]
    encoder.compute_features(pixels)
    assert len(found) == len(seen) == 3
    for ours, theirs in zip(found, seen, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(found[-1], encoder.compute_attention(pixels), atol=1e-6)


def classifier(**model):
    sizes = {"encoder": "vit_tiny", "width": 24, "depth": 2, "heads": 2, "image_size": 32, "patch_size": 8}
    return backends.get("cpu").create_task_learner(FinetuneConfig.model_validate({"model": {**sizes, **model}}), 3)


def test_gradients_are_those_of_plain_torch():
    ours = classifier(drop_path=0.5)  # which evaluation mode leaves out
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=3,
        global_pool="avg",
    ).eval()
    before = {name: value.clone() for name, value in ours.model.state_dict().items()}
    model.load_state_dict(before)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    targets = np.eye(3, dtype=np.float32)[[0, 2, 1, 1]]
    found = ours.measure_gradients(images, targets)

    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(np.random.default_rng(0).normal(0, 0.02, (3, 24))))
        model.head.bias.zero_()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.nn.functional.cross_entropy(model(pixels), torch.tensor([0, 2, 1, 1])).backward()
    embedding = [model.cls_token, model.pos_embed, *model.patch_embed.parameters()]
    for row, layer in zip(found, (embedding, *(block.parameters() for block in model.blocks)), strict=True):
        entries = torch.cat([parameter.grad.flatten() for parameter in layer]).double().numpy()
        assert row == pytest.approx([np.abs(entries).mean(), np.sqrt((entries**2).sum())], rel=1e-4)
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_same_images_and_head_for_every_encoder(stripes, tmp_path):
    name = "timm:test_vit?pretrained=false"
    backend = backends.get("cpu")
    first, count = measure_fine_tuning_gradients(backend, name, str(stripes), 0)
    assert count == 48
    again, _ = measure_fine_tuning_gradients(backend, name, str(stripes), 0)
    np.testing.assert_array_equal(first, again)
    Image.new("RGB", (9, 9)).save(tmp_path / "one.png")
    with pytest.raises(DataError, match="has no labels; gradients need a folder with a folder for each class"):
        measure_fine_tuning_gradients(backend, name, str(tmp_path), 0)


def test_a_chart_has_its_points_where_they_belong():
    around = np.array([[1.0, 1.0], [3.0, 5.0], [2.0, 2.0]])
    first = Line("one", np.array([1.0, 4.0, 2.0]), around)
    second = Line("two", np.array([9.5, 0.5]), first=0)
    figure = draw_chart("title", ["a note"], [first, second], "layer", "pixels")
    (axes,) = figure.axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 1], [2, 4], [3, 2]], [[0, 9.5], [1, 0.5]]]
    assert len({line.get_color().tobytes() for line in axes.lines}) == 2
    (heads,) = axes.collections
    assert heads.get_offsets().tolist() == [[1, 1], [1, 1], [2, 3], [2, 5], [3, 2], [3, 2]]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_ylim()[0]) == ("layer", "pixels", 0)

    page = np.asarray(render_figure(figure))
    assert page.shape == (800, 1200, 3)
    for line in axes.lines:
        colour = (255 * line.get_color()).round()
        for x, y in axes.transData.transform(line.get_xydata()):
            assert (page[round(len(page) - y), round(x)] == colour).all()


def test_names_of_checkpoints_stand_in_the_legend_as_they_are():
    names = [
        "_runs/a",
        "runs/$b$",
        "runs/caf\udce9",
        "runs/\u72ac",
    ]  # hidden by matplotlib, a formula, no UTF-8, no glyph
    lines = [Line(name, np.array([1.0, 2.0])) for name in names]
    figure = draw_chart("title", [], lines, "layer", "pixels")
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["_runs/a", "runs/$b$", r"runs/caf\xe9", "runs/\u72ac"]
    render_figure(figure)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(chart, "find_spec", lambda name: None)
    said = r"inspect distance: matplotlib is not installed; pip install .*\[plots\]' installs it"
    with pytest.raises(BackendError, match=said):
        check_matplotlib("inspect distance")
