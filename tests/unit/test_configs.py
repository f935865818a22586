"""Every shipped recipe loads, and the recipes of the paper have the published numbers."""

import json
from pathlib import Path

import pytest
import yaml
from shipped import kind

from ehm.cli import main
from ehm.config import TrainConfig, load_config, shipped_configs
from ehm.config.listing import describe

CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = {"small": (384, 12, 6), "base": (768, 12, 12)}  # width, depth, heads: DeiT-S and ViT-B
MASKINGS = ("random", "grid", "block", "evolved", "shallow", "deep")


def test_the_shipped_names_are_the_files():
    files = {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml")}
    assert set(shipped_configs()) == files
    assert {f"pretrain/vit_{size}_{masking}" for size in SIZES for masking in MASKINGS} <= files


@pytest.mark.parametrize("name", shipped_configs())
def test_it_loads_and_says_what_it_is_and_how_to_run_it(name):
    load_config(kind(name), name)
    said = describe(name)
    assert said.about.endswith(".")
    assert f"--config {name}" in " ".join(said.command)
    assert "\\" not in said.command
    assert said.cost or name.startswith("elpv/")
    assert said.reproduces or name.startswith("elpv/")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masking", MASKINGS)
def test_the_recipes_of_the_paper_are_maes_published_numbers(size, masking):
    config = load_config(TrainConfig, f"pretrain/vit_{size}_{masking}")
    assert config.masking == masking
    assert (config.spec.width, config.spec.depth, config.spec.heads) == SIZES[size]
    assert (config.image_size, config.patch_size, config.spec.patches) == ((224, 224), 16, 196)
    assert (config.model.decoder_width, config.model.decoder_depth, config.model.decoder_heads) == (512, 8, 16)
    assert config.model.norm_pix_loss
    assert (config.mask.ratio, config.mask.blocks, config.mask.depth_range) == (0.75, 6, (0, 1))
    assert config.mask.schedule == "linear"
    assert config.mask.balance == "none" or masking in ("random", "grid", "block")
    assert (config.data.crop_scale, config.data.flip) == ((0.2, 1), True)
    optim = config.optim
    assert (optim.epochs, optim.warmup_epochs, optim.batch_size) == (300, 40, 4096)
    assert optim.lr == pytest.approx(2.4e-3)  # 1.5e-4 x 4096 / 256
    assert (optim.min_lr, optim.weight_decay, optim.betas, optim.clip_grad) == (0, 0.05, (0.9, 0.95), None)


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith("pretrain/")])
def test_the_recipes_of_the_paper_never_fall_back_on_the_small_example_images(name):
    assert yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]["source"] == "imagenet"


def test_the_recipes_of_the_paper_differ_in_the_mask_alone():
    for size in SIZES:
        recipes = [load_config(TrainConfig, f"pretrain/vit_{size}_{masking}").model_dump() for masking in MASKINGS]
        for recipe in recipes:
            del recipe["masking"], recipe["mask"]["balance"]  # raw attention, where a mask looks at it
        assert all(recipe == recipes[0] for recipe in recipes)


def test_a_header_is_read_to_the_end_of_each_part():
    said = describe("pretrain/vit_small_evolved")
    assert said.about == "MAE ViT-S/16 on ImageNet-1K, evolved hierarchical masks."
    assert said.reproduces.startswith("Tables I and II, ours: 80.06% top-1 after fine-tuning and 40.59 mIoU")
    assert said.reproduces.endswith("Table IV gives the 400-epoch numbers).")
    assert said.cost.endswith("(10% more than with random masks).")
    assert said.command[:4] == ("ehm", "train", "--config", "pretrain/vit_small_evolved")
    assert describe("finetune/imagenet_vit_base_mae").command[-2:] == ("--out", "runs/finetune_vit_base")


def test_the_command_lists_them_all_and_shows_one(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["configs"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in shipped_configs())
    assert "84.9% top-1 after fine-tuning, 66.1% by linear probe" in shown
    assert main(["configs", "--json"]) == 0
    assert [found["name"] for found in json.loads(capsys.readouterr().out)] == shipped_configs()
    assert main(["configs", "elpv/probe"]) == 0
    assert capsys.readouterr().out == (CONFIGS / "elpv/probe.yaml").read_text()
    assert main(["configs", "elpv/nothing"]) == 2
    assert "--config elpv/nothing: no such file, and no shipped one" in capsys.readouterr().err
