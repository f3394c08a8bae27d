"""What ingest and detect show of themselves: scores by model, who cannot be attributed, how late the newest query is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from support import victims

from consumers.detect import loop as detect
from consumers.detect.step import Detect
from consumers.ingest import loop as ingest
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from consumers.telemetry.metrics import Metrics
from detector.baseline import Baseline
from detector.policy import Policy


class Behind:
    """A log of which records are known to wait."""

    def __init__(self, log: FileLog, waiting: int) -> None:
        self._log, self.waiting = log, waiting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def lag(self) -> int:
        return self.waiting


def test_scores_are_counted_and_who_names_nobody_too(tmp_path: Path, baseline: Baseline, secrets: Secrets) -> None:
    rows = victims.items(60, np.random.default_rng(3))
    asked_s = int(time.time()) - 90
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(asked_s))
    lines = [victims.line(row, client_id=f"acct-{i % 3}", timestamp=now) for i, row in enumerate(rows)]
    nobody = lines[0].replace(b'"client_id"', b'"caller"')
    path = victims.write_lines(tmp_path / "log.jsonl", [*lines, nobody, nobody, b"{"])
    store, shown = EmbeddedStore(tmp_path / "s.sqlite"), Metrics()
    log: Any = Behind(FileLog([path]), 7)
    runner = ingest.IngestLoop(log, store, Ingest({victims.MODEL: baseline}, secrets), shown)
    ingest.run(runner, lambda: False, until_end=True, poll_timeout_s=0.0)
    assert shown.value("querywarden_events_unattributed_total") == 2
    late_s = shown.value("querywarden_ingest_lag_seconds")
    assert late_s is not None
    assert 89 <= late_s < 90 + 600
    log.waiting = 0
    runner.turn(0.0)
    assert shown.value("querywarden_ingest_lag_seconds") == 0, "nothing waits: nothing is late"
    judging = detect.Runner(store, Detect({victims.MODEL: baseline}, secrets, Policy()), metrics=shown)
    detect.run(judging, lambda: False, until_idle=True)
    assert shown.value("querywarden_score_count", model=victims.MODEL) == 3
    assert shown.value("querywarden_score_bucket", model=victims.MODEL, le="1.0") == 3
    store.close()
