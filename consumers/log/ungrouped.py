"""What a log answers that one process reads by itself: files have no consumer group, no topic and no lag. Rules: nothing here does I/O."""

from __future__ import annotations

from collections.abc import Mapping


class UngroupedLog:
    """Base of the logs that are one cell: the part of port `QueryLog` that only a consumer group gives an answer to.

    cell  the log's cell; None while it has no name yet
    """

    cell: str | None

    def owns(self, cell: str) -> bool:
        return cell == self.cell

    def is_member(self) -> bool:
        return True

    def topic_id(self, cell: str) -> int:
        return 0  # a file with other contents is another cell

    def lag(self) -> int:
        return 0

    def commit(self, offsets: Mapping[str, int]) -> None:
        """Do nothing: nobody watches the lag of a file."""
