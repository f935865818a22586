"""Every shipped recipe loads, and the recipes of the paper have the published numbers."""

import json
from pathlib import Path

import pytest
import yaml
from shipped import kind

from ehm.cli import main
from ehm.config import StudyConfig, TrainConfig, load_config, shipped_configs
from ehm.config.listing import describe_config

CONFIGS = Path(__file__).parents[3] / "configs"
SIZES = {"small": (384, 12, 6), "base": (768, 12, 12)}  # width, depth, heads: DeiT-S and ViT-B
OWN = ("elpv/", "easy_vqa/", "finetune/short", "studies/")
"""Configurations that reproduce nothing published."""
MASKINGS = ("random", "grid", "block", "evolved", "shallow", "deep")


def test_the_shipped_names_are_the_files():
    files = {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml")}
    assert set(shipped_configs()) == files
    assert {f"pretrain/vit_{size}_{masking}" for size in SIZES for masking in MASKINGS} <= files


@pytest.mark.parametrize("name", shipped_configs())
def test_it_loads_and_says_what_it_is_and_how_to_run_it(name):
    load_config(kind(name), name)
    said = describe_config(name)
    assert said.about.endswith(".")
    flag = "--train" if kind(name) is StudyConfig else "--config"
    assert f"{flag} {name}" in " ".join(said.command)
    assert "\\" not in said.command
    assert said.cost or name.startswith("elpv/")
    assert said.reproduces or name.startswith(OWN)


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


PAPER = [name for name in shipped_configs() if name.startswith("paper/")]
ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")
EPOCHS = {
    "table_2": 300,
    "table_3": 400,
    "table_4": 400,
    "table_7": 300,
    "table_8": 200,
    "table_9": 300,
    "table_10": 300,
}


def test_each_table_of_the_paper_has_a_folder_in_order():
    folders = list(dict.fromkeys(name.split("/")[1] for name in PAPER))
    assert folders == [f"table_{number}" for number in range(1, 11)]


@pytest.mark.parametrize("name", PAPER)
def test_a_row_of_the_paper_says_its_table_and_trains_as_long_as_it_says(name):
    table, row = name.split("/")[1:]
    assert describe_config(name).reproduces.startswith(f"Table {ROMAN[int(table[6:]) - 1]}, ")
    config = load_config(kind(name), name)
    assert config.data.source == "imagenet"
    if kind(name) is TrainConfig:
        assert config.optim.epochs == EPOCHS.get(table) or row.endswith(f"_{config.optim.epochs}")


def with_mae(name):
    """Is it a row that configs/pretrain has a recipe for?"""
    config = load_config(kind(name), name)
    return isinstance(config, TrainConfig) and config.objective == "mae" and config.masking in MASKINGS


@pytest.mark.parametrize("name", list(filter(with_mae, PAPER)))
def test_a_row_with_mae_differs_from_its_recipe_in_epochs_and_ratio_alone(name):
    config = load_config(TrainConfig, name)
    recipe = load_config(TrainConfig, f"pretrain/{config.encoder}_{config.masking}")
    ratio = {"random_25": 0.25, "evolved_25": 0.25, "random_50": 0.5, "evolved_50": 0.5}.get(name.split("/")[2], 0.75)
    mask = recipe.mask.model_copy(update={"ratio": ratio})
    optim = recipe.optim.model_copy(update={"epochs": config.optim.epochs})
    assert config == recipe.model_copy(update={"mask": mask, "optim": optim})
    assert config.encoder == (
        "vit_base" if name.split("/")[1] in ("table_6", "table_7", "table_9", "table_10") else "vit_small"
    )


def test_the_recipes_of_the_paper_differ_in_the_mask_alone():
    for size in SIZES:
        recipes = [load_config(TrainConfig, f"pretrain/vit_{size}_{masking}").model_dump() for masking in MASKINGS]
        for recipe in recipes:
            del recipe["masking"], recipe["mask"]["balance"]  # raw attention, where a mask looks at it
        assert all(recipe == recipes[0] for recipe in recipes)


def test_a_header_is_read_to_the_end_of_each_part():
    said = describe_config("pretrain/vit_small_evolved")
    assert said.about == "MAE ViT-S/16 on ImageNet-1K, evolved hierarchical masks."
    assert said.reproduces.startswith("Tables I and II, ours: 80.06% top-1 after fine-tuning and 40.59 mIoU")
    assert said.reproduces.endswith("Table IV gives the 400-epoch numbers).")
    assert said.cost.endswith("(10% more than with random masks).")
    assert said.command[:4] == ("ehm", "train", "--config", "pretrain/vit_small_evolved")
    assert describe_config("finetune/imagenet_vit_base_mae").command[-2:] == ("--out", "runs/finetune_vit_base")


def test_the_command_lists_them_all_by_folder(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["configs"]) == 0
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in capsys.readouterr().out.splitlines()]
    folder, found = "", []
    for name, *rest in lines:
        if name.endswith("/"):
            folder = name
        elif name and rest and rest[0]:
            found.append(folder + name)
    assert found == shipped_configs()
    assert ["evolved_300", "MAE ViT-B/16, evolved hierarchical masks, 300 epochs."] in [line[:2] for line in lines]
    assert any(
        "Table VI, ours, 300 epochs: 84.9% top-1 after fine-tuning, 66.1% by linear probe." in line for line in lines
    )


def test_the_command_lists_one_folder_or_shows_one_file(capsys):
    assert main(["configs", "--json"]) == 0
    assert [found["name"] for found in json.loads(capsys.readouterr().out)] == shipped_configs()
    for folder in ("paper/table_1", "paper/table_1/"):
        assert main(["configs", folder, "--json"]) == 0
        names = [found["name"] for found in json.loads(capsys.readouterr().out)]
        assert len(names) == 18
        assert names[:4] == [f"paper/table_1/block_{epochs}" for epochs in (100, 200, 400, 800)]
    assert main(["configs", "elpv/probe"]) == 0
    assert capsys.readouterr().out == (CONFIGS / "elpv/probe.yaml").read_text()
    assert main(["configs", "elpv/nothing"]) == 2
    said = "elpv/nothing: no such file, and no shipped configuration of that name; ehm configs lists them"
    assert said in capsys.readouterr().err
