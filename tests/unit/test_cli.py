"""The command line's manners: exit statuses, one sentence, no traceback unless asked for."""

import argparse
import inspect
import os
import re
import subprocess
import sys

import pytest

import ehm
from ehm.cli import build_parser, main
from ehm.commands import COMMANDS
from ehm.commands.completion import print_completion
from ehm.commands.manual import write_manual
from ehm.config.listing import configs
from ehm.deploy.predict.command import main as predict_main
from ehm.deploy.serve.settings import Settings
from ehm.doctor import doctor
from ehm.errors import ConfigError

OTHER_NAMES = (
    "measure_data",
    "predict",
    "predict_source",
    "train_tokenizer",
    "train_language_model",
    "bench_export",
    "write_report",
)
FUNCTIONS = {name: getattr(ehm, name) for name in ehm._MODULES if name not in OTHER_NAMES}
FUNCTIONS |= {
    "data": ehm.measure_data,
    "tokenizer": ehm.train_tokenizer,
    "bench": ehm.bench_export,
    "report": ehm.write_report,
}
FUNCTIONS["language"] = ehm.train_language_model
FUNCTIONS |= {"completion": print_completion, "man": write_manual}
FUNCTIONS |= {"configs": configs, "doctor": doctor, "predict": predict_main}
NO_PARAMETERS = {"help", "debug", "refused", "quiet"}


def commands():
    """Every command's parser by its name."""
    return next(action for action in build_parser()._actions if action.dest == "command").choices


def test_every_command_has_a_function():
    assert set(commands()) == set(FUNCTIONS)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_the_flags_of_a_command_are_the_parameters_of_its_function(name):
    actions = {action.dest: action for action in commands()[name]._actions if action.dest not in NO_PARAMETERS}
    actions = {dest: action for dest, action in actions.items() if dest not in COMMANDS[name].selectors}
    if COMMANDS[name].has_json:  # the result of the function is printed
        actions.pop("json")
    parameters = dict(inspect.signature(FUNCTIONS[name]).parameters)
    if parameters.pop("settings", None) is not None:  # of the server: the fields of its settings
        for field, info in Settings.model_fields.items():
            keyword = inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=info.default)
            parameters.setdefault(field, keyword)
    assert set(actions) == set(parameters)
    for dest, action in actions.items():
        default = parameters[dest].default
        assert (default is inspect.Parameter.empty) == action.required, dest
        assert action.default is argparse.SUPPRESS, "the function's default is the only one"
        said = re.search(r"default: ([\w.]+)(?:\)|, )", action.help or "")
        if said and said[1] not in ("on", "off") and isinstance(default, str | int | float) and dest != "threads":
            assert said[1] == f"{default:g}" if isinstance(default, int | float) else said[1] == default, dest


@pytest.mark.parametrize("name", ["predict", "predict_source"])
def test_the_flags_of_predict_are_the_parameters_of_two_functions(name):
    flags = inspect.signature(predict_main).parameters
    for parameter in inspect.signature(getattr(ehm, name)).parameters.values():
        if parameter.default is not inspect.Parameter.empty and parameter.name != "part_size":
            assert flags[parameter.name].default == parameter.default


@pytest.mark.parametrize(("result", "status"), [(None, 0), (3, 3), ({"loss": 0.5}, 0)])
def test_the_exit_status_is_a_number_that_the_function_returns_or_success(result, status, monkeypatch):
    monkeypatch.setattr("ehm.training.pretrain.train", lambda **options: result)
    assert main(["train"]) == status


def test_flags_arrive_and_what_is_not_given_is_not_passed(monkeypatch):
    calls = []
    monkeypatch.setattr("ehm.deploy.export.export", lambda *args, **options: calls.append(options))
    monkeypatch.setattr("ehm.training.pretrain.train", lambda *args, **options: calls.append(options))
    assert main(["export", "run", "--int8", "--set", "a=1", "--set", "b=2", "--target", "ascend"]) == 0
    assert main(["train"]) == 0
    assert calls == [{"checkpoint": "run", "int8": True, "overrides": ["a=1", "b=2"], "target": "ascend"}, {}]


@pytest.mark.parametrize("argv", [["configs", "--json"], ["doctor", "--json"], ["configs"]])
def test_a_reader_that_goes_away_ends_a_command_quietly(argv):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "ehm.cli", *argv], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (1, 141)  # rich's own, of tables


def test_a_place_that_cannot_be_written_to_is_one_sentence(monkeypatch, capsys):
    def fail(**options):
        raise PermissionError(13, "Permission denied", "runs/x")

    monkeypatch.setattr("ehm.training.pretrain.train", fail)
    assert main(["train"]) == 1
    assert capsys.readouterr().err == "ehm train: runs/x: Permission denied\n"
    with pytest.raises(PermissionError):
        main(["train", "--debug"])


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for command in (
        "train",
        "finetune",
        "probe",
        "evaluate",
        "export",
        "predict",
        "serve",
        "launch",
        "inspect",
        "report",
        "tokenizer",
        "language",
        "configs",
        "doctor",
        "verify",
    ):
        assert command in shown


@pytest.mark.parametrize(
    ("argv", "status", "sentence"),
    [
        (["train", "--config", "nothing.yaml"], 2, "nothing.yaml: no such file"),
        (["train", "--set", "mask.ratio=2"], 2, "mask.ratio"),
        (["train", "--set", "optim"], 2, "expected key=value"),
        (["train", "--device", "tpu"], 1, "--device tpu: unknown"),
        (["train", "--set", "data.source=/nowhere"], 1, "/nowhere"),
        (["train", "--resume"], 1, "--resume: no run in"),
        (["export", "/nowhere"], 1, "/nowhere"),
        (["predict", "/nowhere", "image.png"], 1, "/nowhere"),
        (["predict", "/nowhere", "image.png", "--set", "a=1"], 2, "--set: is for a source of images"),
        (
            ["predict", "/nowhere", "image.png", "--config", "a"],
            2,
            "takes neither --config nor --set: its settings are",
        ),
        (
            ["launch", "--kind", "slurm", "--device", "cpu", "train", "--config", "a"],
            2,
            "write it and its flags behind --",
        ),
        (["bench", "export", "/nowhere", "--config", "a"], 2, "takes neither --config nor --set: its settings are"),
    ],
)
def test_bad_input_is_one_sentence_and_a_status(argv, status, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*argv, "--out", str(tmp_path / "out")]) == status
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert shown.err.startswith(f"ehm {argv[0]}: ")
    assert not (tmp_path / "out").exists()


def test_debug_shows_where():
    with pytest.raises(ConfigError):
        main(["train", "--config", "nothing.yaml", "--debug"])


def test_interruption_is_no_error(monkeypatch, capsys):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ehm.training.pretrain.train", stop)
    assert main(["train"]) == 130
    assert "interrupted" in capsys.readouterr().err
