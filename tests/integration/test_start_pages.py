"""The commands of docs/start run one after the other, as a newcomer types them, on a few tiny images."""

import shutil

import pytest
from documented.blocks import ROOT, read_blocks
from documented.shell import split_commands
from tiny import TINY as MODEL

from ehm.cli import main

SHORT = ["optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=16", "data.workers=0"]
SETTINGS = {
    "train": [*(f"{key}={value}" for key, value in MODEL.items()), "watch.every=0", *SHORT],
    "finetune": ["model.image_size=32", *SHORT],
    "compare": ["folds=2", "repeats=1", "scratch_seeds=1", "workers=0"],
}
"""Settings besides those of the page, so that a command takes a second or two."""

LEFT_OUT = {"serve", "doctor", "verify"}
"""Commands that go on until they are stopped, or examine the whole machine; they have tests of their own."""
DOWNLOADED = "timm:vit_small_patch16_224"
FOLDERS = ("/data/photos", "/data/labelled")


def read_commands(page):
    """Return the commands of ehm on a page of docs/start, as words behind ``ehm``."""
    for block in read_blocks(ROOT / "docs/start" / page):
        if block.language == "sh":
            for words in split_commands(block.text):
                if words[0] == "ehm" and words[1] not in LEFT_OUT:
                    yield words[1:]


def shorten_command(words, images):
    """Return a command with ``images`` for all its images, and with the settings that make it short."""
    shortened = [word for word in words if word != DOWNLOADED]
    for folder in FOLDERS:
        shortened = [word.replace(folder, str(images)) for word in shortened]
    settings = list(SETTINGS.get(words[0], []))
    if words[0] in ("train", "finetune") and not any(word.startswith("data.source=") for word in shortened):
        settings.append(f"data.source={images}")
    for setting in settings:
        shortened += ["--set", setting]
    return shortened


@pytest.mark.parametrize("page", ["first_run.md", "your_images.md"])
def test_the_commands_of_a_page_work_in_their_order(page, stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(stripes / "across/00.png", "cell.png")
    ran = set()
    for words in read_commands(page):
        assert main(shorten_command(words, stripes)) == 0, capsys.readouterr().err
        ran.add(words[0])
    assert {"train", "finetune", "export"} <= ran
    assert (tmp_path / "bundle/model.onnx").is_file()
