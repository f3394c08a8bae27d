"""What a turn of detect reads: which clients changed, and what the profile cells hold of them.

Rules:

* Every profile cell is asked once for all decision cells that are looked at together, at one offset.
* An answer of another generation, or one that is older than the cursor to be, is discarded: the cell waits for the next turn.
* A profile cell that cannot be read is left out. A client whose decision reflects it keeps that decision.
* That it cannot be read is said once, and once more when it was repaired and breaks again (`UnreadableCells`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from consumers.detect.step import Seen
from consumers.detect.verdicts import PendingVerdict
from consumers.records.damaged import UnreadableCells, readable
from consumers.records.decision import episode_after, stored_decision
from consumers.secrets import Secrets
from consumers.store import Cursor, DecisionRow, ProfileStore, Shards, Touched
from detector.query import ClientKey

TOUCHED_LIMIT = 5_000

Pending = Mapping[str, tuple[Cursor, list[ClientKey]]]
"""Profile cell → (cursor to be, clients changed since)."""


@dataclass(slots=True)
class HeldCell:
    """A decision cell that this process holds. told: verdicts that were looked at since the claim."""

    token: str
    revision: int
    cursors: dict[str, Cursor]
    told: set[PendingVerdict] = field(default_factory=set)


@dataclass(slots=True)
class CellWork:
    """What a turn does for one decision cell. said: verdicts to pass on; cursors: to be; rows: as stored; seen: what was read."""

    cell: int
    held: HeldCell
    said: list[PendingVerdict]
    clients: list[ClientKey]
    cursors: dict[str, Cursor]
    rows: dict[ClientKey, DecisionRow] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    def put_together(self, answers: Mapping[str, Shards | None], secrets: Secrets) -> bool:
        """Put together what was read of the clients; False when an answer is older than the cursor, or the cursor to be.

        A cell without touched clients may have been rolled back, too: a row that reflects a shard there waits for its replay.
        """
        if not self.clients:
            return True
        behind, corrupt = set(), {name for name, answer in answers.items() if answer is None}
        fields: dict[ClientKey, dict[str, Mapping[str, bytes]]] = {key: {} for key in self.clients}
        for name, answer in answers.items():
            if answer is None:
                continue
            to_be, known = self.cursors.get(name), self.held.cursors.get(name)
            if to_be is not None:
                if answer.generation != to_be.generation or answer.offset < to_be.offset:
                    return False
            elif known is not None and answer.generation == known.generation and answer.offset < known.offset:
                behind.add(name)
            for key, mine in fields.items():
                if values := answer.fields.get(key):
                    mine[name] = values
        for key in self.clients:
            before, episode = None, 0
            if key in self.rows:
                before = readable("decision row", stored_decision, self.rows[key], secrets, key.tenant)
                episode = episode_after(self.rows[key]) if before is None else 0
            if behind and (before is None or not behind.isdisjoint(before.cells)):
                return False  # without a row (it may have been erased) nobody knows what the replay will bring
            if before is not None and not corrupt.isdisjoint(before.cells):
                continue  # what the row reflects can't be read: it stays as it is
            self.seen.append(Seen(key, fields[key], before, episode))
        return True


def find_touched(
    store: ProfileStore, held: Mapping[int, HeldCell], profile_cells: Sequence[str], unreadable: UnreadableCells
) -> dict[int, dict[str, tuple[Cursor, list[ClientKey]]]]:
    """Ask every profile cell which clients of our decision cells changed: decision cell → `Pending`."""
    found: dict[int, dict[str, tuple[Cursor, list[ClientKey]]]] = {}
    for name in profile_cells if held else ():
        cursors = {cell: mine.cursors.get(name) for cell, mine in held.items()}
        answers = unreadable.read(name, "touched", functools.partial(_touched, store, name, cursors))
        for cell, (cursor, answer) in (answers or {}).items():
            if cursor is not None and cursor.offset > answer.offset:
                continue  # the profile cell was rolled back: its replay will catch up
            moved = cursor is None or answer.cursor > cursor.offset
            if answer.clients or moved:
                found.setdefault(cell, {})[name] = (Cursor(answer.generation, answer.cursor), answer.clients)
    return found


def _touched(
    store: ProfileStore, name: str, cursors: Mapping[int, Cursor | None]
) -> dict[int, tuple[Cursor | None, Touched]]:
    """Decision cell → (cursor, what changed after it); no cursor where the profile cell was rebuilt. Raises CorruptState."""
    wanted = {cell: cursor.offset if cursor else -1 for cell, cursor in cursors.items()}
    found: dict[int, tuple[Cursor | None, Touched]] = {}
    for cell, answer in store.touched(name, wanted, TOUCHED_LIMIT).items():
        cursor = cursors[cell]
        if cursor is not None and cursor.generation != answer.generation:
            # rebuilt: everything counts as changed
            found[cell] = None, store.touched(name, {cell: -1}, TOUCHED_LIMIT)[cell]
        else:
            found[cell] = cursor, answer
    return found


def read_shards(
    store: ProfileStore, clients: Sequence[ClientKey], profile_cells: Sequence[str], unreadable: UnreadableCells
) -> dict[str, Shards | None]:
    """Read the shards of the clients in every profile cell; None for a cell that cannot be read."""
    return {
        name: unreadable.read(name, "shards", functools.partial(store.shards, name, clients))
        for name in (profile_cells if clients else ())
    }
