"""The figures of the benchmark of weak pairs as tables, made from the committed JSON only (`benchmarks/results/weak_pairs.json`).

Rules of the file:

* The rule was chosen on one victim (`CHOSEN_ON`). Its figures stand in a table of their own.
* Shares of campaigns, fleets and organisations carry Clopper–Pearson's interval, shares of accounts a bootstrap interval over campaigns.
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
CHOSEN_ON = "affairs"
"""The victim on whose worlds the rule was chosen."""


def read(path: Path = RESULTS) -> Results:
    found: Results = json.loads(path.read_text(encoding="utf-8"))
    return found


def worlds_of(results: Mapping[str, Any], chosen: bool = False) -> list[Mapping[str, Any]]:
    """Worlds of other victims than that the rule was chosen on, or those it was chosen on."""
    return [found for name, found in results["worlds"].items() if (name.split()[0] == CHOSEN_ON) is chosen]


def by_scenario(results: Mapping[str, Any], chosen: bool = False) -> str:
    """Scenario and cover → campaigns and accounts found by single links, and with pairs."""
    rows = [row for world in worlds_of(results, chosen) for row in world["campaigns"]]
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
    lines = []
    for title, chosen in (("other victims", False), (f"`{CHOSEN_ON}`, on which the rule was chosen", True)):
        worlds = worlds_of(results, chosen)
        if not worlds:
            continue
        fleets = np.concatenate([world["fleets"] for world in worlds])
        dealt = [named for world in worlds for _, named in world["control"]]
        mixed = [row["shuffled"] for world in worlds for row in world["campaigns"]]
        single, pairs, groups = np.sum([of for w in worlds for of in w["organisations"].values()], axis=0).tolist()
        figures = (
            ("honest fleets in which a pair proposes a group", _share(fleets[:, 0])),
            ("control: … without the correction for the number of pairs", _share(fleets[:, 1])),
            ("control: a software and a start dealt to honest accounts: an account is named", _share(dealt)),
            ("control: links shuffled in a fleet with a campaign: a pair proposes a group", _share(mixed)),
            ("organisations accused over their address", f"{with_interval(Rate(single, groups))}, {groups}"),
            (
                "… or over a pair, where each tool has a software and all begin on one day",
                f"{with_interval(Rate(pairs, groups))}, {groups}",
            ),
        )  # fmt: skip
        lines += [(title, *one) for one in figures]
    return table(("worlds of", "honest accounts and weak pairs", "share, of how many"), lines)


def _share(counts: Any) -> str:
    """The share of counts above 0, and how many counts there are."""
    return f"{with_interval(Rate(sum(n > 0 for n in counts), len(counts)))}, {len(counts)}"


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "bench-weak-pairs": by_scenario,
    "bench-weak-pairs-chosen": lambda results: by_scenario(results, chosen=True),
    "bench-weak-pairs-errors": errors,
}
"""Generated region of docs/detection.md → its table."""
