"""Names that look like rich's markup, or are no UTF-8, are printed as they are, and escaped where they cannot be."""

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.progress import Progress
from rich.table import Table

from ehm.backends.base import ALONE
from ehm.config import DataConfig, load_config
from ehm.config.tasks import FinetuneConfig
from ehm.console import PlainConsole, console, print_line
from ehm.data import open_source
from ehm.deploy.bench import Timing, _print_table
from ehm.deploy.predict.prediction import Prediction
from ehm.deploy.serve.http.app import _answer_error
from ehm.deploy.serve.routes.neighbours import Index
from ehm.doctor import Finding
from ehm.errors import ConfigError
from ehm.storage.names import escape_undecodable
from ehm.tasks.classification.metrics import report_classification
from ehm.tasks.detection.metrics import report_detection
from ehm.tasks.segmentation.metrics import SegmentationReport
from ehm.training.run import print_unreadable
from ehm.training.runlog import RunLog

NAMES = ["screw [left]", "part [/A]", "[bold]", ":cat:", "[link=x]y[/link]"]
BYTES = os.fsdecode(b"caf\xe9")  # Latin-1


class Output(io.TextIOWrapper):
    """A stream with an encoding, as standard output is one."""

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def text(self):
        return self.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_printed_as_it_is(name, capsys):
    table = Table(name, title=name)
    table.add_row(name)
    for shown in (name, table):
        console.print(shown)
        PlainConsole(stderr=True, soft_wrap=False).print(shown)
    print_line(name)
    printed = capsys.readouterr()
    assert printed.out.count(name) == 1 + 3 + 1
    assert printed.err.count(name) == 1 + 3


@pytest.mark.parametrize(
    ("encoding", "shown"), [("utf-8", r"caf\xe9 é"), ("latin-1", r"caf\xe9 é"), ("ascii", r"caf\xe9 \xe9")]
)
def test_what_cannot_be_printed_is_escaped(encoding, shown, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Output(encoding))
    console.print(f"{BYTES} é")
    print_line(f"{BYTES} é")
    assert sys.stdout.text().splitlines() == [shown, shown]


def test_escapes_are_those_of_bytes_and_of_surrogates():
    assert escape_undecodable("é 日本 [x]") == "é 日本 [x]"
    assert escape_undecodable(os.fsdecode(b"a\xff\x80b") + "\ud800\udc00") == r"a\xff\x80b\ud800\udc00"


def test_reports_keep_the_names_of_classes(monkeypatch, capsys):
    monkeypatch.setattr(console, "_width", 200)  # no cell is broken into lines
    report_classification(np.array([0, 1]), np.eye(2), NAMES[:2]).show()
    SegmentationReport(1, 1.0, 1.0, 1.0, tuple(NAMES[:2]), (1.0, 1.0), (1.0, 1.0), (8, 8)).show()
    boxes = [{"image_id": 1, "bbox": [0, 0, 4, 4], "category_id": 1, "score": 0.5}]
    report_detection([{"id": 1, "height": 9, "width": 9}], boxes, boxes, NAMES[:2], masks=False).show()
    _print_table([Timing(NAMES[1], 1, 1, 1, 1, 1, 1, 1, 1)], NAMES[0])
    print_unreadable({f"/data/{NAMES[1]}/a.png": f"broken {NAMES[1]}"}, ALONE)
    printed = capsys.readouterr().out
    assert printed.count(NAMES[1]) >= 1 + 1 + 1 + 1 + 2
    assert printed.count(NAMES[0]) >= 3


def test_progress_and_the_log_keep_them_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Output("ascii"))
    monkeypatch.setattr(PlainConsole, "is_terminal", property(lambda self: True))
    with RunLog(tmp_path / "part [/A]", 2, title=f"part [/A] {BYTES}", trackers=["tensorboard"]) as log:
        log.log(1, {"loss": 1.0})
    with Progress(console=console) as progress:
        progress.add_task("x", total=1)
    assert r"part [/A] caf\xe9" in sys.stdout.text()


@pytest.fixture
def classes(tmp_path):
    """Images of the classes b"caf\\xe9" and "part [A]", two of each."""
    for name in (BYTES, "part [A]"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), "red").save(folder / f"{number}.png")
    return tmp_path / "data"


def test_classes_are_text_that_every_file_can_hold(classes):
    source = open_source(DataConfig(source=str(classes)))
    assert sorted(source.classes) == [r"caf\xe9", "part [A]"]
    assert json.dumps(source.classes, ensure_ascii=False).encode("utf-8")
    assert source.load(0).size == (8, 8)
    assert source.name(0).startswith(str(classes))
    assert sorted(source.labels.tolist()) == [0, 0, 1, 1]


def test_a_setting_that_is_no_utf8_is_refused(classes):
    with pytest.raises(ConfigError, match="is not UTF-8; give a link to that file or folder whose name is"):
        load_config(FinetuneConfig, None, [f"data.source={classes / BYTES}"])


def test_a_command_prints_what_it_was_given(classes, tmp_path):
    """Standard output in ASCII, as in a container without a locale."""
    place = classes / BYTES
    line = [sys.executable, "-m", "ehm.cli", "predict", str(tmp_path / "part [/A]"), str(place / "0.png")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(line, capture_output=True, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"ehm predict: {tmp_path}/part [/A]: not a bundle")


def test_a_server_answers_with_what_json_can_hold(tmp_path):
    for name in (BYTES, "b.png"):
        (tmp_path / name).write_bytes(b"")
    lines = [json.dumps({"image": str(tmp_path / name)}) for name in (BYTES, "b.png")]
    (tmp_path / "predictions.jsonl").write_text("\n".join(lines))
    np.save(tmp_path / "features.npy", np.eye(2, 4, dtype=np.float32))
    assert Index(tmp_path).names == [r"caf\xe9", "b.png"]
    request = SimpleNamespace(state=SimpleNamespace(record=SimpleNamespace(error=None)))
    assert json.loads(_answer_error(request, 400, "no input \ud800").body) == {"error": r"no input \ud800"}


def test_predictions_and_findings_are_text(capsys):
    print_line(str(Prediction(f"{BYTES}/part [/A].png", ((NAMES[0], 0.5),))))
    assert capsys.readouterr().out == f"caf\\xe9/part [/A].png\n  0.5000  {NAMES[0]}\n"
    assert Finding("package", "[/A]", "ok", "").name == "[/A]"
