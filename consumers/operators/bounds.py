"""Bounds of what people may enter: how long a decision holds, how long a text is, and which words are taken.

Rules: every check raises `WrongUse` with one line that says what is allowed; no text that was entered is repeated.
"""

from __future__ import annotations

import re
from typing import TypeVar

from consumers.errors import WrongUse
from consumers.records.operator_entries import EVERY_MODEL

DAY_S = 86_400
LONGEST_S = 30 * DAY_S
LONGEST_WORDS = 2000
NAME_PATTERN = "^[A-Za-z0-9._@-]{1,64}$"
"""Of a name of a person, a key or a source."""
_MODEL = re.compile(r"[^\x00-\x1f\x7f|]{1,256}")

_NAME = re.compile(NAME_PATTERN)

T = TypeVar("T")


def one_of(name: str, text: str, values: tuple[T, ...]) -> T:
    """The value that a caller's text names. Raises WrongUse."""
    for value in values:
        if value == text:
            return value
    raise WrongUse(f"{name}: {', '.join(map(str, values))}")


def check_words(*words: str) -> None:
    """Raises WrongUse for a text that is too long."""
    if any(len(text) > LONGEST_WORDS for text in words):
        raise WrongUse(f"at most {LONGEST_WORDS} characters")


def check_model(model: str) -> None:
    """Raises WrongUse for a model id that cannot be one; ``*`` is every model."""
    if model != EVERY_MODEL and not _MODEL.fullmatch(model):
        raise WrongUse("model_id: 1 to 256 characters, no control characters and no bar")


def check_name(what: str, name: str) -> None:
    """Raises WrongUse for a name of a person, a key or a source that cannot be one."""
    if not _NAME.fullmatch(name):
        raise WrongUse(f"{what}: letters, digits and . _ @ - only, at most 64")


def name_of(text: str) -> str:
    """The text as a name: other characters become ``_``, and what is too long is cut.

    >>> name_of("acme bank")
    'acme_bank'
    """
    return re.sub(r"[^A-Za-z0-9._@-]", "_", text)[:64]


def check_length(ttl_s: int, longest_s: int) -> None:
    """Raises WrongUse for a decision that holds too long, or not at all."""
    if not 1 <= ttl_s <= longest_s:
        raise WrongUse(f"ttl_s: 1 to {longest_s} seconds, that is {_length(longest_s)} (http.longest_decision_s)")


def _length(seconds: int) -> str:
    """A length of time as people type it: ``30d``."""
    return next(
        f"{seconds // n}{unit}" for unit, n in (("d", DAY_S), ("h", 3600), ("m", 60), ("s", 1)) if not seconds % n
    )
