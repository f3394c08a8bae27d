"""Tables of what carries over, for people: other people's victims, and honest clients of a generator that calibration never saw.

Rules: made from `benchmarks/results/carry_over.json` only; `docs/generate.py` puts them into the page. An honest client is tested once by
each calibrating generator, so an interval is Clopper and Pearson's over distinct clients; victims differ by more than that, so least and
largest shares stand beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation import Rate
from benchmarks.tables import in_percent, percent, share, table
from detector.simulation.attacks import ATTACKS

RESULTS = Path(__file__).parent / "results" / "carry_over.json"
FIRST, SECOND, BOTH = "first", "second", "both"
GENERATORS = (FIRST, SECOND)
LEVELS = (0.01, 0.02, 0.05, 0.1)
"""p-values at which honest clients are counted."""
VARIANTS = ("plain", "drip50", "drip10")
Results = dict[str, Any]
NOTHING = Rate(0.0, 0.0)


def read(path: Path = RESULTS) -> Results:
    found: Results = json.loads(path.read_text(encoding="utf-8"))
    return found


def victims(results: Results) -> dict[str, dict[str, Any]]:
    """Each victim once, with what one of its fleets says of it."""
    return {key.split()[0]: found for key, found in results["fleets"].items()}


def calibrations(results: Results, source: str, victim: str | None = None) -> Iterator[dict[str, Any]]:
    """Those on clients of `source`, of one victim or all."""
    for name, found in results["fleets"].items():
        if victim in (None, name.split()[0]):
            yield from (one for key, one in found["calibrations"].items() if key.split()[0] == source)


def false_alarms(results: Results, source: str, tested: str, victim: str | None = None, what: str = "honest") -> Rate:
    """Of the population of `tested`, calibrated on `source`. what: `honest`, or `unaided` without rehearsed tools."""
    return sum(by_calibration(results, source, tested, victim, what), NOTHING)


def by_calibration(
    results: Results, source: str, tested: str, victim: str | None = None, what: str = "honest"
) -> list[Rate]:
    """The same, calibration by calibration."""
    found = calibrations(results, source, victim)
    return [sum((Rate(*c) for c in one[what][tested].values()), NOTHING) for one in found]


def over_fleets(rates: Sequence[Rate]) -> tuple[float, float]:
    """95 % interval of the pooled share, calibrations drawn anew: clients of one fleet share their calibration's luck."""
    rng = np.random.default_rng(0)
    hits, trials = np.array([r.hits for r in rates]), np.array([r.trials for r in rates])
    drawn = rng.integers(0, len(rates), size=(2000, len(rates)))
    low, high = np.quantile(hits[drawn].sum(axis=1) / trials[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def of_kind(results: Results, source: str, tested: str, kind: str) -> Rate:
    """Of all tested clients of one kind."""
    cells = [one[part][tested] for one in calibrations(results, source) for part in ("honest", "more")]
    return sum((Rate(*c[kind]) for c in cells if kind in c), NOTHING)


def counted(results: Results, source: str, what: str, victim: str | None = None) -> Rate:
    """A count that each calibration has: `itself` or `pretended`."""
    return sum((Rate(*one[what]) for one in calibrations(results, source, victim)), NOTHING)


def excluded(results: Results, source: str) -> Rate:
    """Honest clients that have no say in the calibration that they were given to."""
    return sum((Rate(one["excluded"], one["clients"]) for one in calibrations(results, source)), NOTHING)


def left_out(results: Results, source: str, what: str, kind: str | None = None) -> Rate:
    """Flagged of kinds of which `none` or `few` clients calibrate, or of the `others` then; each other client counts once."""
    cells = [c for one in calibrations(results, source) for k, c in one["kinds"].items() if kind in (None, k)]
    found = sum((Rate(*c[what]) for c in cells), NOTHING)
    repeats = len({k for one in calibrations(results, source) for k in one["kinds"]}) - 1 if what == "others" else 1
    return Rate(found.hits / repeats, found.trials / repeats)


def recall(results: Results, source: str, variant: str, victim: str | None = None, family: str | None = None) -> Rate:
    """Visible thefts of a variant that are caught; of one family, visible or not, if it is named."""
    return sum(
        (
            Rate(*variants[variant])
            for one in calibrations(results, source, victim)
            for name, variants in one["thefts"].items()
            if (name == family if family else ATTACKS[name].visible) and variant in variants
        ),
        NOTHING,
    )


def recalled(results: Results, sources: Sequence[str], variant: str) -> str:
    """Share of visible thefts that are caught, with its interval; every theft is tested by two calibrations of each source."""
    found, times = sum((recall(results, s, variant) for s in sources), NOTHING), 2 * len(sources)
    if not found.trials:
        return "–"
    low, high = Rate(found.hits / times, found.trials / times).interval
    return f"{share(found.share)} ({share(low)}–{share(high)})"


def range_of(rates: Sequence[Rate]) -> str:
    """Least and largest share, in per cent."""
    shares = sorted(rate.share for rate in rates if rate.trials)
    return f"{in_percent(shares[0], 1)} – {in_percent(shares[-1], 1)}" if shares else "–"


WORDS = {FIRST: "the simulator", SECOND: "the second generator", BOTH: "both, half and half"}


def overview(results: Results) -> str:
    """False alarms within and across generators, and recall."""
    pairs = {
        "within": [(FIRST, FIRST), (SECOND, SECOND)],
        "**across**": [(FIRST, SECOND), (SECOND, FIRST)],
        "both known": [(BOTH, FIRST), (BOTH, SECOND)],
    }
    rows = []
    for what, chosen in pairs.items():
        for some in ([chosen[0]], [chosen[1]], chosen):
            pooled = [r for s, t in some for r in by_calibration(results, s, t)]
            alone = [r for s, t in some for r in by_calibration(results, s, t, what="unaided")]
            each = [sum((false_alarms(results, s, t, v) for s, t in some), NOTHING) for v in victims(results)]
            low, high = over_fleets(pooled)
            sources = dict.fromkeys(s for s, _ in some)
            caught = (recalled(results, list(sources), v) for v in VARIANTS)
            names = ("pooled", "") if len(some) > 1 else (WORDS[some[0][0]], WORDS[some[0][1]])
            rows.append(
                (
                    what, *names, percent(sum(pooled, NOTHING)), f"{in_percent(low, 1)} – {in_percent(high, 1)}", range_of(each),
                    percent(sum(alone, NOTHING)), *caught,
                )
            )  # fmt: skip
    titles = (
        "", "calibrated on clients of", "tested on clients of", "false alarms", "95 % over calibrations", "lowest – highest victim",
        "false alarms without rehearsed tools", *VARIANTS,
    )  # fmt: skip
    return table(titles, rows)


def by_victim(results: Results) -> str:
    rows = []
    for name, found in victims(results).items():
        rates = (
            percent(false_alarms(results, s, t, name)) for s, t in ((FIRST, FIRST), (SECOND, SECOND), (FIRST, SECOND), (SECOND, FIRST))
        )  # fmt: skip
        caught = (share(sum((recall(results, s, v, name) for s in GENERATORS), NOTHING).share) for v in VARIANTS)
        rows.append((f"`{name}`", found["text"], f"{found['columns']}", *rates, *caught))
    titles = (
        "victim", "input and model", "columns", "simulator → simulator", "second → second", "simulator → second", "second → simulator",
        *VARIANTS,
    )  # fmt: skip
    return table(titles, rows)


def by_kind(results: Results) -> str:
    """Every honest kind: known, rare, missing, and from a calibration on the other generator."""
    rows = []
    for generator, other in ((FIRST, SECOND), (SECOND, FIRST)):
        names = sorted({k for one in calibrations(results, generator) for k in one["honest"][generator]})
        rows += [
            (
                f"`{kind}`", WORDS[generator], percent(of_kind(results, generator, generator, kind)),
                percent(of_kind(results, BOTH, generator, kind)), percent(left_out(results, generator, "few", kind)),
                percent(left_out(results, generator, "none", kind)), percent(of_kind(results, other, generator, kind)),
            )
            for kind in names
        ]  # fmt: skip
    titles = (
        "honest kind", "generator", "known", "known, half as many", "two of the kind calibrate", "none of the kind calibrates",
        "calibrated on the other generator",
    )  # fmt: skip
    return table(titles, rows)


def rare(results: Results) -> str:
    """How many kinds of how many fleets are flagged for the most part, by how many clients of the kind calibrate."""
    rows = []
    for generator in GENERATORS:
        for what, words in (("few", "two"), ("none", "none")):
            cells = [c[what] for one in calibrations(results, generator) for c in one["kinds"].values()]
            shares = np.array([c[0] / c[1] for c in cells if c[1]])
            pooled = left_out(results, generator, what)
            worst = in_percent(float(shares.max()), 0)
            often = [f"{int((shares >= level).sum())} of {len(shares)}" for level in (0.1, 0.5)]
            rows.append((WORDS[generator], words, percent(pooled), *often, worst))
        others = percent(left_out(results, generator, "others"))
        rows.append((WORDS[generator], "none; flagged of all other kinds", others, "–", "–", "–"))
    titles = (
        "generator", "clients of the kind that calibrate", "clients flagged", "cases with a tenth or more flagged",
        "cases with half or more flagged", "highest share of a case",
    )  # fmt: skip
    return table(titles, rows)


def levels(results: Results) -> str:
    """Share of honest clients with a p-value of at most each level, within and across."""
    rows = []
    for source in GENERATORS:
        for tested in GENERATORS:
            below = np.array([one["below"][tested] for one in calibrations(results, source)]).sum(axis=0)
            clients = false_alarms(results, source, tested).trials
            cells = (percent(Rate(int(n), clients)) for n in below)
            rows.append(("within" if source == tested else "**across**", WORDS[source], WORDS[tested], *cells))
    return table(
        ("", "calibrated on clients of", "tested on clients of", *(f"p ≤ {level:g}" for level in LEVELS)), rows
    )


def controls(results: Results) -> str:
    rows = []
    for source in (*GENERATORS, BOTH):
        honest = sum((false_alarms(results, source, t) for t in GENERATORS), NOTHING)
        rows.append(
            (
                WORDS[source], percent(excluded(results, source)), percent(counted(results, source, "itself")),
                percent(counted(results, source, "pretended")), percent(honest),
                percent(recall(results, source, "plain", family="in_domain")),
            )
        )  # fmt: skip
    titles = (
        "calibrated on clients of", "calibration clients excluded", "calibration clients flagged",
        "honest clients labelled as thieves, flagged", "false alarms, clients of both generators",
        "honest rows from a thief's account (`in_domain`), flagged",
    )  # fmt: skip
    return table(titles, rows)


def by_family(results: Results) -> str:
    rows = [
        (f"`{family}`", *(share(recall(results, s, v, None, family).share) for v in VARIANTS for s in GENERATORS))
        for family in results["plan"]["families"]
        if ATTACKS[family].visible
    ]
    titles = ("family", *(f"{v}, calibrated on {WORDS[s]}" for v in VARIANTS for s in GENERATORS))
    return table(titles, rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "carry-overview": overview,
    "carry-levels": levels,
    "carry-victims": by_victim,
    "carry-kinds": by_kind,
    "carry-rare": rare,
    "carry-families": by_family,
    "carry-controls": controls,
}
"""Generated region of docs/detection.md → its table."""
