"""A store for gateways' tests that keeps restrictions and operators' entries in lists, and can be made to fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from consumers.enforcement.restrictions import OPERATOR_KINDS, Restrictions
from consumers.errors import Rewound, Unavailable
from consumers.records import operator_entries
from consumers.store import DecisionRow, Enforced, Entry, Operation, Restriction
from detector.policy import State
from detector.query import ClientKey

TENANT = "default"


class RememberedStore:
    """The gateways' and the operators' sections of the port. down: raise Unavailable. forgets: changes are None."""

    def __init__(self) -> None:
        self.feed: list[Restriction] = []
        self.entries: list[Entry] = []
        self.histories: dict[str, list[list[Any]]] = {}
        self.down = False
        self.forgets = False
        self.full_reads = 0

    def detect(
        self, client: str, state: State, enforced: Enforced | None = None, *, model: str = "m", until_s: int = 0
    ) -> None:
        self.feed.append(Restriction(ClientKey(TENANT, model, client), state, enforced or state, until_s))

    def say(
        self,
        client: str,
        state: operator_entries.Ruling,
        *,
        model: str = "*",
        until_s: int = 0,
        simulated: bool = False,
    ) -> None:
        value = operator_entries.StoredOperatorDecision(
            client, model, state, until_s, simulated, "reason", "", "someone", 0
        )
        self.put("decision", client, model, operator_entries.packed(value), until_s)

    def allow(self, client: str, *, model: str = "*", until_s: int = 0) -> None:
        value = operator_entries.AllowlistEntry(client, model, until_s, "reason", "someone", 0)
        self.put("allow", client, model, operator_entries.packed(value), until_s)

    def say_of_campaign(
        self,
        campaign: str,
        state: operator_entries.Ruling,
        confirmed: Sequence[str],
        joined: Sequence[str] = (),
        *,
        model: str = "m",
        until_s: int = 10**9,
        joined_s: int = 0,
        simulated: bool = False,
    ) -> None:
        value = operator_entries.StoredCampaignDecision(
            campaign, model, state, until_s, simulated, "reason", "", "someone", 0, tuple(confirmed), tuple(joined),
            (joined_s,) * len(joined),
        )  # fmt: skip
        self.put("campaign", campaign, model, operator_entries.packed(value), until_s)

    def put(self, kind: str, client: str, model: str, value: bytes, expires_s: int = 0) -> None:
        """An entry as it comes; an empty value drops it."""
        self.entries.append(Entry(TENANT, kind, operator_entries.entry_key(model, client), value, expires_s))

    def restrictions(self) -> tuple[dict[int, str], list[Restriction]]:
        self._up()
        self.full_reads += 1
        last = {r.client: r for r in self.feed}
        return {0: str(len(self.feed))}, [r for r in last.values() if r.state in ("throttle", "block")]

    def changes(self, positions: Mapping[int, str], limit: int) -> tuple[dict[int, str], list[Restriction]] | None:
        self._up()
        if self.forgets:
            self.forgets = False
            return None
        after = int(positions.get(0, 0))
        found = self.feed[after : after + limit]
        return {0: str(after + len(found))}, found

    def decided(self, clients: Sequence[ClientKey]) -> dict[ClientKey, DecisionRow]:
        """Rows of the clients whose history is known: `histories`."""
        self._up()
        rows = {
            c: msgspec.msgpack.encode({"history": self.histories[c.client]})
            for c in clients
            if c.client in self.histories
        }
        return {client: DecisionRow(row, "block", 1.0, 0, "block") for client, row in rows.items()}

    def operator_entries(self, kind: str, tenant: str | None = None) -> tuple[int, list[Entry]]:
        self._up()
        last = {(e.tenant, e.key): e for e in self.entries if e.kind == kind}
        return len(self.entries), [e for e in last.values() if e.value]

    def operate(self, revision: int, operation: Operation) -> int:
        self._up()
        if revision != len(self.entries):
            raise Rewound("operators", len(self.entries))
        self.entries += operation.puts
        return len(self.entries)

    def operator_changes(self, after: int, limit: int) -> tuple[int, list[Entry]] | None:
        self._up()
        found = self.entries[after : after + limit]
        return after + len(found), found

    def nowhere(self) -> Any:
        raise Unavailable("away")

    def _up(self) -> None:
        if self.down:
            raise Unavailable("down")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a gateway has no business with {name}")


def read(store: RememberedStore, view: Restrictions, now_s: float = 0.0) -> None:
    """A full sync, at once."""
    entries = [entry for kind in OPERATOR_KINDS for entry in store.operator_entries(kind)[1]]
    view.replace(store.restrictions()[1], entries, now_s)
