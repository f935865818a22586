"""The description of the encoder in ``encoder.safetensors``, against timm's class with the sizes of training."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from ehm.backends.torch.models.loading import load_model
from ehm.backends.torch.models.torch_file import read_arrays
from ehm.config import ModelSource
from ehm.config.encoders import SwinSpec, VitSpec
from ehm.config.inputs import InputSpec
from ehm.errors import CheckpointError
from ehm.models.assembling import assemble_network
from ehm.models.encoder_file import make_encoder_metadata, read_facts
from ehm.models.opening import open_model
from ehm.models.shapes import spec_to_json
from ehm.training.pretrain import train

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def timms(size, heads, width=192):
    torch.manual_seed(0)
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    numbers = {"img_size": size, "patch_size": 8, "embed_dim": width, "depth": 2, "num_heads": heads, "num_classes": 0}
    return VisionTransformer(**numbers, norm_layer=norm, global_pool="avg", fc_norm=False).eval()


def write(path, model, spec=None, **changes):
    """Write ``model`` as ``encoder.safetensors`` is written; without ``spec`` as versions before did."""
    metadata = make_encoder_metadata(spec, InputSpec(MEAN, STD)) if spec else {}
    metadata |= {"mean": json.dumps(MEAN), "std": json.dumps(STD)} | changes
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path, metadata)
    return ModelSource(init=str(path))


@torch.inference_mode()
@pytest.mark.parametrize(("size", "heads"), [((32, 32), 6), ((32, 32), 3), ((16, 64), 6), ((16, 40), 4)])
def test_heads_and_grid_are_those_of_the_file(tmp_path, size, heads):
    """3 heads are those of the published ViT that is 192 wide; 2 x 8 patches are as many as 4 x 4."""
    model, spec = timms(size, heads), VitSpec(size, 8, 192, 2, heads)
    source = write(tmp_path / "encoder.safetensors", model, spec)
    loaded = load_model(source, fc_norm=False)
    assert loaded.architecture == spec_to_json(spec)
    assert loaded.inputs == InputSpec(MEAN, STD)
    assert not [note for note in loaded.notes if "assumed" in note]
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded.model.eval()(images), model(images))

    wanted = (2 * size[0], 2 * size[1])
    resampled = timms(wanted, heads)
    tensors = load_file(source.init)
    grid = tensors["pos_embed"][:, 1:].reshape(1, *spec.grid, 192).permute(0, 3, 1, 2)
    doubled = [2 * side for side in spec.grid]
    enlarged = torch.nn.functional.interpolate(grid, doubled, mode="bicubic", antialias=True).flatten(2).mT
    tensors["pos_embed"] = torch.cat([tensors["pos_embed"][:, :1], enlarged], 1)
    resampled.load_state_dict(tensors)
    images = torch.randn(2, 3, *wanted, generator=torch.Generator().manual_seed(1))
    found = load_model(source.model_copy(update={"image_size": wanted}), fc_norm=False).model.eval()(images)
    torch.testing.assert_close(found, resampled(images), rtol=1e-4, atol=1e-5)


def test_settings_that_contradict_the_file_are_refused(tmp_path):
    source = write(tmp_path / "encoder.safetensors", timms((32, 32), 6), VitSpec((32, 32), 8, 192, 2, 6))
    with pytest.raises(CheckpointError, match=r"model\.heads 3: the weights in .* have heads 6"):
        load_model(source.model_copy(update={"heads": 3}))


def test_files_that_say_less_load_and_one_line_says_what_was_assumed(tmp_path):
    old = write(tmp_path / "encoder.safetensors", timms((32, 32), 3))
    loaded = load_model(old)
    assert loaded.inputs == InputSpec(MEAN, STD)
    (note,) = (note for note in loaded.notes if "assumed" in note)
    assert "3 heads as of the published ViT that is 192 wide (model.heads), images of 32 x 32 pixels" in note
    assert "mean" not in note
    told = load_model(old.model_copy(update={"heads": 6, "image_size": (32, 32)}))
    assert not [note for note in told.notes if "assumed" in note]

    save_file(timms((32, 32), 3).state_dict(), tmp_path / "others.safetensors")
    loaded = load_model(ModelSource(init=str(tmp_path / "others.safetensors")))
    (note,) = (note for note in loaded.notes if "assumed" in note)
    assert "mean [0.485, 0.456, 0.406] and std [0.229, 0.224, 0.225] (data.mean, data.std)" in note


def test_an_exported_file_has_the_inputs_that_it_says(tmp_path):
    source = write(tmp_path / "encoder.safetensors", timms((16, 40), 4), VitSpec((16, 40), 8, 192, 2, 4))
    trained = assemble_network(open_model(source, read_arrays), source)
    assert trained.provenance.inputs == InputSpec(MEAN, STD)
    assert trained.spec == VitSpec((16, 40), 8, 192, 2, 4)
    assert trained.provenance.notes == ()


def test_timms_description_beside_a_file_is_read(tmp_path):
    save_file(timms((32, 32), 3).state_dict(), tmp_path / "model.safetensors")
    facts = {"mean": MEAN, "std": STD, "crop_pct": 0.95, "crop_mode": "squash", "interpolation": "bilinear"}
    config = {"architecture": "vit_tiny_patch8", "pretrained_cfg": {**facts, "url": None, "first_conv": "patch_embed"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = open_model(ModelSource(init=str(tmp_path / "model.safetensors")))
    assert weights.provenance.inputs == InputSpec(MEAN, STD, 0.95, "squash", "bilinear")
    config["pretrained_cfg"]["interpolation"] = "nearest"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: pretrained_cfg: .*'nearest' is unknown"):
        open_model(ModelSource(init=str(tmp_path / "model.safetensors")))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert open_model(ModelSource(init=str(tmp_path / "model.safetensors"))).provenance.inputs == InputSpec()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "{"}, "its metadata describe no encoder that this version knows"),
        ({"encoder": '{"family": "vit"}'}, "its metadata describe no encoder"),
        ({"norm_eps": 1e-5}, "norm_eps is not 1e-06"),
        ({"image_size": [16, 64]}, r"grid \[4, 4\] is not that of image_size \[16, 64\]"),
        ({"image_size": [32, 40], "grid": [4, 5]}, "pos_embed is .*, and the file says that it has 4 x 5 patches"),
        ({"depth": 3}, r"blocks\.2\.norm1\.weight is missing"),
        ({"depth": 1}, r"blocks\.1\.attn\.proj\.bias and 11 more would be left out"),
        ({"inputs": '{"crop_mode": "middle"}'}, "'middle'"),
    ],
)
def test_metadata_that_are_wrong_are_one_sentence(tmp_path, changes, message):
    spec = VitSpec((32, 32), 8, 192, 2, 3)
    if not changes.keys() & {"encoder", "inputs"}:
        described = json.loads(make_encoder_metadata(spec, InputSpec())["encoder"])
        changes = {"encoder": json.dumps(described | changes)}
    source = write(tmp_path / "encoder.safetensors", timms((32, 32), 3), spec, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(source)


def test_a_swins_windows_are_in_the_file(tmp_path):
    """Windows of 4 tokens over 12 x 20, of which the last stage has 3 x 5: no square, and nothing to guess."""
    spec = SwinSpec((96, 160), 4, 8, (2, 2, 2, 2), (1, 2, 4, 8), 4)
    assert spec.windows[-1] == (3, 4)
    from ehm.backends.torch.models.build import build_encoder

    source = write(tmp_path / "encoder.safetensors", build_encoder(spec), spec)
    assert open_model(source).spec == spec
    assert load_model(source).architecture == spec_to_json(spec)


def test_pretraining_writes_what_its_encoder_is(tmp_path, stripes):
    settings = ["encoder=vit_tiny", "model.width=48", "model.heads=6", "model.depth=2", "image_size=[16,64]"]
    settings += ["patch_size=8", "model.decoder_width=16", "model.decoder_depth=1", "model.decoder_heads=2"]
    settings += ["mask.blocks=1", "data.workers=0", "data.mean=[0.5,0.4,0.3]", "run.trackers=[]"]
    settings += ["optim.batch_size=8", "optim.epochs=1", "optim.warmup_epochs=0", f"data.source={stripes}"]
    run = train("elpv/pretrain", device="cpu", overrides=settings, out=tmp_path / "run")
    facts = read_facts(run.encoder)
    assert facts.spec == VitSpec((16, 64), 8, 48, 2, 6)
    assert facts.inputs == InputSpec(mean=MEAN)
    with safe_open(run.encoder, "np") as file:
        described = json.loads(file.metadata()["encoder"])
    assert (described["grid"], described["norm_eps"], described["activation"]) == ([2, 8], 1e-6, "gelu")
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 16, 64)).astype(np.float32))
    of_run, of_file = (
        load_model(ModelSource(init=str(place)), fc_norm=False).model.eval() for place in (run.out, run.encoder)
    )
    with torch.inference_mode():
        torch.testing.assert_close(of_file(images), of_run(images))
