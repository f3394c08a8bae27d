"""Pure functions of the production classes, each worked out once a process: forty scripts come back in every seed.

Rules:

* Only a function whose answer follows from its arguments' bytes alone, and whose answer nobody changes, is remembered. What is
  stateful – folds, caches, claims, commits, decisions – is worked out anew in every process of every seed.
* It changes nothing: `test_simulation.py` runs seeds with and without it, and their traces and stored bytes are the same.
* At most `MOST` answers of each are kept, those that were asked for last: a soak does not grow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from consumers.detect import step
from consumers.log import Records
from consumers.log.formats import NativeFormat
from consumers.records import client
from consumers.records.spans import Fields
from consumers.secrets import Secrets
from detector.baseline import Baseline
from detector.features import FeatureMap
from detector.profile import Profile
from detector.profile_columns import ProfileColumns
from detector.profile_table import ProfileTable
from detector.query import ClientKey, QueryBatch

MOST = 6_000
CAPACITY = 8
"""Clients that a cell's table has room for at first: a script has no more; the production default of 64 is mostly zeros to clear."""

_undo: list[Callable[[], None]] = []


def remember(feature_map: FeatureMap) -> None:
    """From now on; `feature_map`: the only one there is."""
    if _undo:
        return
    _once(FeatureMap, "measure", _of_batch)
    _once(NativeFormat, "decode", _of_records)
    _once(Profile, "from_bytes", lambda blob, shape: (blob, shape))
    _once(Secrets, "seal", lambda self, text, tenant: (text, tenant))
    _once(Secrets, "unseal", lambda self, sealed, tenant: (sealed, tenant))
    _once(client, "_profile", _of_shards)
    _once(client, "profiles_in_force", _of_clients)
    _once(step, "assess_columns", _of_profiles)
    # each process of each seed asks for these anew
    for name in ("map_id", "code_dtype"):
        _set(FeatureMap, name, property(functools.partial(_known, getattr(feature_map, name))))
    _set(ProfileTable.__init__, "__defaults__", (CAPACITY, 0.0))


def forget() -> None:
    """As if `remember` had never been called."""
    while _undo:
        _undo.pop()()


def _set(owner: object, name: str, value: object) -> None:
    held = vars(owner)[name] if name in vars(owner) else getattr(owner, name)
    _undo.append(lambda: setattr(owner, name, held))
    setattr(owner, name, value)


def _once(owner: object, name: str, key: Callable[..., Hashable]) -> None:
    work_out = getattr(owner, name)
    recent: dict[Hashable, tuple[Any, Any]] = {}
    older: dict[Hashable, tuple[Any, Any]] = {}

    @functools.wraps(work_out)
    def remembered(*given: Any, **named: Any) -> Any:
        nonlocal recent, older
        at = key(*given, **named)
        found = recent.get(at)
        if found is None:
            if len(recent) >= MOST // 2:
                recent, older = {}, recent
            # with the arguments: an `id` in a key stays that of the same object
            found = recent[at] = older.get(at) or (work_out(*given, **named), given)
        return found[0]

    _set(owner, name, staticmethod(remembered) if isinstance(vars(owner)[name], classmethod) else remembered)


def _of_batch(self: FeatureMap, batch: QueryBatch, key: bytes) -> Hashable:
    marks = batch.misfit.tobytes(), batch.salt.tobytes()
    return batch.inputs.tobytes(), batch.labels.tobytes(), batch.probabilities.tobytes(), *marks, key


def _of_records(self: NativeFormat, records: Records) -> Hashable:
    refused = tuple(records.refused.items())
    return records.cell, records.offsets.tobytes(), tuple(records.values), refused, tuple(records.places)


def _of_shards(key: ClientKey, shards: Fields, baseline: Baseline) -> Hashable:
    return key, tuple((cell, *fields.items()) for cell, fields in shards.items()), id(baseline)


def _of_clients(clients: Sequence[Fields], baseline: Baseline, damaged: object) -> Hashable:
    shards = tuple(tuple((cell, *fields.items()) for cell, fields in client.items()) for client in clients)
    return shards, id(baseline)


def _of_profiles(
    profiles: ProfileColumns, baseline: Baseline, shards: Sequence[int], personas: Sequence[str], held: Sequence[bool]
) -> Hashable:
    return id(profiles), id(baseline), tuple(shards), tuple(personas), tuple(held)


def _known(value: object, of: FeatureMap) -> object:
    return value
