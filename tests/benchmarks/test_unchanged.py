"""Two commits that judge a log the same are told from two that do not."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

from support import victims

from benchmarks.unchanged import ROOT, differences, results_of, spoilt


def test_one_changed_count_of_one_profile_is_found(tmp_path: Path) -> None:
    """Without a change there is no difference; the profiles are read although the service would seal them."""
    logs = {
        "reference": victims.reference_lines(victims.WIDTH),
        "calibration": [
            victims.line(row, client_id=f"c-{i % 24}") for i, row in enumerate(victims.reference_rows()[:240])
        ],
        "test": [victims.line(row, client_id=f"c-{i % 3}") for i, row in enumerate(victims.reference_rows()[:60])],
    }
    for part, lines in logs.items():
        (tmp_path / f"{victims.MODEL}.{part}.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    results = results_of(ROOT, tmp_path, victims.MODEL, tmp_path, tmp_path / "state")
    assert len(results.scores) == len(results.profiles) == 3
    assert list(differences(results, results)) == []
    more = replace(results, scores=[json.dumps(json.loads(line) | {"more": 1}) for line in results.scores])
    assert list(differences(results, more)) == ["scores: field more is in one of them only, 3 times"]
    assert list(differences(results, spoilt(results))) == ["profiles: field queries differs in 1 spans"]
