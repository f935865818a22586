"""The server's settings: one description for the flags, the documentation and the checks."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ehm.cli import build_parser
from ehm.deploy.serve.settings import MOST_PIXELS, Settings, add_flags, describe_default

DOCS = Path(__file__).parents[3] / "docs" / "serving.md"


def flag(name):
    return f"`--{name.replace('_', '-')}`"


def test_the_documentation_lists_every_flag_with_its_default_and_meaning():
    found = {}
    for option, default, meaning in re.findall(r"^\| (`--[\w-]+`) \| ([^|]*)\| ([^|]*) \|$", DOCS.read_text(), re.M):
        found[option] = (default.strip(), meaning)
    fields = {name: field for name, field in Settings.model_fields.items() if name != "bundles"}
    expected = {flag(name): (describe_default(field), field.description) for name, field in fields.items()}
    assert found == expected
    assert list(found) == list(expected)  # in the same order


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name != "bundles"])
def test_the_help_has_every_description(name):
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    add_flags(parser)
    words = " ".join(parser.format_help().split())
    description = Settings.model_fields[name].description
    assert description[1:].split(",")[0].split("-")[0] in words  # the first letter becomes a capital


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], {}),
        (["a", "b=c"], {"bundles": ["a", "b=c"]}),
        (["--max-delay", "2.5", "--max-batch", "4"], {"max_delay": 2.5, "max_batch": 4}),
        (["--model-control"], {"model_control": True}),
        (["--no-model-control"], {"model_control": False}),
        (["--api-key-file", "key", "--log", "json"], {"api_key_file": "key", "log": "json"}),
    ],
)
def test_flags_become_settings_and_the_rest_is_left_out(argv, expected):
    options = vars(build_parser(["serve"]).parse_args(["serve", *argv]))
    assert {name: value for name, value in options.items() if name in Settings.model_fields} == expected


def test_help_loads_neither_a_web_framework_nor_a_runtime():
    code = "import sys; from ehm.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "ehm" in loaded
    assert not loaded & {"fastapi", "starlette", "uvicorn", "onnxruntime", "onnx", "torch", "PIL"}


def test_no_image_may_have_more_pixels_than_pillow_takes():
    assert MOST_PIXELS == Image.MAX_IMAGE_PIXELS
