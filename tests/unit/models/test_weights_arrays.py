"""Weights as arrays, against torch's readers and timm's resampling of positions."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed

from ehm.backends.torch.models.torch_file import read_arrays
from ehm.config import ModelSource
from ehm.config.encoders import VitSpec
from ehm.errors import CheckpointError
from ehm.models.fitting import select_arrays
from ehm.models.opening import open_model, read_safetensors, read_weights_file
from ehm.models.resample import resample_positions
from ehm.models.shapes import resize_spec, spec_to_json


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((14, 14), (14, 14)),
        ((14, 14), (16, 16)),
        ((14, 14), (7, 7)),
        ((14, 14), (24, 10)),
        ((3, 5), (14, 2)),
        ((24, 24), (5, 31)),
        ((2, 8), (4, 4)),
        ((1, 1), (3, 4)),
    ],
)
def test_positions_are_resampled_as_timm_does(old, new):
    positions = np.random.default_rng(0).normal(size=(1, 1 + old[0] * old[1], 6)).astype(np.float32)
    expected = resample_abs_pos_embed(torch.from_numpy(positions), list(new), list(old), num_prefix_tokens=1)
    found = resample_positions(positions, new, old)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected.numpy()).max() < 1e-5


PLAIN_BLOCK = {
    "blocks.0.norm1.bias": (192,),
    "blocks.0.attn.qkv.bias": (576,),
    "blocks.0.attn.proj.bias": (192,),
    "blocks.0.mlp.fc2.weight": (192, 768),
}
"""The arrays that tell the form of a plain ViT."""


def test_every_number_type_of_a_file_is_read_as_torch_reads_it(tmp_path):
    values = torch.linspace(-3, 70000, 12).reshape(3, 4)
    types = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]
    tensors = {str(dtype): values.clamp(0, 200).to(dtype) for dtype in types}
    tensors |= {"half": values.clamp(max=60000).half(), "negative": values.bfloat16(), "scalar": torch.tensor(3)}
    save_file(tensors, tmp_path / "types.safetensors")
    found = read_safetensors(tmp_path / "types.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        expected = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        assert found[name].dtype == expected.dtype
        assert np.array_equal(found[name], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_float32_whatever_the_file_holds(tmp_path, dtype):
    shapes = {"cls_token": (1, 1, 192), "pos_embed": (1, 10, 192), "patch_embed.proj.weight": (192, 3, 16, 16)}
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in {**shapes, **PLAIN_BLOCK}.items()
    }
    save_file(tensors, tmp_path / "vit.safetensors")
    torch.save({"model": {name: torch.nn.Parameter(value) for name, value in tensors.items()}}, tmp_path / "vit.pth")
    for file, read_file in (
        ("vit.safetensors", read_arrays),
        ("vit.pth", read_arrays),
        ("vit.pth", read_weights_file),
    ):
        weights = open_model(ModelSource(init=str(tmp_path / file)), read_file)
        assert weights.spec == VitSpec((48, 48), 16, 192, 1, 3, 4.0)
        for name, tensor in tensors.items():
            assert weights.arrays[name].dtype == np.float32
            assert np.array_equal(weights.arrays[name], tensor.float().numpy())


def test_a_type_without_a_counterpart_is_one_sentence(tmp_path):
    save_file({"x": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "eight.safetensors")
    with pytest.raises(CheckpointError, match=r"eight\.safetensors: holds tensors of type 'F8_E4M3'; F64, .* load$"):
        read_safetensors(tmp_path / "eight.safetensors")


SHAPES = {"cls_token": (1, 1, 4), "fc_norm.weight": (4,), "head.weight": (3, 4)}


def test_what_fits_is_selected_and_the_rest_is_noted():
    arrays = {"cls_token": np.ones((1, 1, 4)), "head.weight": np.ones((9, 9)), "mask_token": np.ones(2)}
    taken, notes = select_arrays(SHAPES, arrays, "head", "FILE")
    assert list(taken) == ["cls_token"]
    assert notes == (
        "encoder from FILE",
        "starts afresh: fc_norm, head",
        "not used from there: head, mask_token",
    )
    taken, notes = select_arrays(SHAPES, arrays | {"fc_norm.weight": np.ones(4)}, "head", "FILE")
    assert set(taken) == {"cls_token", "fc_norm.weight"}


def test_what_does_not_fit_is_refused():
    with pytest.raises(CheckpointError, match=r"FILE: does not fit the encoder: cls_token is missing$"):
        select_arrays(SHAPES, {}, "head", "FILE")
    with pytest.raises(CheckpointError, match=r"fc_norm\.weight is \(5,\), not \(4,\)"):
        select_arrays(SHAPES, {"cls_token": np.ones((1, 1, 4)), "fc_norm.weight": np.ones(5)}, "head", "FILE")
    with pytest.raises(CheckpointError, match=r"a is missing; b is missing; c is missing and 2 more"):
        select_arrays(dict.fromkeys("abcde", (1,)), {}, "head", "FILE")


def test_a_description_gives_the_same_encoder_at_another_size():
    spec = VitSpec((32, 48), 8, 24, 2, 2)
    described = spec_to_json(resize_spec(spec, ModelSource(init="FILE", image_size=(16, 64), heads=2)))
    assert described.pop("family") == "vit"
    assert VitSpec(**{**described, "image_size": tuple(described["image_size"])}) == VitSpec((16, 64), 8, 24, 2, 2)


def test_a_grid_that_could_be_square_is_what_the_image_size_says(tmp_path):
    """2 x 8 patches are as many as 4 x 4."""
    shapes = {"cls_token": (1, 1, 192), "pos_embed": (1, 17, 192), "patch_embed.proj.weight": (192, 3, 16, 16)}
    shapes |= PLAIN_BLOCK
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "vit.safetensors")
    for asked, found in ((None, (64, 64)), ((32, 128), (32, 128)), ((64, 128), (64, 64))):
        source = ModelSource(init=str(tmp_path / "vit.safetensors"), image_size=asked)
        assert open_model(source).spec.image_size == found
