"""The figures of the detection benchmark as tables: Markdown for docs/detection.md, and a summary for the terminal.

Rules of the file:

* Tables are made from the committed JSON only (`benchmarks/results/detection.json`); `docs/generate.py` puts them into the page.
* Shares are pooled over victims and splits. An interval is Clopper–Pearson's over distinct honest clients, each of which was
  tested in several splits.
* A cell that no method sees is printed, not dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation import Rate, median_or_none
from benchmarks.foreign import FOREIGN
from detector.simulation.attacks import ATTACKS

RESULTS = Path(__file__).parent / "results" / "detection.json"
OURS, CONTROL = "QueryWarden", "control"
SPOILT, TRUSTING = "QueryWarden, 5 % thieves in calibration", "… without the bound of influence"
UNEXPECTED, UNAIDED = "… where the kind held out is not rehearsed either", "… where no tool stands in"
OURS_OTHERWISE = (SPOILT, TRUSTING, UNEXPECTED, UNAIDED)
"""Ours under other calibrations, for comparison."""
BLIND = 0.2
"""A cell is called unseen when the best method catches less than this share."""
Results = dict[str, Any]


def read(path: Path = RESULTS) -> Results:
    found: Results = json.loads(path.read_text(encoding="utf-8"))
    return found


# ------------------------------------------------------------------------------------------------------ pooling


def methods(results: Results) -> list[str]:
    """Ours first, the control last."""
    names = dict.fromkeys(m for v in results["victims"].values() for m in v["methods"])
    return [OURS, *(n for n in names if n not in (OURS, CONTROL, *OURS_OTHERWISE)), CONTROL]


def victims(results: Results) -> list[str]:
    return list(results["victims"])


def honest(
    results: Results,
    method: str,
    rule: str,
    kind: str | None = None,
    seen: bool | None = None,
    only: Sequence[str] | None = None,
) -> Rate:
    """False alarms: of one kind or all; seen: whether the kind was in the calibration. A life tested in r splits counts 1 / r each time."""
    held = results["plan"]["held_out"]
    repeats = max(1.0, len(held) / 2) if seen is not False else 1.0
    total = Rate(0.0, 0.0)
    for name in only or victims(results):
        cells = results["victims"][name]["methods"].get(method, {}).get(rule, {}).get("honest", {})
        for known, counts in cells.items():
            for split, (flagged, tested) in enumerate(counts):
                if kind in (None, known) and (seen is None or seen == (held[split] != known)):
                    total += Rate(flagged / repeats, tested / repeats)
    return total


def caught(
    results: Results, method: str, rule: str, family: str, variant: str, only: Sequence[str] | None = None
) -> Rate:
    """Thefts caught, over victims and splits."""
    total = Rate(0.0, 0.0)
    for name in only or victims(results):
        cells = results["victims"][name]["methods"].get(method, {}).get(rule, {}).get("thefts", {})
        for hit, runs in cells.get(family, {}).get(variant, {}).get("caught", []):
            total += Rate(hit, runs)
    return total


def mean_caught(results: Results, method: str, rule: str, variant: str) -> float:
    """Mean over the families that content can show."""
    shares = [caught(results, method, rule, f, variant).share for f in families(results) if visible(f)]
    known = [share for share in shares if not np.isnan(share)]
    return float(np.mean(known)) if known else float("nan")


def families(results: Results) -> list[str]:
    return [
        f for f in (*results["plan"]["families"], *results["plan"].get("others", ())) if f in ATTACKS or f in FOREIGN
    ]


def visible(family: str) -> bool:
    """Whether content can show a theft of this family."""
    return family in FOREIGN or ATTACKS[family].visible


def variants(results: Results) -> list[str]:
    return [*results["plan"]["thefts"], *results["plan"].get("retold", ())]


# ------------------------------------------------------------------------------------------------------- tables


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}".replace("0.", ".", 1) if value < 0.995 else "1.0"


def in_percent(value: float, places: int) -> str:
    return f"{value:.{places}%}".replace("%", " %")


def percent(rate: Rate) -> str:
    """A false-alarm share with its 95 % interval."""
    if not rate.trials:
        return "–"
    low, high = rate.interval
    return f"{in_percent(rate.share, 2)} ({in_percent(low, 1)} – {in_percent(high, 1)})"


def setup(results: Results) -> str:
    rows = []
    for name, found in results["victims"].items():
        f = found["facts"]
        rows.append(
            (
                f"`{name}`",
                f["text"],
                *(
                    f"{f[k]:,}"
                    for k in (
                        "columns",
                        "classes",
                        "reference",
                        "honest_clients",
                        "calibration_clients",
                        "queries",
                    )
                ),
                in_percent(f["honest_above_2000_distinct"], 0),
            )
        )
    titles = (
        "victim", "what", "columns", "classes", "reference rows", "honest clients", "of them calibrate", "queries", "above 2,000 distinct",
    )  # fmt: skip
    return table(titles, rows)


def overview(results: Results) -> str:
    """Every method at the equal budget and at its published threshold."""
    rows = []
    for method in methods(results):
        networks = [v for v in victims(results) if method in results["victims"][v]["methods"]]
        name = method if len(networks) == len(victims(results)) else f"{method} ({len(networks)} networks)"
        rows.append(
            (
                f"**{name}**" if method == OURS else name,
                percent(honest(results, method, "equal")),
                *(percent(honest(results, method, "equal", seen=seen)) for seen in (True, False)),
                *(share(mean_caught(results, method, "equal", v)) for v in variants(results)),
                percent(honest(results, method, "published")),
                share(mean_caught(results, method, "published", "plain")),
            )
        )
    titles = (
        "method",
        "false alarms",
        "of known kinds",
        "of the kind held out",
        *variants(results),
        "false alarms as published",
        "plain as published",
    )
    return table(titles, rows)


VARIANT_WORDS = {
    "plain": "no attempt to hide",
    "drip50": "half of its queries are honest cover",
    "drip10": "nine of ten queries are honest cover",
    "slow": "spread over the whole two weeks of the log",
}


def promise(results: Results) -> str:
    """Ours in short, for the front page: what share of thefts is caught, by how they are spread, and what it costs."""
    rows = [
        (VARIANT_WORDS.get(v, v), share(mean_caught(results, OURS, "equal", v)))
        for v in sorted(variants(results), key=list(VARIANT_WORDS).index)
    ]
    alarms = honest(results, OURS, "equal")
    return table(
        ("thefts that content can show", "share caught"), [*rows, ("honest clients ever flagged", percent(alarms))]
    )


def kinds(results: Results) -> str:
    """False alarms of ours by honest kind."""
    names = sorted({k for v in results["victims"].values() for k in v["methods"][OURS]["equal"]["honest"]})
    rows = []
    for kind in (*names, None):
        rates = [honest(results, OURS, "equal", kind, seen) for seen in (None, False)]
        rows.append((f"`{kind}`" if kind else "all", *map(percent, rates)))
    return table(("honest kind", "false alarms", "where it was held out of calibration"), rows)


def by_victim(results: Results) -> str:
    rows = []
    for name in victims(results):
        only = [name]
        plain = [caught(results, OURS, "equal", f, "plain", only).share for f in families(results) if visible(f)]
        rest = {
            m: np.nanmean(
                [caught(results, m, "equal", f, "plain", only).share for f in families(results) if visible(f)]
            )
            for m in methods(results)[1:-1]
            if m in results["victims"][name]["methods"]
        }
        best = max(rest, key=lambda m: rest[m])
        rows.append(
            (
                f"`{name}`",
                percent(honest(results, OURS, "equal", only=only)),
                share(float(np.mean(plain))),
                f"{share(float(rest[best]))} ({best})",
            )
        )
    return table(("victim", "false alarms", "plain, ours", "plain, best other"), rows)


def by_family(results: Results, variant: str = "plain") -> str:
    """Share of runs caught, family × method; the best of a row in bold."""
    names = methods(results)
    rows = []
    for family in families(results):
        shares = [caught(results, m, "equal", family, variant).share for m in names]
        best = np.nanmax(shares)
        cells = [f"**{share(s)}**" if s == best and best > 0 else share(s) for s in shares]
        rows.append((f"`{family}`", *cells))
    return table(("family", *names), rows)


def at_alarm(results: Results) -> str:
    """Ours, plain: caught, attack queries and fidelity at the alarm."""
    rows = []
    for family in families(results):
        queries, pairs = [], []
        for found in results["victims"].values():
            queries += (
                found["methods"][OURS]["equal"]["thefts"].get(family, {}).get("plain", {"queries": []})["queries"]
            )
            pairs += found["fidelity"].get(family, [])
        other = [caught(results, OURS, "equal", family, v).share for v in variants(results)]
        at = median_or_none(queries)
        rows.append(
            (
                f"`{family}`",
                *(share(s) for s in other),
                "–" if at is None else f"{at:,.0f}",
                share(median_or_none(p[0] for p in pairs) or float("nan")),
                share(median_or_none(p[1] for p in pairs) or float("nan")),
            )
        )
    titles = (
        "family",
        *variants(results),
        "median theft queries at the alarm",
        "fidelity at the alarm",
        "fidelity at the end",
    )
    return table(titles, rows)


def unseen(results: Results) -> str:
    """Cells in which no method catches one theft in five at the equal budget."""
    rows = []
    for family in families(results):
        for variant in variants(results):
            blind = []
            for name in victims(results):
                best = max(
                    (caught(results, m, "equal", family, variant, [name]).share, m)
                    for m in methods(results)
                    if m in results["victims"][name]["methods"]
                )
                if best[0] < BLIND:
                    blind.append(name)
            if blind:
                everywhere = len(blind) == len(victims(results))
                where = "every victim" if everywhere else ", ".join(f"`{name}`" for name in blind)
                rows.append((f"`{family}`", variant, where))
    return table(("family", "variant", "nobody sees it on"), rows)


def leaks(results: Results) -> str:
    found = results["leak"]
    rows = [(n, f"{found[n]['auroc']:.2f}", share(found[n]["detection"])) for n in found if isinstance(found[n], dict)]
    return table(("boosted trees on", "AUROC", "plain thefts caught at 1 % false alarms"), rows)


def contamination(results: Results) -> str:
    """Ours with a clean calibration, and with thieves among the clients that were presumed honest."""
    return _calibrations(results, (OURS, SPOILT, TRUSTING), {"false alarms": None, "of known kinds": True})


def stand_ins(results: Results) -> str:
    """Ours with honest tools standing in for what the traffic lacks, without the kind held out among them, and without any."""
    shown = {"false alarms": None, "of known kinds": True, "of the kind held out": False}
    return _calibrations(results, (OURS, UNEXPECTED, UNAIDED), shown)


def _calibrations(results: Results, chosen: Sequence[str], shown: dict[str, bool | None]) -> str:
    """A row a calibration of ours; shown: title → whether the honest kind was in the calibration, None for all."""
    rows = []
    for method in chosen:
        rates = (percent(honest(results, method, "equal", seen=seen)) for seen in shown.values())
        rows.append((method, *rates, *(share(mean_caught(results, method, "equal", v)) for v in variants(results))))
    return table(("calibration", *shown, *variants(results)), rows)


def wall(results: Results) -> str:
    """What it would cost to ask for more odd queries before anybody is flagged."""
    chosen = variants(results)
    total: dict[str, dict[str, Rate]] = {}
    for found in results["victims"].values():
        for one in found["floors"]:
            for floor, groups in one.items():
                row = total.setdefault(floor, {})
                for name, (flagged, clients) in groups.items():
                    row[name] = row.get(name, Rate(0.0, 0.0)) + Rate(flagged, clients)
    rows = [
        (floor, *(in_percent(row[g].share, 2) for g in ("known", "held out")), *(share(row[v].share) for v in chosen))
        for floor, row in total.items()
    ]  # fmt: skip
    return table(("odd queries asked for", "false alarms, known kinds", "the kind held out", *chosen), rows)


def without_say(results: Results) -> tuple[int, int, int]:
    """Over all contaminated calibrations: thieves left out, honest clients left out, thieves there were."""
    cells = np.array([row for found in results["victims"].values() for row in found["left_out"]])
    thieves, harmless, there = cells.sum(axis=0).tolist()
    return thieves, harmless, there


TABLES: dict[str, Callable[[Results], str]] = {
    "bench-alarm": at_alarm,
    "bench-contamination": contamination,
    "bench-stand-ins": stand_ins,
    "bench-wall": wall,
    "bench-families": by_family,
    "bench-kinds": kinds,
    "bench-leak": leaks,
    "bench-overview": overview,
    "bench-promise": promise,
    "bench-unseen": unseen,
    "bench-victims": by_victim,
    "bench-setup": setup,
}
"""Generated region of docs/detection.md → its table."""


def summary(results: Results) -> str:
    """For the terminal: the tables in plain text."""
    wanted = (
        "bench-overview", "bench-stand-ins", "bench-contamination", "bench-families", "bench-victims", "bench-kinds", "bench-alarm",
        "bench-wall", "bench-leak",
    )  # fmt: skip
    parts = [f"{name.removeprefix('bench-')}\n{TABLES[name](results)}" for name in wanted]
    return "\n".join(parts) + f"\n{results['seconds']} s"
