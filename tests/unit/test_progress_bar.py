"""Progress bars in a notebook, with a stand-in for IPython's shell and its outputs; html5lib reads what they show."""

import sys
from types import SimpleNamespace

import html5lib
import pytest

from ehm.console import console, is_notebook
from ehm.progress_bar import create_progress, is_progress_shown, track
from ehm.training.runlog import RunLog


class Output:
    """An output of a cell, which keeps the HTML of everything that was drawn into it."""

    def __init__(self, shown):
        assert not hasattr(shown, "_repr_mimebundle_")  # IPython would take that instead
        self.drawn = [shown._repr_html_()]
        self.text = repr(shown)

    def update(self, shown):
        self.drawn.append(shown._repr_html_())
        self.text = repr(shown)


@pytest.fixture
def outputs(monkeypatch):
    """Pretend that this process is the kernel of a notebook; return the outputs of its cell."""
    found = []

    def display(shown, display_id):
        assert display_id is True
        found.append(Output(shown))
        return found[-1]

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object())))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr("ehm.progress_bar._SECONDS_BETWEEN_DRAWINGS", 0.0)
    return found


def read_bars(html):
    """Return the (completed, total) of each bar that a browser would find, and the text beside them."""
    page = html5lib.parse(html, treebuilder="etree", namespaceHTMLElements=False)
    bars = [(float(bar.get("value")), float(bar.get("max"))) for bar in page.iter("progress")]
    return bars, " ".join(text.strip() for text in page.itertext() if text.strip())


@pytest.mark.parametrize("shell", [None, SimpleNamespace()], ids=["python", "IPython on a terminal"])
def test_only_a_kernel_is_a_notebook(monkeypatch, shell):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert not is_notebook()
    assert not is_progress_shown()
    with create_progress() as progress:
        progress.add_task("nothing is drawn in a log", total=1)


def test_a_bar_advances_to_its_end(outputs):
    assert is_notebook()
    assert is_progress_shown()
    assert list(track("abcd", "letters", 4)) == list("abcd")
    counts = [bars[0][0] for bars, _ in map(read_bars, outputs[0].drawn) if bars]
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3, 4}
    bars, text = read_bars(outputs[0].drawn[-1])
    assert bars == [(4, 4)]
    assert "letters 4 of 4" in text
    assert "stopped" not in text
    assert outputs[0].text.startswith("letters  4 of 4")


def test_what_was_complete_before_is_not_called_stopped(outputs):
    with create_progress() as progress:
        progress.add_task("again", total=4, completed=4)
    assert "stopped" not in read_bars(outputs[0].drawn[-1])[1]


def test_a_transient_bar_leaves_nothing_behind(outputs):
    assert list(track(range(3), "passing", 3, transient=True)) == [0, 1, 2]
    assert read_bars(outputs[0].drawn[-2])[0] == [(3, 3)]
    assert outputs[0].drawn[-1] == ""


@pytest.mark.parametrize("transient", [False, True])
def test_an_error_closes_the_bar_where_it_was(outputs, transient):
    progress = create_progress(transient=transient)

    def fail_halfway():
        with progress:
            progress.advance(progress.add_task("divide", total=4), 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    count = len(outputs[0].drawn)
    progress.advance(progress.task_ids[0])
    assert len(outputs[0].drawn) == count
    bars, text = read_bars(outputs[0].drawn[-1])
    assert bars == [(2, 4)]
    assert "2 of 4 stopped" in text


def test_names_are_escaped(outputs):
    name = '<script>alert(1)</script>" onload="x'
    with create_progress() as progress:
        progress.add_task(name, total=None, values=name)
    page = html5lib.parse(outputs[0].drawn[-1], treebuilder="etree", namespaceHTMLElements=False)
    assert not list(page.iter("script"))
    assert all(element.get("onload") is None for element in page.iter())
    assert [strong.text for strong in page.iter("strong")] == [name]
    assert [span.text for span in page.iter("span")][-1] == name


def test_a_run_shows_its_figures_beside_its_bar_and_prints_no_lines(outputs, tmp_path, capsys):
    with RunLog(tmp_path, 20, title="pretrain") as log:
        log.log(10, {"loss": 0.25})
    bars, text = read_bars(outputs[0].drawn[-1])
    assert bars == [(10, 20)]
    assert "loss 0.25" in text
    assert "stopped" in text
    assert capsys.readouterr().out == ""


def test_lines_in_a_notebook_are_text(outputs, capsys):
    console.print("a [red]line[/red] <b>")
    assert capsys.readouterr().out == "a [red]line[/red] <b>\n"
    assert outputs == []
