"""The data inventory: every table, field and kind of entry that the code knows is on the page, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path

from consumers.ingest import duplicates
from consumers.operators import kept
from consumers.records import (
    baselines_in_force,
    client,
    links,
    odd_contents,
    odd_patches,
    refusals,
    sample_events,
    schema_watch,
    spans,
    templates,
    usage,
)
from consumers.store import records

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")


def first_cells(heading: str) -> set[str]:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines()[3:] if line.startswith("|")]
    return {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}


def test_every_table_of_a_store_is_listed() -> None:
    assert first_cells("Tables of a store") == set(records._TABLES)


def test_every_field_of_a_profile_is_listed() -> None:
    fields = {
        m.FIELD
        for m in (
            baselines_in_force,
            duplicates,
            links,
            odd_contents,
            odd_patches,
            refusals,
            sample_events,
            schema_watch,
            templates,
            usage,
        )
    }
    assert first_cells("Fields of a profile") == fields | {client.HEADER, spans.SPAN, spans.SPAN_BESIDE}


def test_every_kind_of_entry_that_people_make_is_listed() -> None:
    assert first_cells("Kinds of operators' entries") >= set(kept.KINDS)
