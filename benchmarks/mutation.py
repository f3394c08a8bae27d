"""The mutation score: of small faults put into the code, how many make a test fail, by module.

mutmut leaves a file for each module, `mutants/PATH.meta`, with the exit status of the tests for every mutant. A mutant that no test
notices *survived*, and so did one that no test reaches; one that never ended is noticed. A whole run takes hours, so a module may be
tried in part: a random *sample*, whose score has an interval.

Rules:

* A sample is chosen before its first mutant is tried: the names with the smallest keyed hashes, the seed being the key. A smaller
  sample is the beginning of a larger one. Mutants that were tried by chance, such as the fastest, are no sample and are not counted.
* A module is published when its whole sample was tried, or all of it; otherwise it keeps its stored row.
* A survivor stays in the count, whatever is said of it. Why it changes nothing, or that it is a gap, is written by hand beside its name
  (`survived` in the results) and is kept while the mutant survives.

    python -m benchmarks.mutation --names --sample 80 MODULE...    prints the mutants of the sample, for mutmut
    python -m benchmarks.mutation --sample 80 MODULE...            reads mutants/, writes benchmarks/results/mutation.json
    python -m benchmarks.mutation                                  the same of all mutants
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[1]
MUTANTS, RESULTS = ROOT / "mutants", ROOT / "benchmarks" / "results" / "mutation.json"
UNNOTICED = frozenset({0, 5, 33, 34})
"""Exit statuses of mutants that no test noticed: passed, no test found, no test reaches it, skipped."""
SEED = 1
UNEXPLAINED = ""


def chosen(names: Iterable[str], size: int, seed: int = SEED) -> list[str]:
    """The `size` names with the smallest hashes under the seed.

    >>> chosen("abcdef", 3) == chosen("fedcba", 4)[:3], chosen("abcdef", 3, seed=2) == chosen("abcdef", 3)
    (True, False)
    """
    key = seed.to_bytes(8, "big")
    return sorted(names, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8, key=key).digest())[:size]


def counted(statuses: Mapping[str, int | None]) -> dict[str, int]:
    """Mutants of a module, how many were tried, and how many of these a test noticed. statuses: of the tests, None: not tried."""
    tried = [status for status in statuses.values() if status is not None]
    return {"mutants": len(statuses), "tried": len(tried), "noticed": sum(status not in UNNOTICED for status in tried)}


def row_of(
    statuses: Mapping[str, int | None], sample: int | None, seed: int, before: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What is published of a module; None when its sample, or all of it, was not tried to the end.

    sample  how many mutants; None for all
    before  the stored row, of which the reasons of survivors are kept
    """
    names = chosen(statuses, sample if sample is not None else len(statuses), seed)
    tried = {name: statuses[name] for name in names}
    if None in tried.values():
        return None
    known = before.get("survived", {})
    left = sorted(name for name, status in tried.items() if status in UNNOTICED)
    whole = len(names) == len(statuses)
    return {
        **counted(tried),
        "mutants": len(statuses),
        "seed": None if whole else seed,
        "survived": {name: known.get(name, UNEXPLAINED) for name in left},
    }


def interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """95 % interval of a module's score: Clopper and Pearson's, too wide for a sample without repetitions; of a whole run its score.

    >>> interval({"mutants": 50, "tried": 50, "noticed": 48, "seed": None})
    (0.96, 0.96)
    """
    if row["seed"] is None:
        score = row["noticed"] / row["tried"]
        return score, score
    found = binomtest(row["noticed"], row["tried"]).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def statuses_of(modules: Collection[str]) -> dict[str, dict[str, int | None]]:
    """Module → mutant → exit status, of the modules named, or of all. A module: its path, or the end of it without ``.py``."""
    found: dict[str, dict[str, int | None]] = {}
    for meta in sorted(MUTANTS.rglob("*.meta")):
        path = str(meta.relative_to(MUTANTS).with_suffix(""))
        if not modules or any(path == one or path.endswith(f"/{one}.py") for one in modules):
            found[path] = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="The mutation score, by module.")
    parser.add_argument("modules", nargs="*", help="auth, identities, ...; default: all")
    parser.add_argument("--sample", type=int, help="mutants of each module; default: all of them")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--names", action="store_true", help="print the mutants chosen and not tried yet, and end")
    options = parser.parse_args()
    modules = statuses_of(options.modules)
    if options.names:
        for statuses in modules.values():
            names = chosen(statuses, options.sample or len(statuses), options.seed)
            print("\n".join(name for name in names if statuses[name] is None))
        return
    rows: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for module, statuses in modules.items():
        if row := row_of(statuses, options.sample, options.seed, rows.get(module, {})):
            rows[module] = row
            low, high = interval(row)
            print(
                f"{module}: {row['noticed']} of {row['tried']} noticed ({low:.0%} to {high:.0%}), {row['mutants']} in all"
            )
            print("\n".join(f"  survived: {name}" for name in row["survived"]))
    RESULTS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
