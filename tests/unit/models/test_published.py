"""Published checkpoints of SimMIM and BEiT: to fine-tune, to go on, and the result into timm, against timm's own."""

import argparse
import os
import re
from functools import partial

import numpy as np
import pytest
import timm
import torch
from published import (
    GRID,
    HEADS,
    SWIN_DEPTHS,
    SWIN_HEADS,
    SWIN_WIDTH,
    VOCABULARY,
    WIDTH,
    WINDOW,
    beit,
    beit_finetuned,
    random,
    save_simmim,
    simmim_swin,
    simmim_vit,
    swin,
    yacs,
)
from safetensors.torch import save_file
from timm.models import swin_transformer
from timm.models.beit import checkpoint_filter_fn
from timm.models.swin_transformer import SwinTransformer
from torch.nn.functional import interpolate

from ehm.backends.torch.export.module import load_module
from ehm.backends.torch.models.loading import load_initial_weights, load_model
from ehm.backends.torch.models.torch_file import read_arrays
from ehm.backends.torch.objectives import create_objective
from ehm.backends.torch.objectives.beit import BeitVit, build_beit
from ehm.config import ModelSource, TrainConfig
from ehm.config.encoders import SwinSpec, VitSpec
from ehm.errors import CheckpointError, ConfigError
from ehm.models.encoder_parts import HEADS as BESIDE
from ehm.models.fitting import keep_encoder
from ehm.models.opening import open_model
from ehm.models.published import convert_to_timm
from ehm.models.shapes import spec_from_json, spec_to_json

TABLE = "relative_position_bias_table"


def timms_beit(**options):
    sizes = {"embed_dim": WIDTH, "num_heads": HEADS, "depth": 12, "init_values": 0.1}
    return timm.create_model("beit_base_patch16_224", **{**sizes, "num_classes": 0, **options}).eval()


def timms_swin(**options):
    sizes = {"embed_dim": SWIN_WIDTH, "depths": SWIN_DEPTHS, "num_heads": SWIN_HEADS}
    defaults = {"img_size": 192, "window_size": WINDOW, "num_classes": 0}
    return SwinTransformer(**{**sizes, **defaults, **options}).eval()


def load_by_timm(model, tensors, filter_fn):
    """``tensors`` through timm's own reader of the original files; what ours calls a head is not for timm."""
    tensors = {name.removeprefix("encoder."): value for name, value in tensors.items()}
    encoder = {name: value for name, value in tensors.items() if not name.startswith(BESIDE)}
    model.load_state_dict(filter_fn(encoder, model), strict=True)
    return model


shared_beit = partial(timms_beit, use_rel_pos_bias=False, use_shared_rel_pos_bias=True, use_fc_norm=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Path and tensors of a file of each method."""
    folder = tmp_path_factory.mktemp("published")
    made = {name: random(shapes()) for name, shapes in PRETRAINED.items()}
    save_simmim(made["simmim_vit"], folder / "simmim_vit.pth")
    save_simmim(made["simmim_swin"], folder / "simmim_swin.pth")
    args = argparse.Namespace(model="beit_base_patch16_224_8k_vocab", window_size=(14, 14))
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    content = {"model": made["beit"], "optimizer": optimizer, "epoch": 799, "scaler": {"scale": 1.0}, "args": args}
    torch.save(content, folder / "beit.pth")
    return {name: (folder / f"{name}.pth", tensors) for name, tensors in made.items()}


PRETRAINED = {"simmim_vit": simmim_vit, "simmim_swin": simmim_swin, "beit": beit}
SPECS = {
    "simmim_vit": VitSpec((224, 224), 16, WIDTH, 12, HEADS, 4.0, relative=True),
    "beit": VitSpec((224, 224), 16, WIDTH, 12, HEADS, 4.0, relative=True),
    "simmim_swin": SwinSpec((192, 192), 4, SWIN_WIDTH, SWIN_DEPTHS, SWIN_HEADS, WINDOW),
}


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
@pytest.mark.parametrize("method", ["simmim_vit", "beit"])
def test_a_published_relative_vit_gives_timms_features(files, method, pixels):
    path, tensors = files[method]
    loaded = load_model(ModelSource(init=str(path)), fc_norm=False)
    assert spec_from_json(loaded.architecture) == SPECS[method]
    reference = load_by_timm(shared_beit(), tensors, checkpoint_filter_fn)
    expected = reference.forward_features(pixels)
    torch.testing.assert_close(loaded.model.eval()(pixels), expected[:, 1:].mean(1))
    token = load_model(ModelSource(init=str(path)), pool="token").model.eval()
    torch.testing.assert_close(token(pixels), expected[:, 0])
    assert loaded.inputs.mean == ((0.5, 0.5, 0.5) if method == "beit" else (0.485, 0.456, 0.406))
    head = "decoder" if method == "simmim_vit" else "lm_head"
    assert f"not used from there: {head} (2 tensors), mask_token" in loaded.notes


@torch.inference_mode()
def test_a_published_swin_gives_timms_features(files, pixels):
    path, tensors = files["simmim_swin"]
    loaded = load_model(ModelSource(init=str(path)))
    assert spec_from_json(loaded.architecture) == SPECS["simmim_swin"]
    reference = load_by_timm(timms_swin(), tensors, swin_transformer.checkpoint_filter_fn)
    images = pixels[:, :, :192, :192]
    expected = reference.forward_features(images).mean((1, 2))
    torch.testing.assert_close(loaded.model.eval()(images), expected)
    assert expected.std() > 0.1


@torch.inference_mode()
def test_published_classifiers_keep_their_heads(tmp_path, pixels):
    tensors = random(beit_finetuned())
    torch.save({"module": tensors}, tmp_path / "beit.pth")  # as DeepSpeed writes them
    reference = load_by_timm(timms_beit(num_classes=5), tensors, checkpoint_filter_fn)
    opened = load_module(ModelSource(init=str(tmp_path / "beit.pth")))
    assert opened.provenance.labels == ("0", "1", "2", "3", "4")
    torch.testing.assert_close(opened.model(pixels), reference(pixels))

    tensors = random(swin(classes=5))
    torch.save({"model": tensors}, tmp_path / "swin.pth")
    reference = load_by_timm(timms_swin(num_classes=5), tensors, swin_transformer.checkpoint_filter_fn)
    opened = load_module(ModelSource(init=str(tmp_path / "swin.pth")))
    images = pixels[:, :, :192, :192]
    torch.testing.assert_close(opened.model(images), reference(images))
    features = load_module(ModelSource(init=str(tmp_path / "swin.pth")), "features")
    torch.testing.assert_close(features.model(images), reference.forward_features(images).mean((1, 2)))


def run_config(method, **values):
    """A pretraining run of the encoder in the file of ``method``."""
    spec = SPECS[method]
    sizes = {"width": spec.width, "heads": spec.heads, "depth": getattr(spec, "depths", 12)}
    given = {
        "objective": method.partition("_")[0],
        "encoder": "swin_tiny" if isinstance(spec, SwinSpec) else "vit_tiny",
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        **values,
        "model": {**sizes, **values.get("model", {})},
    }
    return TrainConfig.model_validate(given)


def begun(method, path, **values):
    config = run_config(method, **values)
    config = config.model_copy(update={"model": config.model.model_copy(update={"init": str(path)})})
    torch.manual_seed(3)
    if config.objective == "beit":
        model = build_beit(config, VOCABULARY)
    else:
        model = create_objective(config, torch.device("cpu")).build_model()
    return model, load_initial_weights(model, config)


@pytest.mark.parametrize("method", PRETRAINED)
def test_pretraining_goes_on_from_every_tensor_of_a_published_file(files, method):
    path, tensors = files[method]
    model, notes = begun(method, path)
    own = model.state_dict()
    by_hand = {name.removeprefix("encoder."): value for name, value in tensors.items() if value.is_floating_point()}
    for stage in (2, 1, 0):  # timm merges tokens at the beginning of the next stage
        for part in ("reduction.weight", "norm.weight", "norm.bias"):
            if method == "simmim_swin":
                by_hand[f"layers.{stage + 1}.downsample.{part}"] = by_hand.pop(f"layers.{stage}.downsample.{part}")
    assert own.keys() == by_hand.keys()
    for name, value in by_hand.items():
        torch.testing.assert_close(own[name], value, msg=name, rtol=0, atol=0)
    assert notes[0] == f"begins with the weights of {path}"
    assert len(notes) == 2
    assert re.search(r"assumed, as of microsoft/.*: mean", notes[1])


def test_a_head_of_another_vocabulary_starts_afresh_and_another_methods_head_is_left(files):
    path, tensors = files["beit"]
    config = run_config("beit", model={"init": str(path)})
    model = BeitVit(config.spec, 0.0, vocabulary=16)
    fresh = model.lm_head.weight.clone()
    assert load_initial_weights(model, config)[2:] == (
        "starts afresh: lm_head (2 tensors)",
        "not used from there: lm_head (2 tensors)",
    )
    assert torch.equal(model.lm_head.weight, fresh)
    assert torch.equal(model.mask_token, tensors["mask_token"])
    model, notes = begun("simmim_vit", path)
    assert notes[2:4] == ("starts afresh: decoder (2 tensors)", "not used from there: lm_head (2 tensors)")
    assert "data.mean (0.5, 0.5, 0.5)" in notes[4]
    assert torch.equal(model.rel_pos_bias.relative_position_bias_table, tensors[f"rel_pos_bias.{TABLE}"])


def test_tables_of_blocks_become_their_mean(files, tmp_path):
    tensors = {f"blocks.{block}.attn.{TABLE}": torch.full((732, HEADS), float(block)) for block in range(12)}
    others = {name: value for name, value in files["beit"][1].items() if "rel_pos_bias" not in name}
    save_file({**others, **tensors}, tmp_path / "blocks.safetensors")
    model, notes = begun("beit", tmp_path / "blocks.safetensors")
    assert "the biases for relative positions are the mean of those of its blocks" in notes
    assert torch.equal(model.rel_pos_bias.relative_position_bias_table, torch.full((732, HEADS), 5.5))


def antialiased(table, old, new):
    """Rows of a ``table`` by torch, which antialiases in float32."""
    sizes = [tuple(2 * side - 1 for side in window) for window in (old, new)]
    grid = table.T.reshape(1, -1, *sizes[0])
    return interpolate(grid, sizes[1], mode="bicubic", antialias=True).flatten(2)[0].T


@pytest.mark.parametrize("size", [(160, 160), (288, 224), (96, 256)])
def test_tables_are_resampled_as_torch_does(files, size):
    path, tensors = files["simmim_vit"]
    table = tensors[f"encoder.rel_pos_bias.{TABLE}"]
    expected = antialiased(table[:-3], (GRID, GRID), (size[0] // 16, size[1] // 16))
    expected = torch.cat([expected, table[-3:]])
    model = load_model(ModelSource(init=str(path), image_size=size)).model
    for block in model.blocks:
        torch.testing.assert_close(block.attn.relative_position_bias_table, expected, rtol=1e-4, atol=1e-5)
    model, _ = begun("simmim_vit", path, image_size=size)
    torch.testing.assert_close(model.rel_pos_bias.relative_position_bias_table, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "window", "windows"),
    [
        ((192, 192), None, [(6, 6)] * 4),
        ((224, 224), None, [(7, 7)] * 4),
        ((256, 192), None, [(6, 6)] * 4),
        ((96, 160), 4, [(4, 4), (4, 4), (4, 4), (3, 4)]),
    ],
)
def test_a_swins_windows_follow_its_images(files, size, window, windows):
    path, tensors = files["simmim_swin"]
    source = ModelSource(init=str(path), image_size=size, window=window)
    models = [load_model(source).model, begun("simmim_swin", path, image_size=size, model={"window": window})[0]]
    for model in models:
        for stage, expected in enumerate(windows):
            block = model.layers[stage].blocks[0]
            assert block.window_size == expected
            old = tensors[f"encoder.layers.{stage}.blocks.0.attn.{TABLE}"]
            found = block.attn.relative_position_bias_table
            torch.testing.assert_close(found, antialiased(old, (6, 6), expected), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("method", PRETRAINED)
def test_what_pretraining_makes_loads_into_timm_strictly(files, method, pixels, tmp_path):
    model, _ = begun(method, files[method][0])
    model.eval()
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    tensors = {name: torch.from_numpy(array) for name, array in keep_encoder(arrays, model.spec.blocks).items()}
    save_file(tensors, tmp_path / "encoder.safetensors")
    images = pixels[:, :, : model.spec.image_size[0], : model.spec.image_size[1]]
    nothing = torch.zeros(2, model.spec.patches, dtype=torch.bool)
    expected = model.encode(model.embed(images), nothing).mean(1)
    if isinstance(model.spec, SwinSpec):
        reference = timms_swin()
        reference.load_state_dict(tensors, strict=True)
        found = reference(images)
    else:
        reference = timms_beit(use_fc_norm=False)
        reference.load_state_dict(tensors, strict=True)
        found = reference.forward_features(images)[:, 1:].mean(1)
    torch.testing.assert_close(found, expected)
    weights = open_model(ModelSource(init=str(tmp_path / "encoder.safetensors")))
    assert weights.spec == model.spec
    torch.testing.assert_close(
        load_model(ModelSource(init=str(tmp_path / "encoder.safetensors")), fc_norm=False).model.eval()(images),
        expected,
    )


def test_timms_names_stay_as_they_are():
    ours = {name: value.numpy() for name, value in timms_swin(num_classes=3).state_dict().items()}
    assert convert_to_timm(ours).arrays.keys() == ours.keys()


def test_a_swin_that_was_pretrained_in_larger_windows_than_its_last_stage(tmp_path):
    """SimMIM's Swin-L: window 12 at 192 pixels, whose last stage has 6 x 6 tokens."""
    tensors = timms_swin(window_size=12).state_dict()
    save_file(tensors, tmp_path / "swin.safetensors")
    found = open_model(ModelSource(init=str(tmp_path / "swin.safetensors"))).spec
    assert found == SwinSpec((192, 192), 4, SWIN_WIDTH, SWIN_DEPTHS, SWIN_HEADS, 12)


def test_descriptions_of_older_checkpoints_are_read():
    old = {"family": "vit", "image_size": [32, 48], "patch_size": 8, "width": 24, "depth": 2, "heads": 2}
    assert spec_from_json(old) == VitSpec((32, 48), 8, 24, 2, 2)
    for spec in SPECS.values():
        assert spec_from_json(spec_to_json(spec)) == spec


def test_a_configuration_beside_the_weights_runs_nothing(tmp_path):
    """A dictionary stands in for yacs's class, which is not there to be imported; nothing else may hide in it."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    save_simmim(random(simmim_vit(1)), tmp_path / "simmim.pth")
    assert len(read_arrays(tmp_path / "simmim.pth")) == len(simmim_vit(1))
    with yacs() as node:
        torch.save({"model": random(simmim_vit(1)), "config": node({"DATA": Evil()})}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="reads safely"):
        read_arrays(tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_program_is_refused_by_its_name(tmp_path):
    """OpenAI's files of CLIP are such programs."""
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "ViT-B-32.pt"))
    with pytest.raises(CheckpointError, match="TorchScript program, as OpenAI's files of CLIP do") as said:
        read_arrays(tmp_path / "ViT-B-32.pt")
    assert "weights_only" not in str(said.value)


def test_what_does_not_fit_is_one_sentence(files, tmp_path):
    vit, swin_file = (str(files[name][0]) for name in ("simmim_vit", "simmim_swin"))
    with pytest.raises(ConfigError, match="pool token: a Swin has no class token; set pool to avg"):
        load_model(ModelSource(init=swin_file), pool="token")
    with pytest.raises(ConfigError, match=r"\[100, 96\]: not a multiple of the weights' stride 32"):
        load_model(ModelSource(init=swin_file, image_size=(100, 96)))
    with pytest.raises(ConfigError, match=r"model\.window 7: the weights in .* have no windows"):
        load_model(ModelSource(init=vit, window=7))
    with pytest.raises(CheckpointError, match=r"model\.depth .*: the weights in .* have depth \(2, 2, 4, 2\)"):
        load_model(ModelSource(init=swin_file, depth=(2, 2, 6, 2)))
    with pytest.raises(CheckpointError, match="no such file or folder; it takes"):
        begun("simmim_vit", tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="holds a Swin, and the run's encoder is a ViT with relative positions"):
        begun("simmim_vit", swin_file)
    with pytest.raises(CheckpointError, match="its encoder has depth 12, and the run's has depth 11"):
        begun("simmim_vit", vit, model={"depth": 11})
    tensors = random(beit(1))
    for change, message in (
        ({f"rel_pos_bias.{TABLE}": torch.zeros(5 * 7 + 3, HEADS)}, "35 relative positions .* model.image_size"),
        ({"pos_embed": torch.zeros(1, 197, WIDTH)}, "has pos_embed beside other positions"),
        ({f"blocks.0.attn.{TABLE}": torch.zeros(732, HEADS)}, "attn.relative_position_bias_table beside other"),
        (
            {f"rel_pos_bias.{TABLE}": None}
            | {f"blocks.{block}.attn.{TABLE}": torch.zeros(732 * (1 - block), HEADS) for block in (0, 1)},
            "has 0 rows, where 14 x 14 tokens have 732",
        ),
        ({"cls_token": None}, "no ViT and no Swin with timm's names: cls_token missing"),
    ):
        torch.save({k: v for k, v in {**tensors, **change}.items() if v is not None}, tmp_path / "wrong.pth")
        with pytest.raises(CheckpointError, match=message):
            load_model(ModelSource(init=str(tmp_path / "wrong.pth")))


def test_a_grid_that_is_no_square_needs_the_image_size(tmp_path):
    tensors = random(beit(1)) | {f"rel_pos_bias.{TABLE}": torch.zeros(5 * 7 + 3, HEADS)}
    torch.save(tensors, tmp_path / "wide.pth")
    loaded = load_model(ModelSource(init=str(tmp_path / "wide.pth"), image_size=(48, 64)))
    assert loaded.image_size == (48, 64)


def test_index_tables_of_files_are_left_out(files):
    found = open_model(ModelSource(init=str(files["simmim_swin"][0])), read_arrays).arrays
    assert not [name for name in found if name.endswith(("index", "attn_mask"))]
    assert all(array.dtype == np.float32 for array in found.values())
