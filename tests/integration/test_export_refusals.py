"""Exports that are refused: a network that differs from its checkpoint, wrong arguments, and missing packages."""

import numpy as np
import onnx
import pytest
import torch
from checkpoints import classifier, pretrained
from safetensors.torch import load_file, save_file

from ehm.deploy.export import export, parity, sources
from ehm.deploy.export.graphs import saving
from ehm.errors import BackendError, CheckpointError, ConfigError, ExportError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pretraining run for images of 48 x 48 pixels."""
    folder = tmp_path_factory.mktemp("pretrain")
    pretrained(folder, (48, 48))
    return folder


def test_one_wrong_weight_stops_the_export_and_leaves_nothing(run, tmp_path, monkeypatch):
    save = saving.save

    def spoil_and_save(model, path):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "norm.weight")
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[5] += 0.01
        tensor.raw_data = values.tobytes()
        save(model, path)

    monkeypatch.setattr(saving, "save", spoil_and_save)
    message = r"parity: the exported model differs from torch by 0\.0.* nothing was written"
    with pytest.raises(ExportError, match=message):
        export(run, out=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", [1e-4, 1, 1e4])
def test_an_error_counts_relative_to_the_size_of_its_output(scale):
    rng = np.random.default_rng(0)
    right = rng.standard_normal((2, 300))
    other = rng.standard_normal((2, 5))  # which is right, and of another size
    for error, refused in ((0.8e-4, False), (1.2e-4, True)):
        size = np.sqrt((right**2).mean())
        wrong = right.copy()
        wrong[1, 7] += error * size
        case = parity._compare_case("random", [(right * scale, wrong * scale), (other, other)])
        assert case.max_relative == pytest.approx(error)
        assert case.max_abs == pytest.approx(error * size * scale)
        assert (case.max_relative > parity.TOLERANCE) == refused


def test_zeros_are_zeros_in_both():
    zeros = np.zeros((2, 3))
    tiny = np.full((2, 3), 1e-9)
    assert parity._compare_case("random", [(zeros, zeros)]).max_relative == 0
    assert parity._compare_case("random", [(zeros, tiny)]).max_relative > 1


@pytest.mark.parametrize(
    ("shape", "value", "message"),
    [((2, 3), np.nan, "not finite"), ((2, 3), np.inf, "not finite"), ((2, 4), 1, "gives")],
)
def test_parity_sees_what_a_maximum_would_miss(shape, value, message):
    expected = np.ones((2, 3))
    with pytest.raises(ExportError, match=message):
        parity._compare_case("random", [(expected, np.full(shape, value))])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"head": "classifier"}, CheckpointError, "a pretrained encoder has no classifier; ehm finetune gives it one"),
        ({"head": "segmenter"}, ConfigError, "expected one of auto, classifier, features, patches, multi"),
        ({"overrides": ["opset=16"]}, ConfigError, "opset: .* greater than or equal to 17"),
        ({"overrides": ["model.image_size=50"]}, ConfigError, "patch size 16"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_leave_nothing(run, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        export(run, out=tmp_path / "bundle", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        export(tmp_path / "nowhere", out=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("absent", "checkpoint", "error", "message"),
    [
        ({"onnx"}, "RUN", BackendError, r"needs onnx; pip install .*\[export\]' installs what is missing"),
        (
            {"onnx", "torch", "mindspore"},
            "RUN",
            BackendError,
            r"needs onnx, torch or MindSpore; pip .*\[torch,export\]' or .*\[mindspore,export\]' installs",
        ),
        ({"onnxscript", "torch"}, "timm:test_resnet", BackendError, r"needs torch, onnxscript; .*\[torch,export\]'"),
        (
            {"timm", "mindspore"},
            "RUN",
            BackendError,
            r"neither torch nor MindSpore is there; pip .*\[torch\]' or pip .*\[mindspore\]'",
        ),
        ({"torch"}, "mae.pth", CheckpointError, r"mae\.pth: not a file of tensors that can be read safely"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(run, tmp_path, monkeypatch, absent, checkpoint, error, message):
    (tmp_path / "mae.pth").write_bytes(b"anything")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "find_spec", lambda name: None if name in absent else True)
    with pytest.raises(error, match=message):
        export(run if checkpoint == "RUN" else checkpoint, out=tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["mae.pth"]


def test_a_vit_that_lacks_a_part_of_its_form_is_refused(tmp_path):
    path = classifier(tmp_path / "run", (32, 32))
    scaled = {**load_file(path / "model.safetensors"), "blocks.0.ls1.gamma": torch.ones(32)}
    save_file(scaled, tmp_path / "scaled.safetensors")
    with pytest.raises(CheckpointError, match=r"scaled\.safetensors: .*blocks\.0\.ls2\.gamma is missing"):
        export(tmp_path / "scaled.safetensors", out=tmp_path / "bundle", overrides=["model.heads=2"])
