"""Encoder weights from every kind of source, against timm's own models."""

import argparse
import os
import time
from collections import OrderedDict

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed

from ehm.backends.torch.learners.pretraining import TorchLearner
from ehm.backends.torch.models.loading import load_model
from ehm.config import ModelSource, TrainConfig
from ehm.errors import CheckpointError, ConfigError
from ehm.models import hub
from ehm.storage.arrays import LearnerState
from ehm.storage.checkpoint import open_checkpoint, save_checkpoint

CPU = torch.device("cpu")
ASSUMED_INPUTS = (
    "the file does not say all of its encoder; assumed: "
    "mean [0.485, 0.456, 0.406] and std [0.229, 0.224, 0.225] (data.mean, data.std)"
)
WIDTH, DEPTH, PATCH, SIDE = 192, 2, 16, 3  # a ViT-Ti cut to two blocks, for 48 x 48 pixels


def published(decoder):
    """Random tensors with the exact names and shapes of a published MAE file; the full ones have the decoder too."""
    generator = torch.Generator().manual_seed(0)
    tokens = SIDE * SIDE + 1

    def block(prefix, width):
        return {
            f"{prefix}.norm1.weight": (width,),
            f"{prefix}.norm1.bias": (width,),
            f"{prefix}.attn.qkv.weight": (3 * width, width),
            f"{prefix}.attn.qkv.bias": (3 * width,),
            f"{prefix}.attn.proj.weight": (width, width),
            f"{prefix}.attn.proj.bias": (width,),
            f"{prefix}.norm2.weight": (width,),
            f"{prefix}.norm2.bias": (width,),
            f"{prefix}.mlp.fc1.weight": (4 * width, width),
            f"{prefix}.mlp.fc1.bias": (4 * width,),
            f"{prefix}.mlp.fc2.weight": (width, 4 * width),
            f"{prefix}.mlp.fc2.bias": (width,),
        }

    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, tokens, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
    }
    for index in range(DEPTH):
        shapes |= block(f"blocks.{index}", WIDTH)
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    if decoder:
        shapes |= {
            "mask_token": (1, 1, 64),
            "decoder_pos_embed": (1, tokens, 64),
            "decoder_embed.weight": (64, WIDTH),
            "decoder_embed.bias": (64,),
            **block("decoder_blocks.0", 64),
            "decoder_norm.weight": (64,),
            "decoder_norm.bias": (64,),
            "decoder_pred.weight": (PATCH * PATCH * 3, 64),
            "decoder_pred.bias": (PATCH * PATCH * 3,),
        }
    return OrderedDict(
        (name, 0.1 * torch.randn(shape, generator=generator) + float("norm" in name and name.endswith("weight")))
        for name, shape in shapes.items()
    )


@pytest.fixture(params=["encoder alone", "full"])
def mae_file(request, tmp_path):
    tensors = published(decoder=request.param == "full")
    content = {"model": tensors}
    if request.param == "full":
        content |= {
            "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
            "epoch": 799,
            "scaler": {"scale": 65536.0},
            "args": argparse.Namespace(model="mae_vit_base_patch16", mask_ratio=0.75, norm_pix_loss=True),
        }
    torch.save(content, tmp_path / "mae.pth")
    return tmp_path / "mae.pth", tensors


def timms(tensors, **options):
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, depth=DEPTH, num_classes=0, **options)
    model.load_state_dict({name: value for name, value in tensors.items() if name in model.state_dict()})
    return model.eval()


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_a_published_file_gives_timms_output(mae_file, pixels):
    path, tensors = mae_file
    source = ModelSource(init=str(path))
    token = load_model(source, pool="token")
    assert token.image_size == (48, 48)
    torch.testing.assert_close(token.model.eval()(pixels), timms(tensors)(pixels))
    average = load_model(source, pool="avg", fc_norm=False).model.eval()
    patches = timms(tensors).forward_features(pixels)[:, 1:]
    torch.testing.assert_close(average(pixels), patches.mean(1))


@torch.inference_mode()
def test_fine_tuning_starts_with_a_fresh_norm_behind_the_average(mae_file, pixels):
    path, tensors = mae_file
    loaded = load_model(ModelSource(init=str(path)), classes=3)
    before_norm = timms(tensors, final_norm=False).forward_features(pixels)[:, 1:].mean(1)
    expected = torch.nn.functional.layer_norm(before_norm, (WIDTH,), eps=1e-6)
    torch.testing.assert_close(loaded.model.eval().forward_head(loaded.model.forward_features(pixels), True), expected)
    assert loaded.model.head.weight.std() < 1e-4
    assert ("decoder (19 tensors), mask_token" in str(loaded.notes)) == ("mask_token" in tensors)
    assert "starts afresh: fc_norm (2 tensors), head (2 tensors)" in loaded.notes
    assert "norm (2 tensors)" in loaded.notes[-1]


@torch.inference_mode()
def test_what_it_makes_loads_into_timm_without_renaming(mae_file, pixels):
    loaded = load_model(ModelSource(init=str(mae_file[0])), classes=3)
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, depth=DEPTH, num_classes=3, global_pool="avg")
    model.load_state_dict(loaded.model.state_dict(), strict=True)
    torch.testing.assert_close(model.eval()(pixels), loaded.model.eval()(pixels))


@pytest.mark.parametrize("bare", [True, False])
def test_a_safetensors_file_is_read_and_what_is_wrong_is_named(tmp_path, bare):
    tensors = published(decoder=False)
    path = tmp_path / "encoder.safetensors"
    save_file(tensors, path)
    if bare:
        assert load_model(ModelSource(init=str(path))).architecture == {
            "family": "vit",
            "image_size": [48, 48],
            "patch_size": 16,
            "width": 192,
            "depth": 2,
            "heads": 3,
            "mlp_ratio": 4.0,
            "relative": False,
        }
        return
    for change, message in (
        ({"blocks.1.attn.proj.bias": None}, r"blocks\.1\.attn\.proj\.bias is missing"),
        ({"blocks.1.attn.proj.bias": torch.zeros(4)}, r"blocks\.1\.attn\.proj\.bias is \(4,\), not \(192,\)"),
        ({"pos_embed": None, "cls_token": None}, "pos_embed missing"),
        ({"patch_embed.proj.weight": torch.zeros(192, 65, 16, 16)}, "16 x 16 of 65 channels"),
        ({"pos_embed": torch.zeros(1, 12, 192)}, "11 patches make no square.*model.image_size"),
    ):
        save_file({k: v for k, v in {**tensors, **change}.items() if v is not None}, path)
        with pytest.raises(CheckpointError, match=message):
            load_model(ModelSource(init=str(path)))


def test_settings_that_contradict_the_weights_are_refused(mae_file):
    path = str(mae_file[0])
    with pytest.raises(CheckpointError, match=r"model\.depth 12: the weights in .* have depth 2"):
        load_model(ModelSource(init=path, depth=12))
    with pytest.raises(ConfigError, match=r"model\.image_size \[50, 50\]: not a multiple of the weights' patch"):
        load_model(ModelSource(init=path, image_size=50))
    assert load_model(ModelSource(init=path, heads=6)).model.blocks[0].attn.num_heads == 6


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"model": published(decoder=False), "args": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: not a file of tensors that torch reads safely"):
        load_model(ModelSource(init=str(tmp_path / "evil.pth")))
    assert not (tmp_path / "owned").exists()


def test_a_pickled_network_is_refused_with_what_to_save_instead(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(CheckpointError) as refused:
        load_model(ModelSource(init=str(tmp_path / "module.pth")))
    said = str(refused.value)
    assert "holds an object of torch.nn.modules.linear.Linear" in said
    assert said.endswith("save the model's state_dict() and give that file")
    assert "weights_only" not in said  # torch's own words advise to read it unsafely


@pytest.mark.parametrize("content", [b"", b"\x80\x02junk", bytes(range(256))])
def test_a_damaged_file_of_torchs_is_one_short_sentence(content, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pth: not a file of tensors that torch reads safely: ") as refused:
        load_model(ModelSource(init=str(tmp_path / "a.pth")))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("key", ["model", "module", "state_dict"])
def test_tensors_are_found_under_the_usual_keys(mae_file, tmp_path, key):
    path, tensors = mae_file
    torch.save({key: tensors}, tmp_path / "a.pth")
    ours = load_model(ModelSource(init=str(tmp_path / "a.pth"))).model.state_dict()
    theirs = load_model(ModelSource(init=str(path))).model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if not name.startswith(("head", "fc_norm")))


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors"])
def test_a_file_of_something_else_is_one_sentence(tmp_path, name):
    (tmp_path / name).write_text("no weights in here")
    with pytest.raises(CheckpointError, match=name):
        load_model(ModelSource(init=str(tmp_path / name)))


def test_a_missing_source_says_what_would_be_right(tmp_path):
    with pytest.raises(CheckpointError, match=r"no such file or folder; it takes a run folder"):
        load_model(ModelSource(init=str(tmp_path / "nothing")))


@pytest.mark.parametrize("size", [(48, 96), (96, 96), (144, 48)])
def test_positions_that_rise_with_row_and_column_still_do_after_resampling(mae_file, size):
    path, tensors = mae_file
    places = (torch.arange(SIDE) + 0.5) / SIDE  # centres of the patches, as a share of the image
    tensors["pos_embed"][0, 1:, 0] = places.repeat_interleave(SIDE)
    tensors["pos_embed"][0, 1:, 1] = places.repeat(SIDE)
    torch.save({"model": tensors}, path)
    model = load_model(ModelSource(init=str(path), image_size=size)).model
    rows, columns = size[0] // PATCH, size[1] // PATCH
    assert torch.equal(model.pos_embed[:, 0], tensors["pos_embed"][:, 0])
    grid = model.pos_embed[0, 1:, :2].reshape(rows, columns, 2).detach()
    middle = grid[rows // 3 : rows - rows // 3, columns // 3 : columns - columns // 3]
    expected_rows = ((torch.arange(rows) + 0.5) / rows)[rows // 3 : rows - rows // 3]
    expected_columns = ((torch.arange(columns) + 0.5) / columns)[columns // 3 : columns - columns // 3]
    assert (middle[..., 0] - expected_rows[:, None]).abs().max() < 0.03
    assert (middle[..., 1] - expected_columns[None]).abs().max() < 0.03


def going_on(path, side, **model):
    """A run of the file's encoder, on images of another size, that begins with it."""
    sizes = {"depth": DEPTH, "decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2, **model}
    config = TrainConfig.model_validate(
        {"encoder": "vit_tiny", "image_size": side, "model": {**sizes, "init": str(path)}}
    )
    learner = TorchLearner(config, CPU)
    return learner.model.state_dict(), learner.notes


def test_pretraining_goes_on_from_a_published_file(mae_file):
    path, tensors = mae_file
    full = "mask_token" in tensors
    found, notes = going_on(path, 16 * SIDE)
    assert notes == (
        f"begins with the weights of {path}",
        ASSUMED_INPUTS,
        *(() if full else ("starts afresh: decoder (19 tensors), mask_token",)),
    )
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert (found.keys() == tensors.keys()) == full


def test_pretraining_goes_on_at_another_size_and_without_a_decoder_that_is_another(mae_file):
    path, tensors = mae_file
    found, _ = going_on(path, 80)
    for name in {"pos_embed", "decoder_pos_embed"} & tensors.keys():
        expected = resample_abs_pos_embed(tensors[name], [5, 5], [SIDE, SIDE], num_prefix_tokens=1)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)
    found, notes = going_on(path, 16 * SIDE, decoder_depth=2)
    assert "starts afresh: decoder" in notes[2]
    assert torch.equal(found["norm.weight"], tensors["norm.weight"])
    with pytest.raises(CheckpointError, match="its encoder has depth 2, and the run's has depth 3"):
        going_on(path, 16 * SIDE, depth=3)


@pytest.fixture
def run(tmp_path):
    """A pretraining run on 32 x 48 pixels, of a width that no preset has."""
    config = TrainConfig.model_validate(
        {
            "encoder": "vit_tiny",
            "image_size": [32, 48],
            "patch_size": 8,
            "model": {"width": 24, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2},
            "data": {"mean": [0.5, 0.4, 0.3]},
        }
    )
    learner = TorchLearner(config, CPU)
    meta = {"kind": "pretrain", "step": 4, "epoch": 1, "seed": 0, "config": config.model_dump(mode="json")}
    save_checkpoint(tmp_path / "run" / "checkpoints", learner.state(), meta)
    return tmp_path / "run", learner.model


@torch.inference_mode()
def test_a_run_of_ours_loads_with_its_shape_and_normalisation(run):
    folder, pretrained = run
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    everything = torch.arange(24).expand(2, -1)
    expected = pretrained.encode(pretrained.embed(pixels), everything)[:, 1:].mean(1)
    step = open_checkpoint(folder).folder
    for init in (folder, folder / "checkpoints", step, step / "model.safetensors"):
        loaded = load_model(ModelSource(init=str(init)), fc_norm=False)
        torch.testing.assert_close(loaded.model.eval()(pixels), expected)
        assert loaded.image_size == (32, 48)
        assert loaded.inputs.mean == (0.5, 0.4, 0.3)
        assert "decoder" in loaded.notes[-1]


def test_a_tokenizer_is_no_encoder(tmp_path):
    meta = {"kind": "tokenizer", "step": 1, "config": {"data": {"mean": [0.5] * 3, "std": [0.5] * 3}}}
    save_checkpoint(tmp_path / "checkpoints", LearnerState({"weight": np.zeros(1)}, {}), meta)
    with pytest.raises(CheckpointError, match=r"holds a tokenizer, which is for model\.tokenizer"):
        load_model(ModelSource(init=str(tmp_path)))


def test_an_altered_checkpoint_is_refused(run):
    model = open_checkpoint(run[0]).folder / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_model(ModelSource(init=str(run[0])))


def test_timm_models_keep_their_own_sizes(run):
    loaded = load_model(ModelSource(init="timm:resnet18?pretrained=false"), classes=3)
    assert loaded.image_size == (224, 224)
    assert loaded.model.fc.out_features == 3
    loaded = load_model(ModelSource(init="timm:vit_tiny_patch16_224?pretrained=false", image_size=(32, 64)), classes=3)
    assert loaded.model.patch_embed.grid_size == (2, 4)
    assert loaded.inputs.mean == (0.5, 0.5, 0.5)


class Session:
    """A hub that answers, or does not."""

    def __init__(self, answers):
        self.answers = answers

    def head(self, url, timeout):
        if not self.answers:
            raise ConnectionError("Name or service not known")


def test_timm_without_a_network_is_one_sentence_and_nothing_is_tried_again(monkeypatch, tmp_path):
    slept = []
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: Session(answers=False))
    monkeypatch.setattr(time, "sleep", slept.append)  # as huggingface_hub does between its attempts
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    said = r"timm cannot make it: its weights are not here, .* \(.*\?pretrained=false needs no download"
    with pytest.raises(CheckpointError, match=said) as error:
        load_model(ModelSource(init="timm:vit_tiny_patch16_224"))
    assert "\n" not in str(error.value)
    assert not slept
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("answers", [True, False])
def test_a_hub_that_answers_is_asked(answers, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: Session(answers))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with hub.go_offline_if_unreachable():
        assert huggingface_hub.constants.is_offline_mode() is not answers


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(ConfigError, match=r"near it: .*resnet18"):
        load_model(ModelSource(init="timm:resnet81"))
    with pytest.raises(ConfigError, match=r"after \? only pretrained=false is known"):
        load_model(ModelSource(init="timm:resnet18?weights=none"))


def test_scratch_is_what_the_settings_say():
    model = load_model(ModelSource(encoder="vit_tiny", width=24, depth=2, heads=2, image_size=32, patch_size=8)).model
    assert (model.embed_dim, len(model.blocks), model.patch_embed.grid_size) == (24, 2, (4, 4))
    with pytest.raises(ConfigError, match="image_size"):
        load_model(ModelSource(image_size=30, patch_size=8))
