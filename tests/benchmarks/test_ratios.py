"""The check of ratios, without its clock: what is within, what is beyond, and a control that is not slow."""

from __future__ import annotations

import pytest

from benchmarks import ratios
from benchmarks.ratios import Ratio, ratio


@pytest.mark.parametrize(
    ("ours", "control", "status"), [(3.0, 30.0, 0), (9.0, 30.0, 1), (3.0, 5.0, 1)], ids=["within", "beyond", "blind"]
)
def test_the_status_says_whether_a_bound_holds(
    ours: float, control: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]

    def takes(seconds: float) -> None:
        clock[0] += seconds

    one = Ratio("fold", 8.0, 4.0, lambda: takes(ours), lambda: takes(control))
    monkeypatch.setattr("time.process_time", lambda: clock[0])
    monkeypatch.setattr(ratios, "ratios", lambda: ([one], lambda: takes(1.0)))
    assert ratios.main() == status
    assert ("within" in capsys.readouterr().out) is (status == 0)


def test_one_slow_turn_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, turns = [0.0], iter([1.0, 2.0, 2.0, 50.0])

    def work() -> None:
        clock[0] += next(turns)

    def yardstick() -> None:
        clock[0] += 1.0

    monkeypatch.setattr("time.process_time", lambda: clock[0])
    assert ratio(work, yardstick, turns=3) == 2.0
