"""A query log of several topics, each in a format of its own. Port `QueryLog`.

Rules:
* The log is polled once, by one member of the consumer group; each topic with a mapping gets its records and reads them as `MappedLog`
  reads a log of its own. A topic without a mapping is native, and its records pass unchanged.
* Cells are called as the log calls them. Only offsets differ: those of a mapped topic have rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from consumers.log import Poll, QueryLog
from consumers.log.halves import NOTHING_WAITS, ROW_BITS, WaitingHalves
from consumers.log.mappings.mapped import MappedLog, Report
from consumers.log.mappings.records import Translator


class _TopicView:
    """One topic of a log: it gives what was handed over to it; everything else is asked of the log."""

    def __init__(self, log: QueryLog) -> None:
        self._log = log
        self.handed = Poll()

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        handed, self.handed = self.handed, Poll()
        return handed

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        return self._log.seek(cell, offset)

    def pause(self, cell: str) -> None:
        self._log.pause(cell)

    def owns(self, cell: str) -> bool:
        return self._log.owns(cell)

    def position(self, cell: str) -> int:
        return self._log.position(cell)

    def ends(self) -> dict[str, int]:
        return self._log.ends()

    def is_member(self) -> bool:
        return self._log.is_member()

    def topic_id(self, cell: str) -> int:
        return self._log.topic_id(cell)

    def lag(self) -> int:
        return 0  # what waits in the log is counted once, by the log

    def commit(self, offsets: Mapping[str, int]) -> None:
        self._log.commit(offsets)

    def close(self) -> None:
        """The log is closed by its owner."""


class MappedTopics:
    """Port QueryLog: a log of topics of which some are read through a mapping.

    translators  topic → what translates its records; a topic that is not in it is native
    report       see `MappedLog`
    """

    def __init__(
        self, log: QueryLog, translators: Mapping[str, Translator], report: Report = lambda counts: None
    ) -> None:
        self._log = log
        self._views = {topic: _TopicView(log) for topic in translators}
        self._mapped = {topic: MappedLog(self._views[topic], t, report) for topic, t in translators.items()}

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        waits = any(mapped.waits for mapped in self._mapped.values())
        whole = self._log.poll(0.0 if waits else timeout_s, max_records)
        found = _of_topics(whole, lambda topic: topic not in self._mapped)
        for topic, mapped in self._mapped.items():
            self._views[topic].handed = _of_topics(whole, topic.__eq__)
            part = mapped.poll(0.0, max_records)
            found.batches += part.batches
            found.assigned += part.assigned
            found.revoked += part.revoked
            found.gaps += part.gaps
            found.stopped += part.stopped
        return found

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        return self._of(cell).seek(cell, offset, waiting)

    def pause(self, cell: str) -> None:
        self._of(cell).pause(cell)

    def owns(self, cell: str) -> bool:
        return self._of(cell).owns(cell)

    def position(self, cell: str) -> int:
        return self._of(cell).position(cell)

    def ends(self) -> dict[str, int]:
        ends = self._log.ends()
        return {cell: end << ROW_BITS if topic_of(cell) in self._mapped else end for cell, end in ends.items()}

    def is_member(self) -> bool:
        return self._log.is_member()

    def topic_id(self, cell: str) -> int:
        return self._of(cell).topic_id(cell)

    def lag(self) -> int:
        return self._log.lag() + sum(mapped.lag() for mapped in self._mapped.values())

    def commit(self, offsets: Mapping[str, int]) -> None:
        for topic in {topic_of(cell) for cell in offsets}:
            own = {cell: offset for cell, offset in offsets.items() if topic_of(cell) == topic}
            self._mapped.get(topic, self._log).commit(own)

    def close(self) -> None:
        self._log.close()

    def _of(self, cell: str) -> QueryLog:
        return self._mapped.get(topic_of(cell), self._log)


def topic_of(cell: str) -> str:
    """The topic of a cell ``topic:partition``."""
    return cell.rpartition(":")[0]


def _of_topics(poll: Poll, wanted: Callable[[str], bool]) -> Poll:
    """The part of a poll that is about some topics."""
    return Poll(
        [records for records in poll.batches if wanted(topic_of(records.cell))],
        [cell for cell in poll.assigned if wanted(topic_of(cell))],
        [cell for cell in poll.revoked if wanted(topic_of(cell))],
        [gap for gap in poll.gaps if wanted(topic_of(gap[0]))],
        [one for one in poll.stopped if wanted(topic_of(one[0]))],
    )
