"""The command line's manners: exit statuses, one sentence, no traceback unless asked for."""

import pytest

from ehm.cli import main
from ehm.errors import ConfigError


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
        "inspect",
        "tokenizer",
        "configs",
        "doctor",
    ):
        assert command in shown


@pytest.mark.parametrize(
    ("argv", "status", "sentence"),
    [
        (["train", "--config", "nothing.yaml"], 2, "--config nothing.yaml: no such file"),
        (["train", "--set", "mask.ratio=2"], 2, "mask.ratio"),
        (["train", "--set", "optim"], 2, "expected key=value"),
        (["train", "--device", "tpu"], 1, "--device tpu: unknown"),
        (["train", "--set", "data.source=/nowhere"], 1, "/nowhere"),
        (["train", "--resume"], 1, "--resume: no run in"),
        (["export", "/nowhere"], 1, "/nowhere"),
        (["predict", "/nowhere", "image.png"], 1, "/nowhere"),
        (["predict", "/nowhere", "image.png", "--set", "a=1"], 2, "--set: predict takes its settings from the bundle"),
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

    monkeypatch.setattr("ehm.pretrain.train", stop)
    assert main(["train"]) == 130
    assert "interrupted" in capsys.readouterr().err
