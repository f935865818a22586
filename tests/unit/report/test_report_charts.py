"""Charts: the points of the drawn lines are those of the data, read off the axes as a person would."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
from run_folders import SVG, find_by_class, parse_page, pretrain_config, write_run

from ehm.report.axis import fit_axis
from ehm.report.chart import draw_chart, thin_out
from ehm.report.curves import Curve, read_curves
from ehm.report.numbers import BYTES, PLAIN, SHARE, format_value
from ehm.report.page import render_page
from ehm.report.record import read_record


def read_axis(svg, kind, place):
    """Return the value of a place on an axis, as its first and last tick say it, as the line through them."""
    ticks = [element for element in svg.iter(f"{SVG}text") if element.get("class") == kind]
    places = [float(tick.get(place)) for tick in ticks]
    values = [float(tick.text.replace(",", "").removesuffix("%").removesuffix(" GiB")) for tick in ticks]
    return np.poly1d(np.polyfit([places[0], places[-1]], [values[0], values[-1]], 1))


def read_points(svg, line=0):
    """Return the points of a line of a drawn chart in the units of its axes: (n, 2)."""
    path = list(svg.iter(f"{SVG}path"))[line]
    points = np.array([list(map(float, point.split(","))) for point in re.split("[ML]", path.get("d"))[1:]])
    return np.stack([read_axis(svg, "x-tick", "x")(points[:, 0]), read_axis(svg, "y-tick", "y")(points[:, 1])], axis=1)


@pytest.fixture
def drawn(tmp_path):
    """Draw the charts of a run with the given lines: a function that returns them by their titles."""

    def draw(lines):
        tree = parse_page(render_page(read_record(write_run(tmp_path / "run", pretrain_config(), lines))))
        charts = {}
        for figure in find_by_class(tree, "chart"):
            heading = next(element for element in figure.iter() if element.tag.endswith("h4"))
            charts[heading.text] = next(figure.iter(f"{SVG}svg"))
        return charts

    return draw


def test_a_line_goes_through_its_data(drawn):
    rng = np.random.default_rng(0)
    loss = np.exp(-np.linspace(0, 3, 25)) + rng.normal(0, 0.05, 25)
    knn = rng.uniform(0.3, 0.6, 25)
    lines = []
    for index in range(25):
        step = 4 * (index + 1)
        lines.append({"step": step, "epoch": step / 25, "loss": loss[index], "knn": knn[index], "knn_ema": knn[-index]})
    charts = drawn(lines)
    epochs = 4 * np.arange(1, 26) / 25
    # a path has hundredths of a unit of some 300, and the ticks three digits
    np.testing.assert_allclose(read_points(charts["Loss"]), np.stack([epochs, loss], 1), atol=5e-3)
    average = np.stack([epochs, 100 * knn[-np.arange(25)]], 1)
    np.testing.assert_allclose(read_points(charts["Nearest neighbours (k-NN)"], 1), average, atol=0.1)
    labels = [element.text for element in find_by_class(charts["Nearest neighbours (k-NN)"], "label")]
    assert labels == [f"online {100 * knn[-1]:.1f}%", f"average {100 * knn[-24]:.1f}%"]


def test_steps_take_the_place_of_epochs_that_are_not_known(drawn):
    charts = drawn([{"step": 10, "loss": 2.0}, {"step": 2000, "loss": 1.0}])
    np.testing.assert_allclose(read_points(charts["Loss"]), [[10, 2], [2000, 1]], rtol=0.01, atol=5)


def test_a_value_that_is_no_number_is_a_gap(drawn):
    charts = drawn([{"step": step, "loss": math.nan if step == 3 else step} for step in range(1, 6)])
    path = next(charts["Loss"].iter(f"{SVG}path")).get("d")
    assert re.sub("[^ML]", "", path) == "MLML"
    np.testing.assert_allclose(read_points(charts["Loss"])[:, 1], [1, 2, 4, 5], atol=0.05)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-9, 5e12])
def test_a_single_value_is_drawn(drawn, value):
    charts = drawn([{"step": 7, "epoch": 1.0, "loss": value, "lr": value, "other figure": value}])
    assert set(charts) == {"Loss", "Learning rate", "other figure"}
    assert all("nan" not in path.get("d") for chart in charts.values() for path in chart.iter(f"{SVG}path"))


@pytest.mark.parametrize("low", [-7.3, 0.0, 1e-5, 0.871, 4321.0])
@pytest.mark.parametrize("length", [1e-6, 0.02, 0.3, 5.0, 1e7])
@pytest.mark.parametrize("from_zero", [True, False])
def test_ticks_are_few_round_different_and_span_the_data(low, length, from_zero):
    axis = fit_axis([low, low + length], 0, 100, 4, from_zero=from_zero, exact=False)
    assert axis.low <= low + 1e-9 * abs(low)
    assert axis.high >= low + length - 1e-9 * abs(low + length)
    assert 2 <= len(axis.ticks) <= 7
    assert 0 <= axis.place(low) <= axis.place(low + length) <= 100 + 1e-6
    texts = [axis.format_tick(tick) for tick in axis.ticks]
    assert len(set(texts)) == len(texts)
    for text, tick in zip(texts, axis.ticks, strict=True):
        assert float(text.replace(",", "")) == pytest.approx(tick, abs=length * 1e-6)


@pytest.mark.parametrize("level", [0.0, 0.755, 0.998])
def test_a_small_difference_of_an_accuracy_does_not_fill_the_chart(level):
    curves = [("top-1", Curve((1, 2, 3), (level + 0.002, level, level + 0.001)))]
    axis = draw_chart("t", "", curves, None, SHARE).y_axis
    assert axis.high - axis.low >= 10
    assert 0 <= axis.low <= 100 * level < 100 * (level + 0.002) <= axis.high <= 100 + 1e-9


def test_labels_of_lines_that_end_together_do_not_overlap():
    curves = [(name, Curve((1, 2), (0.1, 0.5 + number / 1000))) for number, name in enumerate("abcd")]
    chart = draw_chart("t", "", curves, None, PLAIN)
    places = sorted(line.text_y for line in chart.lines)
    assert all(later - earlier >= 12 for earlier, later in pairwise(places))
    assert places[0] >= 0


def test_a_long_curve_keeps_its_peaks_and_its_ends():
    rng = np.random.default_rng(1)
    values = rng.normal(size=50_000)
    values[12_345] = 40
    values[23_456] = -40
    curve = Curve(tuple(range(50_000)), tuple(values.tolist()))
    thinned = thin_out(curve, 300)
    assert len(thinned.steps) <= 302
    assert {0, 12_345, 23_456, 49_999} <= set(thinned.steps)
    assert all(values[step] == value for step, value in zip(thinned.steps, thinned.values, strict=True))


def test_lines_that_are_no_metrics_are_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "loss": 3}', "[]", "rubbish", '{"loss": 9}', '{"step": true, "loss": 9}', '{"step": 2, "los']
    # a step that was taken once more, and what is no number
    lines.insert(1, '{"step": 3, "epoch": 1.5, "loss": 2, "note": "x", "lr": NaN}')
    file.write_bytes("\n".join(lines).encode() + b"\xff")
    curves = read_curves(file)
    assert curves.by_key["loss"] == Curve((1, 3), (3.0, 2.0))
    assert set(curves.by_key) == {"loss", "lr"}
    assert curves.find("lr") is None
    assert (curves.last_step, curves.steps_per_epoch) == (3, 2)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.12345, PLAIN, "0.123"),
        (0.5, PLAIN, "0.500"),
        (18, PLAIN, "18"),
        (123456.0, PLAIN, "123,456"),
        (2.5e-5, PLAIN, "2.5e-5"),
        (0.98765, SHARE, "98.8%"),
        (3 * 2**30, BYTES, "3 GiB"),
        (math.nan, PLAIN, "–"),
        (None, SHARE, "–"),
    ],
)
def test_numbers_are_written_as_people_read_them(value, unit, text):
    assert format_value(value, unit) == text
