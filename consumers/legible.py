"""Make text from outside safe to read on a terminal, on a page and in a message.

Rules:
* A character that moves a cursor, changes the direction of writing, breaks a line, or is invisible is written out as ``⟨U+202E⟩``. Among
  them: control characters (escape sequences begin with one), bidi controls, zero-width and other ignorable characters, blanks other than
  the ordinary space, line separators, lone surrogates, and unassigned code points.
* Legible text stays as it is, so that nothing is written out twice.
* Markup is not handled here: each page, message and terminal escapes its own.
"""

from __future__ import annotations

import re

_BLANKS = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
"""Printable for Unicode, and yet nothing to see."""
_SUSPECT = re.compile(rf"[^\x20-\x7e\u00a1-\u00ac\u00ae-\u02ff\u0391-\u03a1\u03a3-\u03ff\u0400-\u0481]|[{_BLANKS}]")
"""Whatever has to be looked at; the ranges left out are printable throughout."""
_BLANK = re.compile(f"[{_BLANKS}]")


def legible(text: str, keep: str = "") -> str:
    r"""`text` with everything invisible written out; keep: characters that may stay (a page of ours has lines).

    >>> legible("a\u202eb\x00\x1b[2J")
    'a⟨U+202E⟩b⟨U+0000⟩⟨U+001B⟩[2J'
    >>> legible("two\nlines", keep="\n")
    'two\nlines'
    """
    return _SUSPECT.sub(lambda c: c[0] if c[0] in keep or _seen(c[0]) else f"⟨U+{ord(c[0]):04X}⟩", text)


def json_safe(text: str) -> str:
    r"""JSON text with its invisible characters as JSON escapes: the same value, fit for a terminal.

    >>> json_safe('{"a": "\u202e\x9b"}')
    '{"a": "\\u202e\\u009b"}'
    """
    return _SUSPECT.sub(lambda c: c[0] if c[0] == "\n" or _seen(c[0]) else _escaped(c[0]), text)


def _seen(character: str) -> bool:
    return character.isprintable() and not _BLANK.match(character)


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
