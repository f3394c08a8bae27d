"""A query log of several topics, each in a format of its own. Port `QueryLog`.

Rules:
* The log is polled once, by one member of the consumer group; each topic with a mapping gets its records and reads them as `MappedLog`
  reads a log of its own. A topic without a mapping is native, and its records pass unchanged.
* Cells are called as the log calls them. Only offsets differ: those of a mapped topic have rows.
* The topics of a mapping whose halves meet in the store are read as one log (handed.py), whose cells are join cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from consumers.errors import WrongUse
from consumers.log import Poll, QueryLog
from consumers.log.halves import JOINED, NOTHING_WAITS, WaitingHalves
from consumers.log.mappings.handed import HandedLog, Meeting
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
    meeting      where halves meet of mappings that say so; None: in their partitions all the same
    """

    def __init__(
        self,
        log: QueryLog,
        translators: Mapping[str, Translator],
        report: Report = lambda counts: None,
        meeting: Meeting | None = None,
    ) -> None:
        self._log = log
        groups: dict[str, list[str]] = {}  # what `topic_of` says of the cells → the topics that are read for them
        for topic, translator in translators.items():
            groups.setdefault(_group(topic, translator, meeting), []).append(topic)
        self._topics = {name: frozenset(topics) for name, topics in groups.items()}
        self._of_topic = {topic: name for name, topics in groups.items() for topic in topics}
        self._views = {name: _TopicView(log) for name in groups}
        self._mapped = {}
        for name, topics in groups.items():
            translator, view = translators[topics[0]], self._views[name]
            through = HandedLog(view, meeting, translator, topics) if meeting and name.startswith(JOINED) else view
            self._mapped[name] = MappedLog(through, translator, report)

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        waits = any(mapped.waits for mapped in self._mapped.values())
        whole = self._log.poll(0.0 if waits else timeout_s, max_records)
        found = _of_topics(whole, lambda topic: topic not in self._of_topic)
        for name, mapped in self._mapped.items():
            self._views[name].handed = _of_topics(whole, self._topics[name].__contains__)
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
        """Raises Unavailable until what the topics of a join hold was handed in."""
        ends = {cell: end for cell, end in self._log.ends().items() if topic_of(cell) not in self._of_topic}
        for name, mapped in self._mapped.items():
            ends |= {cell: end for cell, end in mapped.ends().items() if topic_of(cell) in (name, *self._topics[name])}
        return ends

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


def check_partitions(translators: Mapping[str, Translator], partitions: Callable[[str], int]) -> None:
    """Refuse (WrongUse) a join with more cells than its first topic has partitions: nobody would own the others.

    partitions: how many a topic has
    """
    for name in sorted({translator.mapping.name for translator in translators.values()}):
        topics = sorted(topic for topic, translator in translators.items() if translator.mapping.name == name)
        join = translators[topics[0]].mapping.join
        if join is None or join.through != "store":
            continue
        if join.cells > (there := partitions(topics[0])):
            raise WrongUse(
                f"mapping {name}: join.cells is {join.cells}, but the topic {topics[0]} has {there} partitions"
            )


def _group(topic: str, translator: Translator, meeting: Meeting | None) -> str:
    """What a topic is read with: itself, or all topics of a join."""
    join = translator.mapping.join
    meets = meeting is not None and join is not None and join.through == "store"
    return f"{JOINED}{translator.mapping.name}" if meets else topic


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
