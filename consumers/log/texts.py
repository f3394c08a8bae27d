"""The text of an event: what a client wrote to the model.

Rules:
* `text` is taken as it is. Of `messages` everything that is not the assistant's is taken (system, developer, user, tool), in order, joined
  by line ends: the model's own answers say nothing about its client. Content in parts (``parts`` with OpenTelemetry and Gemini)
  counts by its parts of text.
* A text is told from others by everything that was sent, the assistant's messages too, so that a client cannot hide queries behind one
  and the same last message.
* A text of spaces is a text; anything but a text, or messages without any text, is no input that can be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from detector.text import digest

TEXT_FORMS = ("text", "messages")
ANSWERING = frozenset(("assistant", "model", "ai", "bot"))
"""Roles whose messages are the model's."""


class Written(NamedTuple):
    """A text, and 64 bits that identify all that was sent."""

    text: str
    digest: int


def written(form: str, value: Any) -> Written | None:
    """What a parsed `text` or `messages` says; None for what is neither."""
    if form == "text":
        return Written(value, digest(value)) if isinstance(value, str) else None
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        return None
    pieces = [
        (str(one.get("role", "user")).lower(), piece)
        for one in value
        for piece in _pieces(one.get("content", one.get("parts")))
    ]
    if not pieces:
        return None
    theirs = [piece for role, piece in pieces if role not in ANSWERING]
    return Written("\n".join(theirs), digest("\n".join(f"{role}: {piece}" for role, piece in pieces)))


def written_in(event: Mapping[str, Any]) -> Written | None:
    """The text of a parsed event; None where it has none that can be read."""
    for form in TEXT_FORMS:
        if event.get(form) is not None:
            return written(form, event[form])
    return None


def _pieces(content: Any) -> Iterator[str]:
    """Texts of one message's content: a string, or a list of strings and of parts that hold one."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            found = part.get("text", part.get("content")) if isinstance(part, dict) else part
            if isinstance(found, str):
                yield found
