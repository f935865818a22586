"""Every key of a configuration has a meaning, which ``ehm configs --keys`` prints and the docs repeat."""

import json
import re
from pathlib import Path

import pytest
import yaml

from ehm.config.commands import COMMANDS
from ehm.config.keys import list_keys, print_keys
from ehm.config.listing import configs
from ehm.config.section import Section
from ehm.errors import ConfigError

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = {key.name for key in list_keys()}


def row(key):
    """The row of a key in a table of the docs."""
    default = "" if key.default in (None, "") else yaml.safe_dump(key.default, default_flow_style=True).split("\n")[0]
    return f"| `{key.name}` | {default} | {key.meaning} |"


def sections(section):
    """The classes of a section and of all sections in it."""
    yield type(section)
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from sections(value)


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
def test_every_key_has_one_sentence_of_meaning(kind):
    for section in sections(kind()):
        for name, field in section.model_fields.items():
            is_section = isinstance(getattr(kind(), name, None), Section) or isinstance(field.default, Section)
            if not is_section and not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
                meaning = field.description or ""
                assert re.fullmatch(r"[A-Z][^\n\t]{9,}\.", meaning), f"{section.__name__}.{name}: {meaning!r}"


def test_a_key_is_listed_with_type_default_and_meaning():
    (ratio,) = list_keys("mask.ratio")
    assert (ratio.command, ratio.type, ratio.default) == ("ehm train", "0 < number < 1", 0.75)
    (size,) = list_keys("probe.model.image_size")
    assert (size.type, size.default) == ("list of 2, each integer >= 1 or null", None)
    (encoder,) = list_keys("train.encoder")
    assert encoder.type.startswith("vit_tiny | vit_small | ")


def test_a_recipe_has_its_own_defaults():
    assert {key.command: key.default for key in list_keys("optim.epochs")} == {
        "ehm train": 300,
        "ehm finetune": 100,
        "ehm probe": 90,
        "ehm finetune --task detection": 12,
        "ehm finetune --task segmentation": 300,
        "ehm finetune --task retrieval": 300,
        "ehm finetune --task vision_language": 300,
        "ehm language train": 300,
        "ehm tokenizer train": 50,
    }


def test_a_section_is_a_command_a_task_or_a_part_of_a_name():
    assert {key.command for key in list_keys("detection")} == {"ehm finetune --task detection"}
    assert {key.command for key in list_keys("train")} == {"ehm train"}
    assert {key.name.partition(".")[0] for key in list_keys("calibration")} == {"calibration"}
    assert [key.name for key in list_keys("train.mask.views")] == ["mask.views"]
    with pytest.raises(
        ConfigError,
        match=r"--keys optimiser: no such section or key \(did you mean optim\?\); the sections are ascend, ",
    ):
        list_keys("optimiser")
    with pytest.raises(ConfigError, match="pretrain: --keys lists the keys of all configurations"):
        configs("pretrain", keys="optim")


def test_a_pipe_gets_a_line_for_each_key_and_json_all_of_it(capsys):
    print_keys("run.seed")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ehm train\trun.seed\tinteger >= 0\t0\tSeed of every random number of the run."
    assert len(lines) == 9
    print_keys("run.seed", as_json=True)
    assert [key["name"] for key in json.loads(capsys.readouterr().out)] == ["run.seed"] * 9


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_docs_name_only_keys_that_exist(page):
    sections = {name.partition(".")[0] for name in NAMES if "." in name}
    for key in re.findall(r"`([a-z_]+\.[a-z_.]+)(?:=[^`]*)?`", page.read_text(encoding="utf-8")):
        is_file = re.search(r"\.(onnx|om|safetensors|py|json|yaml)\b", key)
        if key.partition(".")[0] in sections and not is_file:
            assert key in NAMES, f"{page.name}: {key}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_keys_in_the_docs_say_what_the_keys_say(page):
    known = {row(key) for key in list_keys()}
    for header, rows in re.findall(
        r"^(\| key \|.*)\n\|[-| ]+\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE
    ):
        assert header == "| key | default | meaning |"
        for line in rows.splitlines():
            assert line in known, "take the row from `ehm configs --keys`"
