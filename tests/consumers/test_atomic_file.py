"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.atomic_file import whole
from consumers.errors import Refused


def half_written(path: Path) -> None:
    with whole(path) as draft:
        draft.write_text("half")
        raise ZeroDivisionError


def test_a_file_appears_when_everything_is_written_and_never_in_part(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError):
        half_written(path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"scores.jsonl": "before"}
    with whole(path) as draft:
        draft.write_text("after")
        assert path.read_text() == "before"
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"scores.jsonl": "after"}


def test_what_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "scores.jsonl"
    with pytest.raises(Refused, match=r"nowhere/scores.jsonl: No such file or directory$"), whole(path) as draft:
        draft.write_text("x")
