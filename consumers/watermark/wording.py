"""Marks in texts: pairs of wordings that mean the same, exchanged by rule.

Rules: whole words only, and the first occurrence alone; a capital stays a capital. Nothing inside code (between back-ticks) is touched.
A pair is used only where the text holds one of its two wordings and not the other, so that a reader finds one style.
"""

from __future__ import annotations

import re
from typing import NamedTuple

PAIRS: tuple[tuple[str, str], ...] = (
    ("for example", "for instance"),
    ("however", "nevertheless"),
    ("in addition", "additionally"),
    ("therefore", "thus"),
    ("because", "since"),
    ("such as", "like"),
    ("usually", "typically"),
    ("need to", "have to"),
    ("as well as", "along with"),
    ("about", "around"),
    ("begin", "start"),
    ("often", "frequently"),
    ("a lot of", "many"),
    ("make sure", "ensure"),
    ("in order to", "to"),
    ("do not", "don't"),
)
"""Wordings that may stand for each other; which of the two is the mark depends on what the model wrote."""
_CODE = re.compile(r"`[^`]*`", re.DOTALL)


class Exchange(NamedTuple):
    """One wording in place of another."""

    source: str
    target: str


def exchange(text: str, draw: int) -> Exchange | None:
    """The exchange that a keyed draw chooses among those that the text allows; None when it allows none."""
    plain = _CODE.sub(" ", text)
    possible = [
        Exchange(source, target)
        for pair in PAIRS
        for source, target in (pair, pair[::-1])
        if _found(source, plain) and not _found(target, plain) and source != "to"
    ]
    return possible[draw % len(possible)] if possible else None


def exchanged(text: str, chosen: Exchange) -> str:
    """The text with the first occurrence of the source outside code exchanged."""
    code = [match.span() for match in _CODE.finditer(text)]
    for match in _pattern(chosen.source).finditer(text):
        if not any(start <= match.start() < end for start, end in code):
            target = chosen.target
            if match[0][0].isupper():
                target = target[0].upper() + target[1:]
            return text[: match.start()] + target + text[match.end() :]
    return text


def uses(text: str, chosen: Exchange) -> bool:
    """Whether a text holds the target and not the source."""
    plain = _CODE.sub(" ", text)
    return _found(chosen.target, plain) and not _found(chosen.source, plain)


def _pattern(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w'-]){re.escape(words)}(?![\w'-])", re.IGNORECASE)


def _found(words: str, text: str) -> bool:
    return _pattern(words).search(text) is not None
