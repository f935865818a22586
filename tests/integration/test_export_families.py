"""timm's families that torch's exporter writes with what older servers lack: small ones, with random weights."""

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from oldest import run_in_oldest

from ehm.backends.torch.export.heads import Heads
from ehm.deploy.export.graphs.saving import save
from ehm.deploy.export.graphs.torch_export import make_onnx

FAMILIES = {
    "vit_small_patch16_dinov3": ({"depth": 1, "embed_dim": 48, "num_heads": 2}, 64),
    "eva02_tiny_patch14_224": ({"depth": 1, "embed_dim": 48, "num_heads": 2}, 56),
    "efficientvit_b0": ({"widths": (8, 8, 16, 16, 16), "depths": (1, 1, 1, 1, 1), "head_dim": 8}, 64),
    "efficientvit_m0": ({"depth": (1, 1, 1)}, 224),
    "test_maxvit": ({"depths": (1, 1), "embed_dim": (32, 64)}, 64),
    "test_coatnet": ({"depths": (1, 1), "embed_dim": (16, 32)}, 64),
    "edgenext_xx_small": ({"depths": (1, 1, 1, 1)}, 64),
    "naflexvit_base_patch16_gap": ({"depth": 1, "embed_dim": 48, "num_heads": 2}, 64),
}
SIZED = ("vit", "eva", "test", "naflex")
"""Families whose constructor takes the size of the image."""


def random_network(name, options, size):
    """Random weights everywhere, and norms that fit them: published initialisations leave much near zero."""
    torch.manual_seed(0)
    sizes = {"img_size": size} if name.startswith(SIZED) else {}
    model = timm.create_model(name, num_classes=5, **options, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
            else:
                parameter.mul_(3)
        model.get_classifier().weight.normal_()
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.momentum = 1.0
        model.train()(torch.randn(8, 3, size, size))
    return Heads(model.eval().requires_grad_(False), ("logits", "features"))


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request, tmp_path_factory):
    """The file of a family's network, images, and torch's outputs."""
    options, size = FAMILIES[request.param]
    network = random_network(request.param, options, size)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = dict(zip(network.outputs, (values.numpy() for values in network(images)), strict=True))
    file = tmp_path_factory.mktemp(request.param) / "model.onnx"
    save(make_onnx(network, 17, image_size=(size, size), outputs=network.outputs), file)
    return file, images.numpy(), expected


def assert_alike(found, expected):
    assert found.keys() == expected.keys()
    for output, values in expected.items():
        size = np.sqrt(np.mean(values**2))
        assert np.ptp(values, axis=0).max() > 0.05 * size  # the network tells images apart
        np.testing.assert_allclose(found[output], values, rtol=0, atol=1e-4 * size, err_msg=output)


def test_each_is_written_in_operator_set_17_and_gives_what_timm_gives(exported):
    file, images, expected = exported
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.ir_version == 8  # which onnx 1.12 wrote first, with operator set 17
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert_alike(dict(zip(expected, session.run(list(expected), {"images": images}), strict=True)), expected)


def test_the_oldest_onnx_runtime_gives_the_same(exported, tmp_path):
    file, images, expected = exported
    (found,) = run_in_oldest([file], [images], tmp_path)
    assert_alike(found, expected)
