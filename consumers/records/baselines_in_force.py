"""Which baselines of a model are in force: the live one, and a second one beside it, as the operator cell says.

A model has one baseline, that of the settings, until an operator adds a second one (operators/baseline_switch.py). From then on an entry
says which is live and which is beside it: a *shadow*, whose assessments nothing uses, or, once it was promoted, the earlier one, to which
the operator can roll back. Running processes follow the entry between two polls or turns.

    kind           key            value                 ends
    baseline       <model>        StoredBaselines       when the operator drops it
    baseline_file  <model>|<id>   StoredBaselineFile    with it

Rules:

* The entry holds ids (`Baseline.id`) and the bytes of both files are in the store, sealed: a process uses what the entry names, whatever
  files it has. A file that is named and cannot be read is `Refused`: to go on with another baseline would lose statistics.
* Ingest folds for both baselines in the same checkpoint and notes in it since when: `FoldedSince`, kept under a client that no query can
  name. So anybody can tell whether both lack nothing, and a switch changes only which one decides.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from consumers.embeddings import embedder_of
from consumers.errors import CorruptState, Refused, Unavailable
from consumers.records.operator_entries import packed, unpacked
from consumers.records.sealing import sealed, unsealed
from consumers.secrets import Secrets
from consumers.store import Entry, OperatorStore, ProfileStore
from detector.baseline import Baseline
from detector.baseline_file import read_baseline
from detector.errors import DetectorError
from detector.query import ClientKey

log = logging.getLogger("querywarden.baselines")

KIND, FILE_KIND = "baseline", "baseline_file"
FIELD = "b"
"""Field of `FoldedSince`."""
IDENTITY = "\x00baselines"
"""Whose field that is: no client id holds this character."""
FOLLOW_S = 1.0
"""How often a process looks at the entry."""


@dataclass(frozen=True, slots=True)
class StoredBaselines:
    """The baselines of one model.

    live      id of the one that decides; beside: id of the other, empty for none
    promoted  whether `live` was promoted, and `beside` is what was live before
    starts    profile cell → its offset when the second one was added
    """

    model: str
    live: str
    beside: str
    promoted: bool
    starts: dict[str, int]
    actor: str
    at_s: int
    format: int = 1


@dataclass(frozen=True, slots=True)
class StoredBaselineFile:
    """The bytes of a baseline file, sealed: a baseline holds rows of its reference."""

    model: str
    id: str
    sealed_file: str
    format: int = 1


def file_key(model: str, baseline_id: str) -> str:
    """Key of the entry that holds a file."""
    return f"{model}|{baseline_id}"


def file_entry(tenant: str, baseline: Baseline, blob: bytes, secrets: Secrets) -> Entry:
    """The entry that holds the bytes of a baseline file."""
    value = StoredBaselineFile(baseline.model_id, baseline.id, sealed(base64.b64encode(blob).decode(), secrets, tenant))
    return Entry(tenant, FILE_KIND, file_key(baseline.model_id, baseline.id), packed(value))


def stored_file(store: OperatorStore, tenant: str, secrets: Secrets, model: str, baseline_id: str) -> bytes:
    """The bytes of a baseline file. Raises Refused where the store has none that can be read, Unavailable."""
    wanted = file_key(model, baseline_id)
    for entry in store.operator_entries(FILE_KIND, tenant)[1]:
        if entry.key == wanted:
            try:
                value = unpacked(entry, StoredBaselineFile)
                return base64.b64decode(unsealed(value.sealed_file, secrets, tenant))
            except (CorruptState, ValueError) as error:
                raise Refused(f"baseline {baseline_id} of model {model}: {error}") from error
    raise Refused(f"baseline {baseline_id} of model {model} is in force, but the store has no such file")


# ------------------------------------------------------------------------------------------------- folded for both


class FoldedSince(NamedTuple):
    """Which two baselines a profile cell is folded for: without a break from offset `since` to offset `until`."""

    ids: tuple[str, ...] = ()
    since: int = 0
    until: int = -1

    def after(self, ids: tuple[str, str], offset: int, next_offset: int) -> FoldedSince:
        """What holds after a checkpoint from `offset` to `next_offset` that was folded for these two.

        >>> one = FoldedSince().after(("a", "b"), 10, 20)
        >>> one.after(("b", "a"), 20, 30)
        FoldedSince(ids=('a', 'b'), since=10, until=30)
        >>> one.after(("a", "b"), 25, 30).since  # somebody committed 20 to 25 for one of them only
        25
        """
        pair = tuple(sorted(ids))
        whole = pair == self.ids and self.until == offset
        return FoldedSince(pair, self.since if whole else offset, next_offset)

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, blob: bytes | None) -> FoldedSince:
        """Nothing for bytes that cannot be read."""
        try:
            return msgspec.msgpack.decode(blob, type=cls) if blob else cls()
        except (msgspec.DecodeError, ValueError) as error:
            log.warning("note of two baselines set aside", extra={"why": str(error)})
            return cls()


def folded_key(secrets: Secrets, tenant: str, model: str) -> ClientKey:
    """The client under which `FoldedSince` of a model is kept."""
    return ClientKey(tenant, model, secrets.client_hash(tenant, IDENTITY))


class CellFolded(NamedTuple):
    """One profile cell under two baselines.

    offset  up to which the cell is folded; missed: offsets since the second one was added that only one of them has
    whole   whether both were folded without a break up to now
    """

    cell: str
    offset: int
    missed: int
    whole: bool


def folded_cells(store: ProfileStore, secrets: Secrets, tenant: str, stored: StoredBaselines) -> list[CellFolded]:
    """Each profile cell, and whether it is folded for both baselines. Raises Unavailable."""
    key, pair = folded_key(secrets, tenant, stored.model), tuple(sorted((stored.live, stored.beside)))
    found = []
    for cell in store.cells():
        shards = store.shards(cell, [key])
        note = FoldedSince.from_bytes(shards.fields.get(key, {}).get(FIELD))
        start, offset = stored.starts.get(cell, 0), shards.offset
        both = note.ids == pair and note.until == offset
        missed = max(0, (note.since if both else offset) - start)
        found.append(CellFolded(cell, offset, missed, both or offset == start))
    return found


# ----------------------------------------------------------------------------------------------------- following


def stored_baselines(store: OperatorStore, tenant: str) -> dict[str, StoredBaselines]:
    """Model → what the operator cell says of its baselines. Raises Unavailable, Refused."""
    found = {}
    for entry in store.operator_entries(KIND, tenant)[1]:
        try:
            found[entry.key] = unpacked(entry, StoredBaselines)
        except CorruptState as error:
            raise Refused(f"baselines of model {entry.key}: {error}") from error
    return found


@dataclass(slots=True)
class BaselinesInForce:
    """The baselines that a process uses, by model: `live` and `beside` are changed in place when the operator cell says so.

    configured  those of the settings, in force for a model of which the operator cell says nothing
    live        at first a copy of those
    """

    configured: Mapping[str, Baseline]
    live: dict[str, Baseline]
    secrets: Secrets
    tenant: str
    clock: Callable[[], float] = time.monotonic
    beside: dict[str, Baseline] = field(default_factory=dict)
    _said: dict[str, StoredBaselines] = field(default_factory=dict)
    _known: dict[tuple[str, str], Baseline] = field(default_factory=dict)
    _looked_s: float | None = None

    def changed(self, store: OperatorStore) -> tuple[dict[str, Baseline], dict[str, Baseline]] | None:
        """Look at the entry, at most once in `FOLLOW_S`; `live` and `beside` if one of them is another now.

        Raises Unavailable, Refused.
        """
        now_s = self.clock()
        if self._looked_s is not None and now_s - self._looked_s < FOLLOW_S:
            return None
        changed = self.refresh(store)
        self._looked_s = now_s
        return (self.live, self.beside) if changed else None

    def follow_for_reading(self, store: OperatorStore) -> None:
        """As `changed`, for a process that only shows: it goes on with what it has while the store or a file cannot be read."""
        try:
            self.changed(store)
        except (Unavailable, Refused) as error:
            log.warning("baselines not looked at", extra={"why": str(error)})

    def refresh(self, store: OperatorStore) -> bool:
        """Read the entry now. Raises Unavailable, Refused: then nothing is changed."""
        said = {m: one for m, one in stored_baselines(store, self.tenant).items() if m in self.configured}
        if said == self._said:
            return False
        live = dict(self.configured)
        beside = {}
        for model, one in said.items():
            live[model] = self._baseline(store, model, one.live)
            if one.beside:
                beside[model] = self._baseline(store, model, one.beside)
        before = self._ids()
        for mine, new in ((self.live, live), (self.beside, beside)):
            mine.update(new)
            for model in set(mine) - set(new):
                del mine[model]
        self._said = said
        for model, now in live.items():
            if now.id != self.configured[model].id:
                log.warning(
                    "another baseline than that of the settings is live",
                    extra={"model": model, "live": now.id, "configured": self.configured[model].id},
                )
        return self._ids() != before

    def _ids(self) -> list[dict[str, str]]:
        return [{model: one.id for model, one in mine.items()} for mine in (self.live, self.beside)]

    def _baseline(self, store: OperatorStore, model: str, baseline_id: str) -> Baseline:
        if self.configured[model].id == baseline_id:
            return self.configured[model]
        known = self._known.get((model, baseline_id))
        if known is None:
            try:
                known = read_baseline(stored_file(store, self.tenant, self.secrets, model, baseline_id), embedder_of)
            except DetectorError as error:
                raise Refused(f"baseline {baseline_id} of model {model}: {error}") from error
            self._known[model, baseline_id] = known
        return known
