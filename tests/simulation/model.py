"""A model of the store: the port's semantics, nothing else, on `cells.Nodes`.

Every call is one atomic step. `tests/simulation/test_model.py` runs the port's conformance suite on it. The hooks
(`owned`, `readable`, `owned_decisions`, …) are what weaker variants replace, see `variants.py`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from simulation.cells import DecisionCell, Nodes, OperatorCell, Place, ProfileCell

from consumers import store as port
from consumers.errors import Fenced, LeaseHeld, Refused, Rewound
from consumers.store import (
    AlertSwap,
    Arrival,
    Checkpoint,
    Claim,
    DeadLetter,
    DecisionClaim,
    DecisionRow,
    Entry,
    Exported,
    FieldSwap,
    HandIn,
    Operation,
    OutboxAlert,
    Outcome,
    Proof,
    Restriction,
    RowSwap,
    Shards,
    Tombstones,
    Touched,
)
from consumers.store.embedded_joins import proof_after
from consumers.store.layout import (
    FEED_ENTRIES,
    LAYOUT,
    OPERATOR_CHANGES,
    OPERATORS,
    RESTRICTED,
    check_checkpoint,
    check_decision_cell,
    check_lease,
    check_limit,
    check_operation,
    check_outcome,
    concerns_gateways,
    feed_position,
    layout_differs,
    operator_step,
)
from consumers.store.records import REVISION_JUMP
from detector.query import ClientKey


@dataclass(frozen=True, slots=True)
class Saved:
    """A snapshot: each cell as it was when it was read."""

    cells: Mapping[Place, Any]


class ModelStore:
    def __init__(self, nodes: Nodes, now_s: Callable[[], float] = time.time) -> None:
        self.nodes = nodes
        self.now_s = now_s
        self.decision_cells = port.DECISION_CELLS

    # --- what weaker variants replace

    def owned(self, cell: str, token: str, offset: int | None) -> ProfileCell:
        """The cell, if token and offset are the stored ones."""
        state = self.nodes.profile_cell(cell)
        if state is None or state.token != token:
            raise Fenced(f"{cell}: another process owns this cell")
        if state.offset != offset:
            raise Rewound(cell, state.offset)
        return state

    def readable(self, cell: str, token: str, offset: int | None) -> ProfileCell:
        return self.owned(cell, token, offset)

    def owned_decisions(self, cell: int, token: str, revision: int) -> DecisionCell:
        state = self.nodes.decision_cell(cell)
        if not token or state.token != token:
            raise Fenced(f"decisions:{cell}: another process owns this cell")
        if state.revision != revision:
            raise Rewound(f"decisions:{cell}", state.revision)
        return state

    def claimed(self, cell: str, token: str, state: ProfileCell) -> None:
        state.token = token

    def claimed_decisions(self, cell: int, token: str, state: DecisionCell) -> None:
        state.token = token

    def renewed(self, state: ProfileCell) -> None:
        """A claim of a join cell."""
        state.generation = self._generation()

    def handed_in(self, state: ProfileCell, records: HandIn) -> None:
        """Raises Rewound unless the source is where the caller thinks."""
        if state.handed.get(records.source) != records.expected:
            raise Rewound(records.cell, state.handed.get(records.source))

    def there(self, state: ProfileCell, checkpoint: Checkpoint) -> bool:
        """Whether what was read is what is here."""
        taken = checkpoint.taken
        return taken is None or state.arrivals.get(taken.last, ("",))[0] == taken.proof

    def replaces(self, state: ProfileCell, client: ClientKey, next_offset: int) -> bool:
        return True

    # --- layout and secrets

    def prepare(self, secrets_id: str) -> None:
        expected = (str(port.SCHEMA_VERSION), str(self.decision_cells), secrets_id)
        layout = self.nodes.layout
        for name, ours in zip(LAYOUT, expected, strict=True):
            if layout.get(name, ours) != ours:
                raise Refused(layout_differs(name, layout[name], ours))
        layout.update(zip(LAYOUT, expected, strict=True))

    # --- ingest

    def claim(self, cell: str, token: str, proof: Proof = "none") -> Claim:
        state = self.nodes.profile_cell(cell)
        state = ProfileCell(generation=self._generation()) if state is None else state.copy()
        self.claimed(cell, token, state)
        if state.numbered is not None:
            self.renewed(state)
        state.attempts = 0 if proof == "folded" else state.attempts + (proof == "none")
        state.epoch += 1
        self.nodes.put(("profiles", cell), state)
        return Claim(
            state.generation,
            state.offset,
            dict(state.counters),
            state.attempts,
            Tombstones(dict(state.erased)),
            state.sketch,
        )

    def load(
        self, cell: str, token: str, offset: int | None, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, dict[str, bytes]]:
        # a read of nothing is a question about the cell, see `Ingest.Runner._check`
        return _fields((self.readable if clients else self.owned)(cell, token, offset), clients)

    def commit(self, token: str, checkpoint: Checkpoint) -> None:
        check_checkpoint(checkpoint)
        state = self.owned(checkpoint.cell, token, checkpoint.expected_offset).copy()
        after = checkpoint.next_offset
        if not self.there(state, checkpoint):
            raise Rewound(checkpoint.cell, state.offset)
        if checkpoint.taken is not None:
            gone = set(checkpoint.taken.done)
            state.arrivals = {number: held for number, held in state.arrivals.items() if number not in gone}
            state.taken = checkpoint.taken.last + 1
        profiles = dict(state.profiles)
        written = [c for c in checkpoint.profiles if self.replaces(state, c, after)]
        for client in written:
            fields = dict(profiles.get(client, ({}, 0))[0])
            for name, value in checkpoint.profiles[client].items():
                if value is None:
                    fields.pop(name, None)
                else:
                    fields[name] = value
            profiles[client] = (fields, after)
        state.profiles = profiles
        state.untaken = state.untaken | frozenset(written)
        if checkpoint.dead:
            state.dead += tuple(enumerate(checkpoint.dead, state.letters))
            state.letters += len(checkpoint.dead)
            state.reasons = dict(state.reasons)
            state.refused = state.refused | {letter.offset: letter.reason for letter in checkpoint.dead}
            for letter in checkpoint.dead:
                state.reasons[letter.reason] = state.reasons.get(letter.reason, 0) + 1
        if checkpoint.counters:
            state.counters = state.counters | checkpoint.counters
        if checkpoint.sketch is not None:
            state.sketch = checkpoint.sketch
        if state.offset != after:
            state.attempts = 0
            state.lineage = self.nodes.after(state.lineage, checkpoint)
        state.offset = after
        self.nodes.put(("profiles", checkpoint.cell), state)

    def dead_letters(self, cell: str, limit: int) -> list[tuple[str, DeadLetter]]:
        state = self.nodes.profile_cell(cell)
        return [(str(n), letter) for n, letter in (state.dead if state else ())[: max(limit, 0)]]

    def dead_letters_shipped(self, cell: str, entries: Sequence[str]) -> None:
        state = self.nodes.profile_cell(cell)
        gone = {int(entry) for entry in entries}
        if state is None or not any(n in gone for n, _ in state.dead):
            return
        state = state.copy()
        state.dead = tuple(one for one in state.dead if one[0] not in gone)
        self.nodes.put(("profiles", cell), state)

    # --- join cells

    def sources(self, cell: str) -> dict[str, int]:
        state = self.nodes.profile_cell(cell)
        return dict(state.handed) if state else {}

    def hand_in(self, records: HandIn) -> bool:
        state = self.nodes.profile_cell(records.cell)
        state = ProfileCell(generation=self._generation()) if state is None else state.copy()
        self.handed_in(state, records)
        numbered, contents = state.numbered or 0, records.contents
        if contents and numbered > state.taken:
            held = [len(content) for number, (_, content) in state.arrivals.items() if number >= state.taken]
            if numbered - state.taken + len(contents) > records.most:
                return False
            if sum(held) + sum(map(len, contents)) > records.most_bytes:
                return False
        if contents:
            state.proof = proof_after(state.proof, records.nonce, numbered)
            state.arrivals = state.arrivals | {n: (state.proof, c) for n, c in enumerate(contents, numbered)}
            state.history += tuple(contents)
        state.numbered = numbered + len(contents)
        state.handed = state.handed | {records.source: records.next_offset}
        self.nodes.put(("profiles", records.cell), state)
        return True

    def arrivals(self, cell: str, first: int, limit: int) -> tuple[list[Arrival], int]:
        state = self.nodes.profile_cell(cell) or ProfileCell()
        found = [Arrival(number, *state.arrivals[number]) for number in sorted(state.arrivals) if number >= first]
        return found[: max(limit, 1)], state.numbered or 0

    # --- detect

    def cells(self) -> list[str]:
        return sorted(str(name) for kind, name in self.nodes.states if kind == "profiles")

    def touched(self, cell: str, decision_cells: Mapping[int, int], limit: int) -> dict[int, Touched]:
        check_limit(limit)
        state = self.nodes.profile_cell(cell) or ProfileCell()
        offset = state.offset or 0
        found: dict[int, list[tuple[int, ClientKey]]] = {v: [] for v in decision_cells}
        for client, (_, at) in state.profiles.items():
            v = port.decision_cell(client, self.decision_cells)
            if v in found and at > decision_cells[v]:
                found[v].append((at, client))
        return {v: Touched(state.generation, offset, *page(sorted(rows), limit, offset)) for v, rows in found.items()}

    def shards(self, cell: str, clients: Sequence[ClientKey]) -> Shards:
        state = self.nodes.profile_cell(cell) or ProfileCell()
        return Shards(state.generation, state.offset or 0, _fields(state, clients))

    def claim_decisions(self, cell: int, process: str, token: str, lease_ms: int) -> DecisionClaim:
        check_decision_cell(cell, self.decision_cells)
        check_lease(lease_ms)
        state = self.nodes.decision_cell(cell).copy()
        remaining = state.lease_until_ms - self.now_s() * 1000
        if state.process not in ("", process) and remaining > 0:
            raise LeaseHeld(cell, int(remaining) + 1)
        self.claimed_decisions(cell, token, state)
        state.epoch += 1
        self._leased(state, process, lease_ms)
        self.nodes.put(("decisions", cell), state)
        return DecisionClaim(state.revision, dict(state.cursors))

    def load_decisions(
        self, cell: int, token: str, revision: int, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, DecisionRow]:
        check_decision_cell(cell, self.decision_cells)
        rows = self.owned_decisions(cell, token, revision).rows
        return {c: rows[c] for c in clients if c in rows}

    def record(self, token: str, revision: int, outcome: Outcome, process: str, lease_ms: int) -> int:
        check_outcome(outcome, self.decision_cells)
        check_lease(lease_ms)
        state = self.owned_decisions(outcome.cell, token, revision).copy()
        fed = []
        for client, row in outcome.rows.items():
            known = state.rows.get(client)
            if concerns_gateways((known.state, known.enforced, known.until_s) if known else None, row):
                state.fed += 1
                fed.append((state.fed, client, row))
        if fed:
            state.feed = (*state.feed, *fed)[-FEED_ENTRIES:]
        if outcome.rows:
            state.rows = state.rows | outcome.rows
        if outcome.alerts:
            now_ms = int(self.now_s() * 1000)
            state.alerts += tuple((state.entries + i, a, now_ms) for i, a in enumerate(outcome.alerts, 1))
            state.entries += len(outcome.alerts)
        if outcome.cursors:
            state.cursors = state.cursors | outcome.cursors
        self._leased(state, process, lease_ms)
        state.revision += 1
        state.lineage = self.nodes.after(state.lineage, outcome)
        self.nodes.put(("decisions", outcome.cell), state)
        return state.revision

    def release_decisions(self, cell: int, process: str) -> None:
        state = self.nodes.decision_cell(cell)
        if state.process == process:
            state = state.copy()
            state.process, state.lease_until_ms = "", 0.0
            self.nodes.put(("decisions", cell), state)

    def attend(self, process: str, duration_ms: int) -> int:
        now_ms, living = self.now_s() * 1000, self.nodes.detectors
        living.pop(process, None)
        if duration_ms:
            living[process] = now_ms + duration_ms
        for name in [name for name, until_ms in living.items() if until_ms <= now_ms]:
            del living[name]
        return len(living)

    def outbox(self, cell: int, destination: str, limit: int) -> list[tuple[str, OutboxAlert]]:
        state = self.nodes.decision_cell(cell)
        waiting = ((str(n), a) for n, a, _ in state.alerts if (destination, a.uid) not in state.sent)
        return list(islice(waiting, max(limit, 0)))

    def sent(self, cell: int, destination: str, entry: str, uid: str) -> None:
        state = self.nodes.decision_cell(cell)
        if state.sent.get((destination, uid)) == int(entry):
            return
        state = state.copy()
        state.sent = state.sent | {(destination, uid): int(entry)}
        self.nodes.put(("decisions", cell), state)

    # --- readers

    def decisions(
        self, tenant: str, model: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[ClientKey, DecisionRow]]:
        rows = [(c, r) for _, state in self._decision_cells() for c, r in state.rows.items() if c.tenant == tenant]
        for name in sorted({c.model for c, _ in rows} if model is None else {model}):
            ranked = sorted((item for item in rows if item[0].model == name), key=lambda i: (-i[1].rank, i[0].client))
            yield from ranked[: None if limit is None else max(limit, 0)]

    def decided(self, clients: Sequence[ClientKey]) -> dict[ClientKey, DecisionRow]:
        rows = {c: self.nodes.decision_cell(port.decision_cell(c, self.decision_cells)).rows.get(c) for c in clients}
        return {c: row for c, row in rows.items() if row is not None}

    def alerts(self, limit: int | None = None) -> list[OutboxAlert]:
        every = sorted((a.time_ms, a.uid, a) for _, state in self._decision_cells() for _, a, _ in state.alerts)
        kept = every if limit is None else every[len(every) - min(limit, len(every)) :]
        return [a for _, _, a in kept]

    def dead_letter_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for cell in self.cells():
            for reason, n in (self.nodes.profile_cell(cell) or ProfileCell()).reasons.items():
                counts[reason] = counts.get(reason, 0) + n
        return counts

    def pressure(self) -> float:
        return 0.0

    # --- gateways

    def restrictions(self) -> tuple[dict[int, str], list[Restriction]]:
        positions = {v: _position(self.nodes.decision_cell(v)) for v in range(self.decision_cells)}
        now_s = self.now_s()
        return positions, [
            Restriction(c, row.state, row.enforced, row.until_s)
            for _, state in self._decision_cells()
            for c, row in state.rows.items()
            if row.state in RESTRICTED and (row.until_s == 0 or row.until_s > now_s)
        ]

    def changes(self, positions: Mapping[int, str], limit: int) -> tuple[dict[int, str], list[Restriction]] | None:
        check_limit(limit)
        reached, found = dict(positions), list[Restriction]()
        for cell, position in positions.items():
            generation, after = feed_position(position)
            state = self.nodes.decision_cell(cell)
            gone = state.fed - len(state.feed)
            if generation != state.feed_generation or not gone <= after <= state.fed:
                return None
            some = [one for one in state.feed if one[0] > after][:limit]
            if some:
                reached[cell] = f"{generation}:{some[-1][0]}"
            found += (Restriction(c, row.state, row.enforced, row.until_s) for _, c, row in some)
        return reached, found

    # --- operators

    def operate(self, revision: int, operation: Operation) -> int:
        check_operation(revision, operation)
        state = self.nodes.operators()
        if state.revision != revision:
            raise Rewound(OPERATORS, state.revision)
        entries = {k: e for k, e in state.entries.items() if not e.expires_s or e.expires_s > int(self.now_s())}
        for names in operation.drops:
            entries.pop(names, None)
        entries |= {(e.tenant, e.kind, e.key): e for e in operation.puts}
        after = revision + operator_step()
        changed = [*operation.puts, *(Entry(*names, b"") for names in operation.drops)]
        changes, gone = (*state.changes, *((after, e) for e in changed)), state.gone
        if len(changes) > OPERATOR_CHANGES:
            gone = changes[-OPERATOR_CHANGES - 1][0]
            changes = tuple(change for change in changes if change[0] > gone)
        known = () if operation.forget else (*state.known[-OPERATOR_CHANGES:], after)
        new = OperatorCell(after, gone, entries, changes, (*state.audit, *operation.audit), known)
        self.nodes.put(("operators", ""), new)
        return after

    def operator_entries(self, kind: str, tenant: str | None = None) -> tuple[int, list[Entry]]:
        state, now_s = self.nodes.operators(), int(self.now_s())
        found = [
            e
            for e in state.entries.values()
            if e.kind == kind and tenant in (None, e.tenant) and (not e.expires_s or e.expires_s > now_s)
        ]
        return state.revision, sorted(found, key=lambda e: (e.tenant, e.key))

    def operator_changes(self, after: int, limit: int) -> tuple[int, list[Entry]] | None:
        check_limit(limit)
        state = self.nodes.operators()
        if not state.gone <= after <= state.revision or after not in (0, state.revision, *state.known):
            return None
        new = [change for change in state.changes if change[0] > after]
        reached = new[limit - 1][0] if len(new) >= limit else state.revision
        return reached, [entry for revision, entry in new if revision <= reached]

    def audit_rows(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        rows = enumerate(self.nodes.operators().audit, 1)
        return [row for row in rows if row[0] > after][: max(limit, 0)]

    # --- upkeep

    def erase(self, cell: str, clients: Sequence[ClientKey]) -> None:
        state = self.nodes.profile_cell(cell)
        if state is None:
            return
        state = state.copy()
        state.profiles = {c: kept for c, kept in state.profiles.items() if c not in set(clients)}
        state.untaken = state.untaken - frozenset(clients)
        offset = max(-1 if state.offset is None else state.offset, state.erased.get(Tombstones.FLOOR, -1))
        if offset >= 0:
            below = {Tombstones.mark(c): offset for c in clients}
            state.erased = state.erased | {m: max(at, state.erased.get(m, 0)) for m, at in below.items()}
        self._disown(cell, state)

    def erase_decisions(self, cell: int, clients: Sequence[ClientKey], alerts: Sequence[str]) -> None:
        check_decision_cell(cell, self.decision_cells)
        state = self.nodes.decision_cell(cell).copy()

        def gone(uid: str) -> bool:
            return uid.rpartition("/")[0] in alerts

        state.rows = {c: row for c, row in state.rows.items() if c not in set(clients)}
        state.alerts = tuple(one for one in state.alerts if not gone(one[1].uid))
        state.sent = {key: entry for key, entry in state.sent.items() if not gone(key[1])}
        state.feed, state.fed, state.feed_generation = (), 0, self._generation()
        self.claimed_decisions(cell, f"nobody-{self.nodes.number()}", state)
        state.epoch += 1
        state.revision += 1
        state.lineage = self.nodes.number()
        self.nodes.put(("decisions", cell), state)

    def reset(self, cell: str, offset: int | None) -> None:
        state = self.nodes.profile_cell(cell)
        if state is None:
            return
        new = ProfileCell(generation=self._generation(), offset=offset, base=offset)
        new.erased, new.dead, new.letters, new.epoch = state.erased, state.dead, state.letters, state.epoch
        if state.offset is not None:
            floor = max(state.offset, state.erased.get(Tombstones.FLOOR, 0))
            new.erased = {**state.erased, Tombstones.FLOOR: floor}
        self._disown(cell, new)

    def export(self) -> Iterator[Exported]:
        raise NotImplementedError("the model is saved as states, see `saved`")

    def restore(self, items: Iterable[Exported]) -> None:
        raise NotImplementedError("the model is saved as states, see `saved`")

    # What a snapshot holds of a cell (`store/records.py`), as states: bytes and files have tests of their own.

    def saved(self, place: Place) -> Any:
        """One cell as of this moment; None: there is none."""
        return self.nodes.states.get(place)

    def restore_saved(self, saved: Saved) -> None:
        """Another store in the place of this one: positions as saved, new generations, no owners, no cursors."""
        before = dict(self.nodes.states)
        layout = dict(self.nodes.layout)
        self.nodes.replaced()
        self.nodes.layout.update(layout)
        for place, state in saved.cells.items():
            if state is not None:
                self.nodes.put(place, self.restored(state, before.get(place)))

    def restored(self, state: Any, before: Any) -> Any:
        """What is stored of a saved cell; `before`: what its cell held just now."""
        if isinstance(state, ProfileCell):
            new = state.copy()
            new.token, new.generation, new.attempts, new.epoch = "", self._generation(), 0, 0
            new.lineage = self.nodes.number()
            return new
        if isinstance(state, DecisionCell):
            entries = {alert.uid: n for n, (_, alert, _) in enumerate(state.alerts, 1)}
            return DecisionCell(
                lineage=self.nodes.number(),
                rows=state.rows,
                alerts=tuple((entries[alert.uid], alert, at) for _, alert, at in state.alerts),
                entries=len(state.alerts),
                sent={(to, uid): entries[uid] for to, uid in state.sent if uid in entries},
                feed_generation=self._generation(),
            )
        return OperatorCell(state.revision + REVISION_JUMP, 0, state.entries, (), state.audit)

    def swap_fields(self, cell: str, swaps: Sequence[FieldSwap]) -> int:
        state = self.nodes.profile_cell(cell)
        if state is None:
            return 0
        state, done = state.copy(), 0
        state.profiles = dict(state.profiles)
        for swap in swaps:
            fields, touched = state.profiles.get(swap.client, ({}, 0))
            if fields.get(swap.field) == swap.before:
                state.profiles[swap.client] = ({**fields, swap.field: swap.after}, touched)
                done += 1
        self.nodes.put(("profiles", cell), state)
        return done

    def swap_decisions(self, cell: int, rows: Sequence[RowSwap], alerts: Sequence[AlertSwap]) -> int:
        state, done = self.nodes.decision_cell(cell).copy(), 0
        state.rows = dict(state.rows)
        for swap in rows:
            row = state.rows.get(swap.client)
            if row is not None and row.row == swap.before:
                state.rows[swap.client] = dataclasses.replace(row, row=swap.after)
                done += 1
        bodies = {(swap.uid, swap.before): swap.after for swap in alerts}
        kept = []
        for entry, alert, at in state.alerts:
            after = bodies.get((alert.uid, alert.body))
            kept.append((entry, alert if after is None else dataclasses.replace(alert, body=after), at))
            done += after is not None
        state.alerts = tuple(kept)
        self.nodes.put(("decisions", cell), state)
        return done

    def scrub(self) -> bool:
        return True

    def close(self) -> None:
        pass

    # --- inside

    def _disown(self, cell: str, state: ProfileCell) -> None:
        self.claimed(cell, f"nobody-{self.nodes.number()}", state)
        state.epoch += 1
        state.lineage = self.nodes.number()
        self.nodes.put(("profiles", cell), state)

    def _leased(self, state: DecisionCell, process: str, lease_ms: int) -> None:
        state.process, state.lease_until_ms = process, self.now_s() * 1000 + lease_ms

    def _generation(self) -> str:
        return f"g{self.nodes.number()}"

    def _decision_cells(self) -> Iterator[tuple[int, DecisionCell]]:
        for v in range(self.decision_cells):
            yield v, self.nodes.decision_cell(v)


def _fields(state: ProfileCell, clients: Sequence[ClientKey]) -> dict[ClientKey, dict[str, bytes]]:
    found = {c: state.profiles[c][0] for c in clients if c in state.profiles}
    return {c: dict(fields) for c, fields in found.items() if fields}


def page(rows: list[tuple[int, ClientKey]], limit: int, offset: int) -> tuple[int, list[ClientKey]]:
    """How far the answer is complete, and the clients; a commit (one offset) is never cut."""
    reached = offset
    if len(rows) > limit:
        first, cut = rows[0][0], rows[limit][0]
        last = first if first == cut else max(at for at, _ in rows if at < cut)
        page = [row for row in rows if row[0] <= last]
        if len(page) < len(rows):
            reached = last
        rows = page
    return reached, [client for _, client in rows]


def _position(state: DecisionCell) -> str:
    return f"{state.feed_generation}:{state.fed}"
