"""The refused lines of a file or a log: their number, their reasons and one example, with a loud warning if they are many.

Rules: nothing here holds a value of a record. Examples are redacted before they come here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

LOUD = 0.05
"""From this share of refused lines on, a command warns."""
HOPELESS = 0.5
"""Beyond this share it also ends with status 1."""
SHOWN = 8
MOST_COLUMNS = 1000
"""Columns that are counted by name."""


class Example(NamedTuple):
    """One refused line: where it is, what about it is wrong, what it looks like (redacted)."""

    place: str
    detail: str
    head: str


@dataclass(slots=True)
class RefusedLines:
    """Counts of refused lines.

    lines     lines that were read
    counts    (reason, column) → lines; the column is empty where the reason is about the whole line
    examples  reason → its first line
    """

    lines: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[str, Example] = field(default_factory=dict)

    def refuse(self, reason: str, place: str = "", detail: str = "", head: str = "", column: str = "") -> None:
        """Count one line."""
        if column and (reason, column) not in self.counts and len(self.counts) >= MOST_COLUMNS:
            column = ""
        self.counts[reason, column] += 1
        self.examples.setdefault(reason, Example(place, detail, head))

    def add(self, other: RefusedLines) -> None:
        """Count another's lines too."""
        self.lines += other.lines
        self.counts += other.counts
        for reason, example in other.examples.items():
            self.examples.setdefault(reason, example)

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def reasons(self) -> Counter[str]:
        """Reason → lines."""
        found: Counter[str] = Counter()
        for (reason, _), n in self.counts.items():
            found[reason] += n
        return found

    @property
    def share(self) -> float:
        return self.total / self.lines if self.lines else 0.0

    @property
    def loud(self) -> bool:
        return self.share > LOUD

    @property
    def hopeless(self) -> bool:
        return self.share > HOPELESS

    def words(self) -> str:
        """``wrong_type 12 (column ratio), missing_client 3``; the most frequent first."""
        named = [
            f"{reason} {n:,}{f' (column {column})' if column else ''}"
            for (reason, column), n in self.counts.most_common(SHOWN)
        ]
        return ", ".join(named) + (", …" if len(self.counts) > SHOWN else "")

    def first(self) -> str:
        """The first line of the most frequent reason: where it is and what about it is wrong."""
        if not self.counts:
            return ""
        reason = self.reasons.most_common(1)[0][0]
        one = self.examples[reason]
        return f"first {one.place or reason}{f': {one.detail}' if one.detail else ''}"

    def example(self) -> str:
        """The same line with what it looks like, redacted."""
        if not self.counts:
            return ""
        reason = self.reasons.most_common(1)[0][0]
        one = self.examples[reason]
        told = ": ".join(part for part in (one.place, reason) if part)
        return f"{told}{f' ({one.detail})' if one.detail else ''}{f'  {one.head}' if one.head else ''}"

    def warning(self, what: str, meanings: Mapping[str, str] | None = None) -> list[str]:
        """Lines of the warning; none when few lines were refused.

        what      what was read: "the reference", "the log"
        meanings  reason → what it means
        """
        if not self.loud:
            return []
        lines = [f"WARNING: {self.total:,} of {self.lines:,} lines of {what} were refused ({self.share:.0%})"]
        for (reason, column), n in self.counts.most_common(SHOWN):
            where = f", column {column}" if column else ""
            meaning = (meanings or {}).get(reason, "")
            lines.append(f"  {n:,} × {reason}{where}{f': {meaning}' if meaning else ''}")
        if len(self.counts) > SHOWN:
            lines.append(f"  and {len(self.counts) - SHOWN} more reasons")
        lines.append(f"  for example {self.example()}")
        return lines
