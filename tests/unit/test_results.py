"""The results that commands print with ``--json`` and ``--quiet``, and the colours of their output."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ehm.cli import main
from ehm.console import PlainConsole, console, print_line
from ehm.plain_values import to_plain


@dataclass
class Result:
    """A result of a run, as the functions return it."""

    out: Path
    loss: float
    report: object


class Report:
    """The figures of a model, which say themselves what they are."""

    def to_json(self):
        return {"top1": np.float32(0.5), "classes": ["a"], "confusion": np.eye(2, dtype=int)}

    def show(self):
        console.print("top1 50 %")


RESULT = Result(Path("runs/a"), float("nan"), Report())
PLAIN = {"top1": 0.5, "classes": ["a"], "confusion": [[1, 0], [0, 1]]}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``ehm train`` with a function that talks and returns a result; what it prints on both streams."""

    def run(result, *flags):
        def talk(**options):
            assert not options
            console.print("training")
            PlainConsole(soft_wrap=False).print("a table")
            return result

        monkeypatch.setattr("ehm.training.pretrain.train", talk)
        assert main(["train", *flags]) == 0
        shown = capsys.readouterr()
        return shown.out, shown.err

    return run


@pytest.mark.parametrize(
    ("result", "document"),
    [
        (RESULT, {"out": "runs/a", "loss": None, "report": PLAIN}),
        (Report(), PLAIN),
        (Path("bundle"), {"path": "bundle"}),
        ([Path("a.png"), Path("b.png")], {"paths": ["a.png", "b.png"]}),
        ({"a": (1, True, None)}, {"a": [1, True, None]}),
    ],
)
def test_json_is_one_document_on_standard_output(result, document, run):
    for flags in (["--json"], ["--json", "--quiet"]):
        out, err = run(result, *flags)
        assert json.loads(out) == document
        assert err == ("a table\n" if "--quiet" in flags else "training\na table\n")


@pytest.mark.parametrize(
    ("result", "shown"),
    [(RESULT, "runs/a\n"), (Path("bundle"), "bundle\n"), ([Path("a"), Path("b")], "a\nb\n"), (Report(), "top1 50 %\n")],
)
def test_quiet_leaves_the_result_alone(result, shown, run):
    assert run(result, "--quiet") == (f"a table\n{shown}", "")
    assert run(result) == ("training\na table\n", "")


def test_processes_that_are_silent_print_no_result(run, monkeypatch):
    monkeypatch.setattr(console, "quiet", True)
    assert run(RESULT, "--json") == ("", "a table\n")


def test_an_error_is_said_in_spite_of_quiet(capsys):
    assert main(["train", "--config", "nothing.yaml", "--quiet", "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "no such file" in shown.err
    print_line("as before")
    console.print("as before")
    assert capsys.readouterr().out == "as before\nas before\n"


def test_what_json_cannot_say_is_an_error():
    with pytest.raises(TypeError, match="object has no plain value"):
        to_plain(object())


COLOURED = "from rich.text import Text; from ehm.console import console; console.print(Text('x', style='red'))"


@pytest.mark.parametrize(
    ("variables", "shown"),
    [({}, "x\n"), ({"FORCE_COLOR": "1"}, "\x1b[31mx\x1b[0m\n"), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "x\n")],
)
def test_colours_are_for_terminals_unless_they_are_asked_for(variables, shown):
    code = f"{COLOURED}; assert not console.is_terminal"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PATH": "", **variables}, capture_output=True, text=True, check=True
    )
    assert done.stdout == shown
