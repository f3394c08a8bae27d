"""What reaches a terminal: no escape sequence but our own, and nothing that hides or turns what stands beside it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable

import pytest
from rich.table import Table
from rich.text import Text

from consumers import terminal
from consumers.legible import json_safe, legible

HOSTILE = "a\u001b]0;PWNED\u0007\u001b[2J\u001b[1;1Hb\u009b31mc\u202ed\u200be\u2028f\ud800g\u007fh\rX\u3164\u00a0"
"""Escape sequences of 7 and 8 bits, a bell, bidi, zero width, line breaks, a lone surrogate, blanks."""


def raw(text: str) -> set[str]:
    """Characters in a text that a terminal would obey, hide or not know."""
    return {c for c in text if c != "\n" and (unicodedata.category(c)[0] == "C" or c in "\u2028\u2029\u3164\u00a0")}


def test_what_is_legible_is_printable_and_stays_as_it_is() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    said = legible(every)
    assert said.isprintable()
    assert legible(said) == said
    assert legible("Ünïcode – 日本語 ⟨x⟩ и 🦊") == "Ünïcode – 日本語 ⟨x⟩ и 🦊"


def test_json_lines_hold_the_same_value_and_nothing_invisible() -> None:
    text = json_safe(json.dumps({HOSTILE: [HOSTILE, "\U000e0041", "ü"]}, ensure_ascii=False))
    assert json.loads(text) == {HOSTILE: [HOSTILE, "\U000e0041", "ü"]}
    assert text.isprintable()
    text.encode()


def printed(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a console, which is no colour terminal, and standard output get."""
    seen = io.StringIO()
    monkeypatch.setattr(terminal.out, "_file", seen)
    monkeypatch.setattr(sys, "stdout", seen)
    monkeypatch.setattr(terminal.err, "_file", seen)
    work()
    return seen.getvalue()


def grid() -> Table:
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE, style="bold"))
    return table


WAYS: dict[str, Callable[[], object]] = {
    "a string": lambda: terminal.out.print(HOSTILE),
    "a text": lambda: terminal.out.print(Text(HOSTILE), soft_wrap=True),
    "two texts": lambda: terminal.err.print(Text("x"), Text(HOSTILE)),
    "a table of rich": lambda: terminal.out.print(grid()),
    "our table": lambda: terminal.print_table(("a", "b"), [(HOSTILE, "\n" + HOSTILE)]),
    "no rows": lambda: terminal.print_table(("a",), [], nothing=HOSTILE),
    "JSON lines": lambda: terminal.show([{"a": HOSTILE}], True, print),
    "refusals": lambda: terminal.print_counters({HOSTILE: 1}, {HOSTILE: 2}, [(HOSTILE, HOSTILE, HOSTILE)]),
    "an error": lambda: terminal.complain(HOSTILE),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_of_printing_lets_an_escape_sequence_through(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(WAYS[way], monkeypatch)
    assert "PWNED" in text.replace("\n", "").replace(" ", "")
    assert raw(text) == set()


def test_a_string_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(lambda: terminal.out.print("m[/x] [bold]b[/] :smile:"), monkeypatch) == "m[/x] [bold]b[/] :smile:\n"


def test_a_line_break_in_a_name_makes_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(lambda: terminal.print_table(("client",), [("one\nacct-9  clear",)]), monkeypatch)
    assert len(text.splitlines()) == 2


def test_a_library_that_warns_writes_a_line_of_the_log() -> None:
    code = "import warnings; from consumers import terminal; terminal.json_logs(); warnings.warn('old\\nand odd', stacklevel=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert "old" in json.loads(line)["event"]
