"""Completion in real shells, and manual pages that man and mandoc read."""

import shutil
import subprocess
from importlib.metadata import EntryPoint

import pytest

from ehm import plugins
from ehm.backends import GROUP
from ehm.cli import build_parser, main
from ehm.commands import COMMANDS

COMPLETE_IN_BASH = """
source "$1"
while read -r -a COMP_WORDS; do
  COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
  COMPREPLY=()
  _ehm_complete 2> /dev/null  # compopt works at a prompt alone
  echo "${COMPREPLY[*]}"
done
"""
COMPLETED = {
    "ehm trai": "train",
    "ehm train --dev": "--device",
    "ehm train --device mindspore:": "mindspore:cpu mindspore:ascend",
    "ehm train --config elpv/pretr": "elpv/pretrain elpv/pretrain_study",
    "ehm train --resume mask.rat": "mask.ratio=",
    "ehm tokenizer train --set optim.acc": "optim.accumulate=",
    "ehm compare runs/a fold": "folds=",
    "ehm finetune --task det": "detection",
    "ehm train --device num": "numpy",
    "ehm predict --device tens": "tensorrt",
    "ehm launch --device mi": "mindspore mindspore:cpu",
    "ehm evaluate --task ret": "retrieval",
    "ehm evaluate --task det": "",  # measures only what was trained for it
    "ehm predict --index h": "hnsw",
    "ehm export --head cl": "classifier",
    "ehm configs --keys opt": "optim",
}


def write_script(shell, folder, capsys, monkeypatch):
    """Write the script for a shell into a folder, with a device of another package, and return its path."""
    pytest.importorskip("shtab", reason="comes with the extra completion")
    found = {GROUP: [EntryPoint("numpy", "ehm_numpy:backend", GROUP)]}
    monkeypatch.setattr(plugins, "entry_points", lambda group: found.get(group, []))
    assert main(["completion", shell]) == 0
    path = folder / f"ehm.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


def test_bash_completes_commands_flags_values_and_keys(tmp_path, capsys, monkeypatch):
    script = write_script("bash", tmp_path, capsys, monkeypatch)
    done = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE_IN_BASH, "bash", script],
        input="\n".join(COMPLETED) + "\n",
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert dict(zip(COMPLETED, done.stdout.splitlines(), strict=True)) == COMPLETED


@pytest.mark.parametrize(("shell", "check"), [("zsh", ["-n"]), ("fish", ["--no-execute"]), ("tcsh", ["-f"])])
def test_other_shells_read_their_script(shell, check, tmp_path, capsys, monkeypatch):
    script = write_script(shell, tmp_path, capsys, monkeypatch)
    for word in ("mindspore:ascend", "elpv/pretrain", "optim.epochs=", "vision_language"):
        assert word in script.read_text()
    if shutil.which(shell):
        done = subprocess.run([shell, *check, script], capture_output=True, text=True, check=True)
        assert done.stderr == ""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The folder of the manual pages."""
    folder = tmp_path_factory.mktemp("man")
    assert main(["man", str(folder)]) == 0
    return folder / "man1"


def test_there_is_a_page_for_every_command_with_all_its_flags(pages):
    parsers = build_parser().list_commands()
    assert {page.stem for page in pages.iterdir()} == {"ehm", *(f"ehm-{name}" for name in COMMANDS)}
    for name, parser in parsers.items():
        text = (pages / f"ehm-{name}.1").read_text().replace("\\-", "-")
        for action in parser._actions:
            assert all(flag in text for flag in action.option_strings if action.help != "==SUPPRESS==")
        assert "\n.SH EXAMPLES\n" in text


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="needs mandoc")
def test_mandoc_finds_no_fault(pages):
    lint = ["mandoc", "-T", "lint", "-W", "warning", *sorted(pages.iterdir())]
    assert subprocess.run(lint, capture_output=True, text=True, check=False).stdout == ""


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="needs mandoc")
def test_flags_are_printed_as_they_are_typed(pages):
    done = subprocess.run(["mandoc", "-T", "ascii", pages / "ehm-train.1"], capture_output=True, check=True)
    printed = done.stdout.replace(b"\b", b"").decode()
    assert "ehm train --config elpv/pretrain --out runs/mine" in printed
