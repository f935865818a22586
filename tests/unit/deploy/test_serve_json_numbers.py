"""Arrays of numbers in JSON: read and written as the standard library does, in small steps."""

import json
import math
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehm.deploy.serve.routes import json_numbers
from ehm.deploy.serve.routes.json_numbers import cut_numbers, dump_numbers, parse_numbers

NUMBERS = st.integers(-(2**31), 2**31) | st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Steps of a few numbers, so that short arrays take many."""
    monkeypatch.setattr(json_numbers, "_CHARACTERS", 20)
    monkeypatch.setattr(json_numbers, "_NUMBERS", 3)


@given(st.lists(NUMBERS, max_size=60), st.sampled_from([None, 1]))
def test_flat_arrays_are_what_json_makes_of_them(values, indent):
    text = json.dumps(values, indent=indent)
    assert np.array_equal(parse_numbers(text), np.asarray(json.loads(text)))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.sampled_from([None, 1]))
def test_nested_arrays_keep_their_shape(first, second, third, indent):
    values = np.random.default_rng(first).standard_normal((first, second, third))
    found = parse_numbers(json.dumps(values.tolist(), indent=indent))
    assert found.shape == values.shape
    assert np.array_equal(found, values)


@given(st.lists(NUMBERS, max_size=40))
def test_what_is_written_is_what_json_reads(values):
    array = np.asarray(values, np.float64)
    assert json.loads(dump_numbers(array)) == array.tolist()
    assert dump_numbers(array) == json.dumps(array.tolist(), separators=(",", ":"))


TOKENS = st.sampled_from(["[", "]", ",", "1", "-2.5", "1e3", " ", "NaN", "true", '"a"', "{", "}", "01", "."])


@given(st.lists(TOKENS, max_size=14).map(lambda tokens: "[" + "".join(tokens)))
def test_what_json_refuses_is_refused(text):
    """Text that Python's json refuses is refused, and valid JSON that is no rectangular array of numbers, too."""
    try:
        expected = np.asarray(json.loads(text, parse_constant=json_numbers._refuse_constant))
    except ValueError:
        expected = np.asarray(None)
    if expected.dtype.kind in "iuf":
        assert np.array_equal(parse_numbers(text.rstrip()), expected)
    else:
        with pytest.raises(ValueError):  # noqa: PT011  # json's messages, and NumPy's
            parse_numbers(text)


@pytest.mark.parametrize(
    "text",
    [
        "[1,,2]",
        "[1,2,]",
        "[,1]",
        "[[1,2],[3]]",
        "[[1,2][3,4]]",
        "[[1],2]",
        "[1,[2]]",
        "[1,2]]",
        "[1,2",
        "[[1,2]",
        "[1 2]",
        "[" + "1," * 40 + "]",
        "[" + "1," * 40 + ",1]",
        "[true,false]",
        "[NaN]",
        "[" + "9" * 5000 + "]",
        "[123456789012345678901234567890]",
        "[null]",
        "[{}]",
    ],
)
def test_no_array_of_numbers(text):
    with pytest.raises(ValueError):  # noqa: PT011
        parse_numbers(text)


@given(st.lists(NUMBERS, min_size=1, max_size=30), st.text(max_size=20), st.sampled_from([None, 1]))
def test_the_numbers_are_cut_out_of_any_request(values, name, indent):
    request = {"id": name, "inputs": [{"name": name, "data": values, "shape": [1]}], "outputs": [{"name": "data"}]}
    rest, numbers = cut_numbers(json.dumps(request, indent=indent))
    assert json.loads(numbers) == values
    request["inputs"][0]["data"] = []
    assert json.loads(rest) == request


@pytest.mark.parametrize(
    "text",
    [
        '{"id": "\\"data\\": [1,2]", "inputs": []}',
        '{"data": ["a", "b"]}',
        '{"data": "[1,2]"}',
        '{"data": 5, "x": [1,2]}',
        '{"data": [{"a": 1}]}',
        '{"name": "data", "x": [1]}',
    ],
)
def test_nothing_else_is_cut(text):
    assert cut_numbers(text) == (text, "")


def test_a_long_array_is_read_in_steps(monkeypatch):
    """No call of json's, which holds the interpreter, gets more than a step."""
    sizes = []
    loads = json.loads
    monkeypatch.setattr(
        json_numbers.json, "loads", lambda text, **given: (sizes.append(len(text)), loads(text, **given))[1]
    )
    for text in (json.dumps([1.25] * 1000), json.dumps([[1.25] * 500] * 2)):
        assert parse_numbers(text).sum() == 1250
    assert max(sizes) < 40
    assert len(sizes) > 400
    assert math.isclose(parse_numbers("[1.25]")[0], 1.25)


@pytest.mark.parametrize(
    ("function", "numbers"),
    [
        (parse_numbers, json.dumps([1.25] * 1000)),
        (parse_numbers, json.dumps([[1.25]] * 1000)),
        (dump_numbers, np.full(1000, 1.25)),
    ],
    ids=["one row", "many rows", "written"],
)
def test_other_threads_have_their_turn_once_a_millisecond(monkeypatch, function, numbers):
    """On a clock that goes on by 0.4 ms whenever it is read, which is once a step."""
    ticks = count()
    pauses = []
    clock = SimpleNamespace(perf_counter=lambda: 4e-4 * next(ticks), sleep=pauses.append)
    monkeypatch.setattr(json_numbers, "time", clock)
    function(numbers)
    milliseconds = 0.4 * next(ticks)
    assert milliseconds > 50
    # a pause comes with the first step that ends behind a millisecond
    assert milliseconds / 2 < len(pauses) <= milliseconds
    assert min(pauses) > 0
