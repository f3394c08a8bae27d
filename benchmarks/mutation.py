"""The mutation score: of small faults put into the code, how many make a test fail, by module.

mutmut leaves a file for each module, `mutants/PATH.meta`, with the exit status of the tests for every mutant. A mutant that no test
notices *survived*; one that never ended is noticed. Mutants that were not tried are not counted.

Rules: only what was tried counts, and the table says how much that is. A module of which nothing was tried keeps its stored row.

    python -m benchmarks.mutation        reads mutants/, writes benchmarks/results/mutation.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MUTANTS, RESULTS = ROOT / "mutants", ROOT / "benchmarks" / "results" / "mutation.json"
SURVIVED = 0


def counted(statuses: Mapping[str, int | None]) -> dict[str, int]:
    """Mutants of a module, how many were tried, and how many of these a test noticed. statuses: of the tests, None: not tried."""
    tried = [status for status in statuses.values() if status is not None]
    return {"mutants": len(statuses), "tried": len(tried), "noticed": sum(status != SURVIVED for status in tried)}


def main() -> None:
    rows: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for meta in sorted(MUTANTS.rglob("*.meta")):
        found = counted(json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"])
        if found["tried"]:
            rows[str(meta.relative_to(MUTANTS).with_suffix(""))] = found
    RESULTS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for module, row in rows.items():
        print(f"{module}: {row['noticed']} of {row['tried']} noticed, {row['mutants']} in all")


if __name__ == "__main__":
    main()
