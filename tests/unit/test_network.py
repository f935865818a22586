"""Commands that were not asked to use the network do not: docs/licences.md promises it."""

import subprocess
import sys
from pathlib import Path

import pytest

WRITTEN = Path(__file__).parents[1] / "data" / "written_before"
TINY = ["encoder=vit_tiny", "image_size=16", "patch_size=8", "model.width=8", "model.depth=1", "model.heads=2"]
TINY += ["model.decoder_width=8", "model.decoder_depth=1", "model.decoder_heads=2", "mask.blocks=1"]
TINY += ["data.source=data/images", "data.workers=0", "optim.batch_size=4", "run.max_steps=1"]
REFUSED = 99
GUARD = f"""
import os, socket, sys

def refuse(*arguments, **options):
    print("the network was used:", *arguments, file=sys.stderr, flush=True)
    os._exit({REFUSED})  # an exception could be caught

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""
COMMAND = "from ehm.cli import main; sys.exit(main(sys.argv[1:]))"


def run_guarded(code, *arguments):
    """Run Python in a process that ends at once if it connects to anything."""
    command = [sys.executable, "-c", GUARD + code, *map(str, arguments)]
    return subprocess.run(command, cwd=WRITTEN, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["configs"],
        ["predict", "bundle", "data/images/red/0.png", "--device", "cpu"],
        ["train", "--device", "cpu", *(word for key in TINY for word in ("--set", key))],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_works_without_a_network(arguments, tmp_path):
    if arguments[0] == "train":
        arguments = [*arguments, "--out", tmp_path / "run"]
    done = run_guarded(COMMAND, *arguments)
    assert done.returncode == 0, done.stderr


def test_a_connection_is_noticed():
    done = run_guarded("from urllib.request import urlopen; urlopen('http://localhost:9')")
    assert done.returncode == REFUSED, done.stderr
