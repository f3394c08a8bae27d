"""The figures of the benchmark of weak pairs as tables, made from the committed JSON only (`benchmarks/results/weak_pairs.json`).

Rule: shares of campaigns, fleets and organisations carry Clopper–Pearson's interval, shares of accounts a bootstrap interval over
campaigns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.campaign_tables import by_members, with_interval
from benchmarks.evaluation import Rate
from benchmarks.tables import Results, in_percent, table

RESULTS = Path(__file__).parent / "results" / "weak_pairs.json"


def read(path: Path = RESULTS) -> Results:
    found: Results = json.loads(path.read_text(encoding="utf-8"))
    return found


def by_scenario(results: Mapping[str, Any]) -> str:
    """Scenario and cover → campaigns and accounts found by single links, and with pairs."""
    rows = [row for world in results["worlds"].values() for row in world["campaigns"]]
    lines = []
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        for cover in sorted({row["cover"] for row in rows}):
            mine = [row for row in rows if (row["scenario"], row["cover"]) == (scenario, cover)]
            found = (with_interval(Rate(sum(r[k][1] > 0 for r in mine), len(mine))) for k in ("single", "pairs"))
            members = (by_members([r[k][1] for r in mine], [r["accounts"] for r in mine]) for k in ("single", "pairs"))
            right = by_members([r["pairs"][1] for r in mine], [r["pairs"][0] for r in mine])
            lines.append((scenario, in_percent(cover, 0), str(len(mine)), *found, *members, right))
    titles = (
        "what the accounts share", "cover", "campaigns", "found by single links", "with pairs", "accounts named by single links",
        "with pairs", "of those, thieves",
    )  # fmt: skip
    return table(titles, lines)


def errors(results: Mapping[str, Any]) -> str:
    """Honest fleets and organisations, and the three controls."""
    worlds = list(results["worlds"].values())
    fleets = np.concatenate([world["fleets"] for world in worlds])
    dealt = [named for world in worlds for _, named in world["control"]]
    mixed = [row["shuffled"] for world in worlds for row in world["campaigns"]]
    single, pairs, groups = np.sum([of for world in worlds for of in world["organisations"].values()], axis=0).tolist()
    lines = [
        ("honest fleets in which a pair proposes a group", _share(fleets[:, 0])),
        ("organisations accused over their address", f"{with_interval(Rate(single, groups))}, {groups}"),
        ("… or over a pair", f"{with_interval(Rate(pairs, groups))}, {groups}"),
        ("control: honest fleets, without the correction for the number of pairs", _share(fleets[:, 1])),
        ("control: a software and a start dealt to honest accounts, an account is named", _share(dealt)),
        ("control: a campaign in the fleet, but its links shuffled, a pair proposes a group", _share(mixed)),
    ]  # fmt: skip
    return table(("honest accounts, and controls", "share, of how many"), lines)


def _share(counts: Any) -> str:
    """The share of counts above 0, and how many counts there are."""
    return f"{with_interval(Rate(sum(n > 0 for n in counts), len(counts)))}, {len(counts)}"


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "bench-weak-pairs": by_scenario,
    "bench-weak-pairs-errors": errors,
}
"""Generated region of docs/detection.md → its table."""
