"""Schema holds: a misfit that many clients share does not count as evidence until an operator decides.

Rules: a *schema hold* is kept in the operator cell, over days and restarts, until an operator decides. ``accepted``: the change was
intended, so the evidence stays out until the baseline of the model is fitted again. ``dismissed``: it was not,
so the evidence counts again, and the column is not held again while this decision is in force. For
what detect does with holds see detect/schema_holds.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from consumers.records.damaged import readable
from consumers.records.operator_entries import unpacked
from consumers.store import Entry, OperatorStore

KIND = "schema"
DISMISSED_S = 30 * 86_400
"""How long a column is not held again once an operator dismissed it."""

SchemaRuling = Literal["accepted", "dismissed"]
"""What an operator may say."""


@dataclass(frozen=True, slots=True)
class SchemaHold:
    """One held column of one model, as stored. clients: that sent the misfit on the day it was noticed, of how many."""

    model: str
    column: str
    map_id: str
    clients: int
    of_clients: int
    day: int
    at_s: int
    ruling: Literal["held", "accepted", "dismissed"] = "held"
    actor: str = ""
    format: int = 1


def hold_key(model: str, column: str) -> str:
    """Key of the entry. A column may hold any character, a model too: the model's length comes first."""
    return f"{len(model)}|{model}|{column}"


def read_hold(entry: Entry) -> SchemaHold | None:
    """The value of an entry, None for one that cannot be read: it holds nothing back."""
    return readable("entry", unpacked, entry, SchemaHold, kind=KIND) if entry.value else None


def holds_of(store: OperatorStore, tenant: str) -> tuple[SchemaHold, ...]:
    """All holds of a tenant, those that wait for an operator first. Raises Unavailable."""
    found = [hold for entry in store.operator_entries(KIND, tenant)[1] if (hold := read_hold(entry)) is not None]
    return tuple(sorted(found, key=lambda hold: (hold.ruling != "held", hold.model, hold.column)))
