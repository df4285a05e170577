"""The arithmetic and the table of `make bench`."""

from __future__ import annotations

from bench.measure import Measure, percentile, table


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([5.0, 1.0, 4.0, 2.0, 3.0], 0.5) == 3.0
    assert percentile([1.0, 2.0], 0.99) == 2.0
    assert percentile([7.0], 0.01) == 7.0


def test_a_rate_must_reach_its_target_and_everything_else_must_stay_below() -> None:
    assert Measure("rate", 250, "/s", 1, "", 250, is_rate=True).holds is True
    assert Measure("rate", 249, "/s", 1, "", 250, is_rate=True).holds is False
    assert Measure("time", 5, "ms", 1, "", 5).holds is True
    assert Measure("time", 5.1, "ms", 1, "", 5).holds is False
    assert Measure("size", 5, "bytes", 1, "").holds is None


def test_the_table_shows_every_figure_with_its_target_and_whether_it_holds() -> None:
    lines = table(
        [
            Measure("start latency p50", 4.25, "ms", 200, "from create to body", 5),
            Measure("throughput", 123.4, "runs/s", 1500, "no-op runs", 250, is_rate=True),
            Measure("queued run", 1064, "bytes", 20_000, "in Redis"),
        ]
    ).splitlines()
    assert lines[0].split() == ["name", "value", "unit", "runs", "target", "what", "it", "means"]
    assert lines[1].split()[3:9] == ["4.25", "ms", "200", "<=", "5", "ok"]
    assert "MISSED" in lines[2]
    assert "1,064" in lines[3]
    assert "20,000" in lines[3]
