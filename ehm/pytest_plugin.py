"""The plug-in of pytest behind ``pytest --npu-operators``: a test fails if torch-npu lacks an operator that it runs.

pytest loads this module wherever ehm is installed, so it imports neither torch nor the rest of ehm unless the option is
given.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest

__all__ = ["pytest_addoption", "pytest_configure", "pytest_report_header", "pytest_runtest_call"]

_ALLOWED = "npu_operators_allowed"
_FAILING = ("falls back", "no float64")
_SHOWN_PLACES = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the setting."""
    group = parser.getgroup("ehm", "operators of Ascend NPUs")
    group.addoption(
        "--npu-operators",
        action="store_true",
        help="fail a test if torch-npu lacks an operator that it runs on any device; what fixtures run does not count",
    )
    parser.addini(_ALLOWED, "operators that may fall back to the CPU, for --npu-operators", type="linelist")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", f"{_ALLOWED}(*operators): operators that may fall back to the CPU in this test; none means all"
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say that the tests are held to the operators of torch-npu."""
    if not config.getoption("--npu-operators"):
        return None
    return "operators: those of torch-npu 2.14 (ehm --npu-operators)"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, None]:
    """Record the operators of a test, and let it fail if torch-npu lacks one of them."""
    # an old-style wrapper: older versions of pytest would refuse to load a new one
    if not item.config.getoption("--npu-operators"):
        yield
        return
    from ehm.backends.torch.diagnosis.operators import judge_calls
    from ehm.backends.torch.diagnosis.recording import record_operators

    own = os.path.join(item.config.rootpath, "")
    with record_operators(None, own) as calls:
        outcome = yield
    lacking = [row for row in judge_calls(calls) if row.verdict in _FAILING and not _is_allowed(item, row.operator)]
    if lacking and outcome.excinfo is None:
        text = "\n".join(["torch-npu lacks operators of this test:", *_describe(lacking)])
        outcome.force_exception(pytest.fail.Exception(text, pytrace=False))


def _is_allowed(item: pytest.Item, operator: str) -> bool:
    allowed = list(item.config.getini(_ALLOWED))
    for marker in item.iter_markers(_ALLOWED):
        if not marker.args:
            return True
        allowed += marker.args
    base = operator.partition(".")[0]
    return operator in allowed or base in allowed


def _describe(rows: list[Any]) -> Iterator[str]:
    """Yield a line for each operator: its types, the reason, and the first places that called it."""
    by_operator: dict[tuple[str, str, str], list[Any]] = {}
    for row in rows:
        by_operator.setdefault((row.operator, row.verdict, row.reason), []).append(row)
    for (operator, verdict, reason), calls in by_operator.items():
        places = list(dict.fromkeys(call.site for call in calls))
        types = dict.fromkeys(dtype for call in calls for dtype in call.dtypes)
        shown = ", ".join(places[:_SHOWN_PLACES])
        if len(places) > _SHOWN_PLACES:
            shown += f" and {len(places) - _SHOWN_PLACES} more"
        yield f"  {operator} ({', '.join(types)}): {verdict}, {reason}; called at {shown}"
