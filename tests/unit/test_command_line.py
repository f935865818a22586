"""The command line's help, its settings without ``--set``, and what it suggests for names that it does not know."""

import argparse
import shlex

import pytest
from documented.ehm_commands import check_ehm
from documented.shell import split_commands

from ehm.cli import build_parser, main
from ehm.commands import COMMANDS, HEADINGS
from ehm.commands.examples import EXAMPLES
from ehm.commands.settings import gather_settings
from ehm.config.commands import list_key_names
from ehm.config.keys import list_keys
from ehm.suggestions import suggest, suggest_path


@pytest.fixture(scope="module")
def commands():
    """The parser of each command by name."""
    return next(action for action in build_parser()._actions if action.dest == "command").choices


def test_the_overview_shows_commands_in_groups(capsys):
    assert main([]) == 2
    shown = capsys.readouterr().err
    assert list(HEADINGS) == [name for name in COMMANDS if name in HEADINGS]
    for name, heading in HEADINGS.items():
        assert f"\n\n{heading}:\n  {name} " in shown


def test_every_command_has_examples():
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize(("command", "example"), [(name, line) for name, lines in EXAMPLES.items() for line in lines])
def test_an_example_of_the_help_can_be_run(command, example):
    (words,) = split_commands(example)
    assert words[:2] == ["ehm", command]
    if words[-1] == "server.yaml":  # a file of the user's
        build_parser([command]).parse_args(words[1:])
    else:
        check_ehm(words[1:])
    encoders = vars(build_parser([command]).parse_args(words[1:])).get("encoders", [])
    assert not [each for each in encoders if "=" in each]


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_is_in_groups_and_sentences(command, commands):
    parser = commands[command]
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            assert action.help[0].isupper() or action.help.startswith("[")
            assert action.help.endswith((".", "). Can be repeated."))
    assert [group.title for group in parser._action_groups if group._group_actions][-1] == "output"
    assert "options" not in {group.title for group in parser._action_groups if group.title != "options"}
    shown = parser.format_help()
    assert shown.startswith(f"usage: ehm {command}")
    assert shown.index("\nexamples:\n") < shown.index("\nexit status:\n")
    for line in EXAMPLES[command]:
        assert f"  {line}\n" in shown  # in one line, to copy
    assert "\noptions:\n" not in shown


@pytest.mark.parametrize(
    ("line", "overrides"),
    [
        ("train optim.epochs=10 data.source=a=b", ["optim.epochs=10", "data.source=a=b"]),
        ("train --set mask.ratio=1 mask.ratio=2 --se=mask.ratio=3", ["mask.ratio=1", "mask.ratio=2", "mask.ratio=3"]),
        ("train 'data.columns={path: file}'", ["data.columns={path: file}"]),
        ("finetune --task detection patience=3", ["patience=3"]),
        ("tokenizer train optim.epochs=10", ["optim.epochs=10"]),
        ("evaluate data.source=x RUN --device cpu data.strict=true", ["data.source=x", "data.strict=true"]),
        ("compare RUN folds=3 OTHER --jobs 1 images=9", ["folds=3", "images=9"]),
        ("data stats PHOTOS data.depth=16", ["data.depth=16"]),
        ("predict PHOTOS --bundle b data.columns.path=file", ["data.columns.path=file"]),
        ("export RUN --tar ascend batches.largest=2", ["batches.largest=2"]),
    ],
)
def test_a_key_of_the_command_is_a_setting_without_the_flag(line, overrides):
    words = shlex.split(line)
    options = vars(build_parser(words[:1]).parse_args(words))
    assert options["overrides"] == overrides
    arguments = []
    for name in ("checkpoint", "encoders", "source", "inputs"):
        value = options.get(name, [])
        arguments += [value] if isinstance(value, str) else value
    assert arguments == [word for word in words if word.isupper()]


def test_a_word_that_is_no_setting_stays_what_it_is(tmp_path, monkeypatch, commands):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folds=3").mkdir()
    for command, words in (
        (
            "compare",
            ["folds=3", "./images=9", "seed=1", "--results", "a", "images=9"],
        ),  # a run, paths, values of a flag
        ("train", ["--out", "optim.epochs=1", "--", "optim.epochs=1"]),
        ("launch", ["--sbatch", "account=vision", "--", "train", "optim.epochs=1"]),
        ("inspect", ["masks", "seed=1", "--checkpoint", "mask.ratio=1"]),  # it has no settings
        ("train", ["--set", "optim.epochs"]),  # reported later, with what is expected
    ):
        assert gather_settings(words, commands[command]) == words
    # train takes no files, so that nothing else can be meant
    (tmp_path / "optim.epochs=1").mkdir()
    assert gather_settings(["optim.epochs=1"], commands["train"]) == ["--set=optim.epochs=1"]


def test_the_keys_of_settings_are_those_that_are_listed():
    for key in list_keys():
        if not key.command.endswith("--train"):  # a study is changed in its file
            assert key.name in list_key_names(key.command.split()[1])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("trian", "ehm: trian: unknown command (did you mean train?); "),
        ("train --devise cpu", "ehm train: --devise: unknown flag (did you mean --device?); "),
        ("evaluate --zzz", "ehm evaluate: --zzz: unknown flag; "),
        (
            "train optim.epoch=3",
            "ehm train: optim.epoch=3: no such key (did you mean optim.epochs?); ",
        ),
        ("train epochs=3", " (did you mean optim.epochs?); ehm configs --keys train lists the keys"),
        ("train photos", "ehm train: photos: unexpected argument; "),
        ("tokenizer trian", "ehm tokenizer: action: should be train, not trian (did you mean train?); "),
        ("export r --head clasifier", "or multi, not clasifier (did you mean classifier?); "),
        ("launch --knid slurm", "ehm launch: --knid: unknown flag (did you mean --kind?); "),
        ("train --out", "ehm train: --out: expected one argument; "),
    ],
)
def test_a_wrong_word_is_one_sentence_with_the_nearest_name(line, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train --config elpv/pretrian", "no shipped configuration of that name (did you mean elpv/pretrain?)"),
        ("train --device cdua", " (did you mean cuda?)"),
        ("finetune --task detecton", " (did you mean detection?)"),
        ("probe run.trackers=[tensorbord]", " (did you mean tensorboard?)"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_answered_by_the_nearest(line, sentence, capsys):
    assert main(line.split()) in (1, 2)
    assert sentence in capsys.readouterr().err


def test_suggestions_are_near_names_only():
    assert suggest("Sinkhorm", ["none", "sinkhorn"]) == " (did you mean sinkhorn?)"
    assert suggest("xyz", ["none", "sinkhorn"]) == ""
    assert suggest("x", []) == ""
    keys = ["model.loss", "optim.epochs", "optim.loss"]
    assert suggest_path("optim.los", keys) == " (did you mean optim.loss?)"
    assert suggest_path("epoch", keys) == " (did you mean optim.epochs?)"
    assert suggest_path("model.x", keys) == ""
