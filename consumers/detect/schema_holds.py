"""The schema holds that a detect process knows, and the columns on which it places new ones.

Rules:
* A column gets a schema hold when at least `LEAST_CLIENTS` clients, and `LEAST_SHARE` of the day's clients, sent the same kind of misfit in
  it on one day of the log's own time (records/schema_watch.py). The alarm ``schema`` is then raised.
* While a column of a model is held, the signals of misfits do not take part in decisions on the clients of this model. All other evidence
  counts as before. A restriction from before the hold stays until it ends or an operator lifts it.
* A hold lasts until an operator decides (records/schema_holds.py). A replay has no operator: holds stay in memory and are shown at the end.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from consumers.errors import Rewound
from consumers.records.damaged import UnreadableCells
from consumers.records.operator_entries import packed
from consumers.records.schema_holds import KIND, SchemaHold, hold_key, read_hold
from consumers.records.schema_watch import FIELD, IDENTITY, SchemaWatch
from consumers.secrets import Secrets
from consumers.store import Entry, Operation, ServiceStore
from detector.baseline import Baseline
from detector.query import ClientKey

log = logging.getLogger("querywarden.detect")

LEAST_CLIENTS = 20
LEAST_SHARE = 0.02


@dataclass(slots=True)
class SchemaHolds:
    """The holds that a detect process knows: key → hold, for each tenant."""

    baselines: Mapping[str, Baseline]
    secrets: Secrets
    known: dict[tuple[str, str], SchemaHold] = field(default_factory=dict)
    unreadable: UnreadableCells = field(default_factory=UnreadableCells)

    def take(self, entry: Entry) -> None:
        """Take up an entry of the operator cell; one without a value was dropped."""
        hold = read_hold(entry)
        if hold is None:
            self.known.pop((entry.tenant, entry.key), None)
        else:
            self.known[entry.tenant, entry.key] = hold

    def holds(self, tenant: str, model: str) -> bool:
        """Whether misfits are held back from the decisions on this model's clients."""
        baseline = self.baselines.get(model)
        return baseline is not None and any(
            hold.ruling == "held" or (hold.ruling == "accepted" and hold.map_id == baseline.map_id)
            for (whose, _), hold in self.known.items()
            if whose == tenant and hold.model == model
        )

    def open(self) -> list[SchemaHold]:
        """Those that wait for an operator."""
        return [hold for hold in self.known.values() if hold.ruling == "held"]

    def look(self, store: ServiceStore, tenant: str, now_s: int) -> list[SchemaHold]:
        """Columns that are shared by too many of a day's clients and not known yet; what cannot be read is left out. Raises Unavailable."""
        found = []
        keys = [ClientKey(tenant, model, self.secrets.client_hash(tenant, IDENTITY)) for model in self.baselines]
        watches = {key: SchemaWatch() for key in keys}
        for cell in store.cells():
            shards = self.unreadable.read(cell, "shards", functools.partial(store.shards, cell, keys))
            for key, fields in shards.fields.items() if shards is not None else ():
                if FIELD in fields:
                    watches[key] = watches[key].merge(SchemaWatch.from_bytes(fields[FIELD]))
        for key, watch in watches.items():
            of_clients = watch.clients.estimate()
            for column, sending in sorted(watch.columns.items()):
                clients = sending.estimate()
                if clients < max(LEAST_CLIENTS, LEAST_SHARE * of_clients):
                    continue
                map_id = self.baselines[key.model].map_id
                before = self.known.get((tenant, hold_key(key.model, column)))
                if before is None or (before.ruling == "accepted" and before.map_id != map_id):
                    found.append(
                        SchemaHold(key.model, column, map_id, round(clients), round(of_clients), watch.day, now_s)
                    )
        return found

    def keep(self, tenant: str, found: list[SchemaHold], store: ServiceStore | None, revision: int | None) -> None:
        """Hold the columns, in the operator cell where there is one. Raises Unavailable; another writer in between: with the next turn."""
        puts = [Entry(tenant, KIND, hold_key(hold.model, hold.column), packed(hold)) for hold in found]
        if puts and store is not None:
            try:
                store.operate(revision or 0, Operation(puts=puts))
            except Rewound:
                log.info("operator cell changed meanwhile")
                return
        for entry, hold in zip(puts, found, strict=True):
            self.known[tenant, entry.key] = hold
            log.error(
                "schema alarm: misfits of this column are held back until an operator rules",
                extra={"model": hold.model, "column": hold.column, "clients": hold.clients, "of": hold.of_clients},
            )
