"""The figures of the campaign benchmark as tables, made from the committed JSON only (`benchmarks/results/campaigns.json`).

Rules of the file:

* Shares of campaigns, groups and organisations carry Clopper–Pearson's interval. A share of accounts carries a bootstrap interval over
  campaigns, because the accounts of one campaign stand and fall together.
* Thefts that content cannot show are left out of all but their own row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation import Rate
from benchmarks.tables import Results, in_percent, percent, share, table

RESULTS = Path(__file__).parent / "results" / "campaigns.json"
HIDDEN = ("in_domain",)
"""Families that content cannot show."""
JOIN_LEVELS = (0.02, 0.05, 0.1, 0.2, 0.3)
"""P-values up to which an account would join a decision; both its own over its lifetime and that among clients of its size are tried."""
RESAMPLES = 1000


def read(path: Path = RESULTS) -> Results:
    found: Results = json.loads(path.read_text(encoding="utf-8"))
    return found


def rows_of(results: Results, hidden: bool = False) -> Iterator[dict[str, Any]]:
    """Campaigns of all worlds, those whose family content can show or the others."""
    for found in results["worlds"].values():
        yield from (row for row in found["campaigns"] if (row["family"] in HIDDEN) is hidden)


def _link(row: dict[str, Any], link: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in row["links"] if one["link"] == link)
    return found


def _campaigns(cells: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    return with_interval(Rate(sum(cell["found"] for _, cell in cells), len(cells)))


def with_interval(rate: Rate) -> str:
    """A share with its 95 % interval."""
    if not rate.trials:
        return "–"
    low, high = rate.interval
    return f"{share(rate.share)} ({share(low)}–{share(high)})"


def by_members(hits: Sequence[float], trials: Sequence[float]) -> str:
    """A share of accounts, with the bootstrap interval over campaigns."""
    counted = np.array([hits, trials], np.float64)
    if not counted.size or not counted[1].sum():
        return "–"
    draws = np.random.default_rng(0).integers(0, counted.shape[1], size=(RESAMPLES, counted.shape[1]))
    sums = counted[:, draws].sum(axis=2)
    known = sums[0][sums[1] > 0] / sums[1][sums[1] > 0]
    low, high = np.quantile(known, [0.025, 0.975])
    return f"{share(counted[0].sum() / counted[1].sum())} ({share(float(low))}–{share(float(high))})"


def _figures(cells: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[str, str, str]:
    """Recall by campaign, by member, and the precision of the members."""
    right = [cell["right"] for _, cell in cells]
    return (
        _campaigns(cells),
        by_members(right, [row["accounts"] for row, _ in cells]),
        by_members(right, [cell["named"] for _, cell in cells]),
    )


def by_link(results: Results) -> str:
    """Scenario of links and cover → recall and precision."""
    lines = []
    rows = list(rows_of(results))
    for link in dict.fromkeys(one["link"] for row in rows for one in row["links"]):
        for cover in results["plan"]["covers"]:
            cells = [(row, _link(row, link)) for row in rows if row["cover"] == cover]
            lines.append((link, in_percent(cover, 0), *_figures(cells)))
    titles = ("what the accounts share", "cover", "campaigns found", "accounts named", "of those named, thieves")
    return table(titles, lines)


def by_shape(results: Results) -> str:
    """Shape and cover → campaigns found over one strong link, accounts found with no link at all."""
    lines = []
    rows = list(rows_of(results))
    for shape in dict.fromkeys(row["shape"] for row in rows):
        for cover in results["plan"]["covers"]:
            mine = [row for row in rows if row["shape"] == shape and row["cover"] == cover]
            strong, none = ([(row, _link(row, link)) for row in mine] for link in ("strong", "none"))
            lines.append((shape, in_percent(cover, 0), _campaigns(strong), *_figures(none)))
    titles = (
        "accounts × queries a day", "cover", "found over one strong link", "found with no link", "accounts named", "thieves among them",
    )  # fmt: skip
    return table(titles, lines)


def by_family(results: Results) -> str:
    """Family → campaigns found over one strong link and with no link, over all shapes, without cover and with half."""
    lines = []
    rows = [*rows_of(results), *rows_of(results, hidden=True)]
    for family in dict.fromkeys(row["family"] for row in rows):
        cells = []
        for link in ("strong", "none"):
            for cover in (0.0, 0.5):
                mine = [(r, _link(r, link)) for r in rows if r["family"] == family and r["cover"] == cover]
                cells.append(_campaigns(mine) if mine else "–")
        lines.append((f"`{family}`", *cells))
    titles = ("family", "one strong link", "…, 50 % cover", "no link", "…, 50 % cover")
    return table(titles, lines)


def times(results: Results) -> str:
    """Shape → when a campaign is found over one strong link: part of its time, stolen queries, fidelity of a copy (medians, quartiles)."""
    lines = []
    rows = list(rows_of(results))
    for shape in dict.fromkeys(row["shape"] for row in rows):
        for cover in results["plan"]["covers"]:
            at = np.array([r["at"] for r in rows if r["shape"] == shape and r["cover"] == cover and r["at"]])
            if len(at):
                low, middle, high = np.nanquantile(at, [0.25, 0.5, 0.75], axis=0)
                figures = [
                    f"{middle[k]:{f}} ({low[k]:{f}}–{high[k]:{f}})"
                    for k, f in ((0, ".3f"), (1, ",.0f"), (2, ".2f"), (3, ".2f"))
                ]
                lines.append((shape, in_percent(cover, 0), str(len(at)), *figures))
    return table(
        (
            "accounts × queries a day",
            "cover",
            "found",
            "part of its time",
            "stolen queries",
            "fidelity of a copy by then",
            "at the end",
        ),
        lines,
    )


def split(results: Results) -> str:
    """Family → split thefts found, of those that are flagged unsplit."""
    lines: list[tuple[str, ...]] = []
    total = {variant: Rate(0, 0) for variant in ("sybil10", "sybil50", "sybil10-handover")}
    for family in results["plan"]["split"]:
        cells = []
        for variant in total:
            counts = np.sum([w["splits"][family][variant] for w in results["worlds"].values()], axis=0)
            rate = Rate(int(counts[2]), int(counts[1]))
            total[variant] += rate
            cells.append(f"{rate.hits:.0f} of {rate.trials:.0f}")
        lines.append((f"`{family}`", *cells))
    lines.append(("all", *(with_interval(rate) for rate in total.values())))
    return table(("family", *(f"`{variant}`" for variant in total)), lines)


def accused(results: Results) -> str:
    """Honest groups and organisations → share accused over a link, and found in the fleet with nothing that ties them."""
    lines: list[tuple[str, ...]] = []
    for name in next(iter(results["worlds"].values()))["groups"]:
        counts = np.sum([w["groups"][name] for w in results["worlds"].values()], axis=0)
        size, make_up = name.split()
        kind = "any kinds" if make_up == "mixed" else "one kind"
        lines.append((f"{size} of the fleet, {kind}", str(counts[1]), percent(Rate(*counts.tolist())), "–", "–"))
    everything = np.zeros(5, np.int64)
    for kind in results["plan"]["kinds"]:
        counts = np.sum([w["organisations"][kind] for w in results["worlds"].values()], axis=0)
        everything += counts
        lines.append((kind, *_organisation(counts.tolist())))
    lines.append(("all organisations", *_organisation(everything.tolist())))
    return table(("honest accounts", "groups", "accused", "accused with no link", "accounts named"), lines)


def _organisation(counts: Sequence[int]) -> tuple[str, ...]:
    over_link, by_content, groups, named, accounts = counts
    shown = (percent(Rate(count, groups)) for count in (over_link, by_content))
    return (str(groups), *shown, in_percent(named / accounts, 2))


def joining(results: Results) -> str:
    """P-value up to which an account joins a decision → thieves and honest accounts that would, by two p-values."""
    fleets = [w["fleet"] for w in results["worlds"].values()]
    lines = []
    for i, level in enumerate(JOIN_LEVELS):
        cells = []
        for which in (1, 0):
            for cover in (0.0, 0.5):
                shares = [row["joining"][which][i] for row in rows_of(results) if row["cover"] == cover]
                cells.append(by_members(shares, [1.0] * len(shares)))
        honest = in_percent(float(np.mean([f["below"][i] for f in fleets])), 1)
        lines.append((f"{level}", *cells, honest))
    titles = (
        "p-value of at most", "thieves, by the lifetime", "…, 50 % cover", "thieves, by the size", "…, 50 % cover", "honest, by the size",
    )  # fmt: skip
    return table(titles, lines)


def worlds(results: Results) -> str:
    """What was measured: the worlds of the file, and those of the plan that are missing."""
    lines: list[tuple[str, ...]] = []
    for victim, seed in results["plan"]["worlds"]:
        found = results["worlds"].get(f"{victim} {seed}")
        if found is None:
            lines.append((f"`{victim}`, seed {seed}", "not measured", "", "", ""))
            continue
        thefts = sum(len(variants) for variants in found["splits"].values())
        groups = sum(cell[2] for cell in found["organisations"].values())
        counts = (found["fleet"]["accounts"], len(found["campaigns"]), thefts, groups)
        lines.append((f"`{victim}`, seed {seed}", *(f"{n:,}" for n in counts)))
    return table(("world", "honest accounts", "campaigns", "split thefts", "organisations"), lines)


def bounds(results: Results) -> str:
    """How often the bound on honest accounts held, and what an honest fleet shows."""
    kept = [_link(row, "none")["bound"] for row in rows_of(results) if _link(row, "none")["bound"] is not None]
    fleets = [w["fleet"] for w in results["worlds"].values()]
    lines = [
        ("campaigns found with no link in which at most the stated number were honest", with_interval(Rate(sum(kept), len(kept)))),
        ("fleets without a campaign in which a cell was told of", with_interval(Rate(sum(f["cells"] > 0 for f in fleets), len(fleets)))),
        *(
            (f"honest accounts with a p-value of at most {level}", in_percent(float(np.mean([f["below"][i] for f in fleets])), 1))
            for i, level in enumerate(JOIN_LEVELS)
        ),
    ]  # fmt: skip
    return table(("of campaigns that nothing ties", "share"), lines)


def by_calibration(results: Results) -> str:
    """Calibration and cover → campaigns found over one strong link and with no link, and how often the bound held."""
    lines = []
    for clients, rows in _calibrations(results, "campaigns"):
        for cover in dict.fromkeys(row["cover"] for w in _measured_twice(results) for row in w["larger"]["campaigns"]):
            mine = [row for row in rows if row["cover"] == cover and row["family"] not in HIDDEN]
            strong, none = ([(row, _link(row, link)) for row in mine] for link in ("strong", "none"))
            kept = [cell["bound"] for _, cell in none if cell["bound"] is not None]
            figures = (_campaigns(strong), *_figures(none), with_interval(Rate(sum(kept), len(kept))))
            lines.append((clients, in_percent(cover, 0), *figures))
    titles = (
        "calibration clients", "cover", "found over one strong link", "found with no link", "accounts named", "thieves among them",
        "bound held",
    )  # fmt: skip
    return table(titles, lines)


def accused_by_calibration(results: Results) -> str:
    """Calibration → honest organisations accused over a link and with none, and fleets without a campaign that are told of."""
    lines: list[tuple[str, ...]] = []
    worlds_found = _measured_twice(results)
    told = [[w[where]["cells"] > 0 for w in worlds_found] for where in ("fleet", "larger")]
    for (clients, found), cells in zip(_calibrations(results, "organisations"), told, strict=True):
        counts = np.sum([cell for kinds in found for cell in kinds.values()], axis=0).tolist()
        lines.append((clients, *_organisation(counts), with_interval(Rate(sum(cells), len(cells)))))
    titles = (
        "calibration clients", "organisations", "accused", "accused with no link", "accounts named", "fleets without a campaign told of",
    )  # fmt: skip
    return table(titles, lines)


def _measured_twice(results: Results) -> list[dict[str, Any]]:
    return [w for w in results["worlds"].values() if "larger" in w]


def _calibrations(results: Results, what: str) -> Iterator[tuple[str, list[Any]]]:
    """How many clients calibrate, as the page says it, and the rows or organisations of the worlds that have both calibrations."""
    both = _measured_twice(results)
    clients = sorted(w["larger"]["clients"] for w in both)
    for name, some in (
        (f"{2 * results['plan']['calibration']} without one kind", both),
        (f"{clients[len(clients) // 2]:,}", [w["larger"] for w in both]),
    ):
        yield name, [row for w in some for row in w[what]] if what == "campaigns" else [w[what] for w in some]


TABLES: dict[str, Callable[[Results], str]] = {
    "bench-campaign-worlds": worlds,
    "bench-campaign-links": by_link,
    "bench-campaign-shapes": by_shape,
    "bench-campaign-families": by_family,
    "bench-campaign-times": times,
    "bench-campaign-bounds": bounds,
    "bench-campaign-joining": joining,
    "bench-campaign-calibrations": by_calibration,
    "bench-accused-calibrations": accused_by_calibration,
    "bench-split": split,
    "bench-accused": accused,
}
"""Generated region of docs/detection.md → its table."""
