"""Runs side by side: the time that is left."""

import pytest

from ehm.comparison import side_by_side

FRESH = "  into runs/a/seed-0\n"
RESUMED = "  into runs/a/seed-0, continuing step-00000040\n"
HALF = "pretrain 50/100  loss 0.5  ETA 0:50\n"


@pytest.mark.parametrize(
    ("log", "left"),
    [
        pytest.param(FRESH + HALF, "50% of all runs, about 1:00 hours left", id="half in an hour"),
        pytest.param(RESUMED + HALF, "50% of all runs, about 5:00 hours left", id="a tenth in an hour"),
    ],
)
def test_steps_of_an_earlier_process_make_a_run_no_faster(log, left, tmp_path, monkeypatch, capsys):
    path = tmp_path / "seed-0.log"
    path.write_text(log)
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: 0.0)
    meter = side_by_side._Meter(1)
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: 3600.0)
    meter.show([side_by_side._read_shares(path)])
    assert left in capsys.readouterr().out


def test_an_ended_run_keeps_the_steps_of_an_earlier_process_apart(tmp_path, monkeypatch, capsys):
    path = tmp_path / "seed-0.log"
    path.write_text(RESUMED + "pretrain 100/100  loss 0.5  ETA 0:00\n")
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: 0.0)
    meter = side_by_side._Meter(2)
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: 3600.0)
    meter.count_end(side_by_side.Job("a", lambda device: [], path, status=0), 3600.0)
    meter.show([])
    # 0.6 of a run took an hour, and a whole one is left
    assert "50% of all runs, about 1:40 hours left" in capsys.readouterr().out
