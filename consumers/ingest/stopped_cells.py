"""Stopped cells: a log cell that cannot go on stops alone, states the reason, and waits for an operator.

Rules:
* A stop belongs to one cell. The other cells of the process, detect and serve go on.
* Nothing is guessed and nothing is written: a process that restarts finds the same log and the same store, and stops the cell again.
* A cell goes on when an operator gave it a new generation (`querywarden rebuild --cell`). Until then it is read and never claimed, so
  that the store does not count claims without a commit.
* The reasons are a closed set. The text beside a reason is for people and names no client.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from consumers.errors import CorruptState, LogRecreated, LogTruncated, StoppedCells, Unavailable
from consumers.store import ProfileStore
from consumers.telemetry.metrics import Metrics

log = logging.getLogger("querywarden.ingest")

Reason = Literal["log_truncated", "log_recreated", "cell_corrupt"]

STOPPING = (LogTruncated, CorruptState)
"""Errors that stop the cell that they came from."""
METRIC = "querywarden_cell_stopped"


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a cell cannot go on. generation: the store's, when it stopped; empty when the store could not say."""

    reason: Reason
    why: str
    generation: str = ""


@dataclass(slots=True)
class Stops:
    """The cells of one process that cannot go on."""

    metrics: Metrics
    found: dict[str, Stop] = field(default_factory=dict)

    def add(self, cell: str, error: LogTruncated | CorruptState, generation: str) -> None:
        """Stop a cell, in the log and in the metrics."""
        stop = Stop(_reason(error), str(error), generation)
        self.found[cell] = stop
        self.metrics.set(METRIC, 1.0, cell=cell, reason=stop.reason)
        log.error("cell stopped", extra={"cell": cell, "reason": stop.reason, "why": stop.why})

    def end(self, cell: str) -> None:
        """Forget the stop of a cell, if there is one: another process has it now, or it goes on."""
        stop = self.found.pop(cell, None)
        if stop is not None:
            self.metrics.set(METRIC, 0.0, cell=cell, reason=stop.reason)

    def rebuilt(self, store: ProfileStore) -> list[str]:
        """Name the stopped cells that an operator began anew. Raises Unavailable."""
        return [cell for cell, stop in self.found.items() if _generation(store, cell) not in ("", stop.generation)]

    def words(self) -> Mapping[str, str]:
        """Give each stopped cell its reason and text, for people."""
        return {cell: f"{stop.reason}: {stop.why}" for cell, stop in sorted(self.found.copy().items())}

    def refusal(self) -> StoppedCells:
        """Say in one line which cells stopped before the end of the log."""
        cells = "; ".join(f"{cell} ({words})" for cell, words in self.words().items())
        return StoppedCells(f"stopped before the end of the log: {cells}")


def _reason(error: LogTruncated | CorruptState) -> Reason:
    if isinstance(error, CorruptState):
        return "cell_corrupt"
    return "log_recreated" if isinstance(error, LogRecreated) else "log_truncated"


def generation_of(store: ProfileStore, cell: str) -> str:
    """Ask the store for the generation of a cell; empty when it cannot say."""
    try:
        return _generation(store, cell)
    except Unavailable:
        return ""


def _generation(store: ProfileStore, cell: str) -> str:
    try:
        return store.shards(cell, []).generation
    except CorruptState:
        return ""
