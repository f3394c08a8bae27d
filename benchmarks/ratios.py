"""Ratios that must not grow: what ours costs, in units of one `orjson.loads` of the same bytes. CI's short form of the benchmarks.

    python -m benchmarks.ratios

Rules of the file:

* No bound is a time. Ours and the yardstick are measured in turns, in processor time of this process, and the median of the turns' own
  ratios counts: another machine, a slower clock or a busy neighbour changes both alike.
* A bound leaves room: what `bound` allows is some twice what was measured when it was set (`when_set`). It stops a change that makes a
  step twice as dear, and no change that makes it a tenth dearer; for those there is `make bench`.
* Each step has a control that does the same work the obvious way. It must break the bound, or the check measures nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import orjson

from benchmarks.traffic import MODEL, Traffic, records
from consumers.log.formats import InputReader, NativeFormat
from detector.baseline import PUBLIC_KEY
from detector.profile_table import ProfileTable

TURNS = 9
QUERIES = 2000
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A step and its bound, in parses of the same events. control: must be beyond the bound."""

    name: str
    bound: float
    when_set: float
    step: Work
    control: Work


def ratio(work: Work, yardstick: Work, turns: int = TURNS) -> float:
    """Median over turns of what `work` costs in units of `yardstick`."""
    work()
    found = []
    for _ in range(turns):
        began = time.process_time()
        work()
        between = time.process_time()
        yardstick()
        found.append((between - began) / (time.process_time() - between))
    return median(found)


def ratios() -> tuple[Sequence[Ratio], Work]:
    """The steps, and the yardstick."""
    traffic = Traffic()
    baseline = traffic.baseline(reference=200, honest=2500)
    lines, _ = traffic.lines(QUERIES)
    fmt, fmap = NativeFormat({MODEL: InputReader(baseline.map.schema)}), baseline.map
    some = records(lines)
    batch = fmt.decode(some).batches[MODEL]
    singles = [batch.take(np.array([i])) for i in range(0, QUERIES, 10)]

    def parse() -> None:
        for _ in range(4):
            for line in lines:
                orjson.loads(line)

    def decode() -> None:
        for _ in range(4):
            fmt.decode(some)

    def parse_slowly() -> None:
        for _ in range(4):
            for line in lines:
                np.array(json.loads(line)["features"])

    def measure_and_fold() -> None:
        for _ in range(4):
            table = ProfileTable(fmap, baseline.table, baseline.calibration_version, 2**62)
            table.add(list(batch.clients), batch, fmap.measure(batch, PUBLIC_KEY))

    def one_by_one() -> None:
        table = ProfileTable(fmap, baseline.table, baseline.calibration_version, 2**62)
        for _ in range(40):
            for one in singles:
                table.add(list(one.clients), one, fmap.measure(one, PUBLIC_KEY))

    return (
        Ratio("decode", 2.5, 1.2, decode, parse_slowly),
        Ratio("measure and fold", 8.0, 4.0, measure_and_fold, one_by_one),
    ), parse


def main() -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    steps, yardstick = ratios()
    wrong = 0
    for one in steps:
        ours, control = ratio(one.step, yardstick), ratio(one.control, yardstick, turns=1)
        good = ours <= one.bound < control
        wrong += not good
        said = "within" if good else "BEYOND THE BOUND" if ours > one.bound else "THE CONTROL IS NOT SEEN TO BE SLOW"
        print(
            f"{one.name:18} {ours:5.2f} parses an event, bound {one.bound:g} ({one.when_set:g} when set); control {control:.1f}: {said}"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
