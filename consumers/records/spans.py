"""The spans of a client over one horizon: which stored spans count, and their merged profile.

Rules:

* Each profile cell keeps at most two spans of a client, named by their first half-horizon window (docs/decisions/0008): ``w:<window>``.
  While a model has two baselines (baselines_in_force.py), each has spans of its own, ``w.<id>:<window>``; those without an id are then
  what was kept before.
* Of each cell the longest span that began at most one window before the newest counts. Older queries count with the faded weight of an
  archive (docs/decisions/0018), as if the client had continued in that cell.
* Spans are merged in the order of the cells' names, so that everybody who computes the result gets the same: detect, an evidence bundle,
  or an auditor who checks one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consumers.errors import CorruptState
from consumers.records.damaged import UnreadableCells
from consumers.store import ProfileStore
from detector.baseline import Baseline
from detector.calibration import CHANGE_KINDS, UNKNOWN_CHANGE
from detector.errors import IncompatibleProfile
from detector.older_profiles import OLDER_FORMATS
from detector.own_change import changes, parts
from detector.profile import Profile
from detector.profile_columns import ProfileColumns
from detector.profile_format import ProfileHead, read_head
from detector.query import ClientKey

Fields = Mapping[str, Mapping[str, bytes]]
"""Profile cell → fields of one client, as the store's shards are."""


SPAN = "w:"
"""Field of a span of a model with one baseline, before its window."""
SPAN_BESIDE = "w."
"""What the field of a span of one of two baselines begins with."""


def span_field(window: int, baseline_id: str = "") -> str:
    """Name the field of a span. baseline_id: where the model has two baselines.

    >>> span_field(1368), span_field(1368, "00ff")
    ('w:1368', 'w.00ff:1368')
    """
    return f"{SPAN_BESIDE}{baseline_id}:{window}" if baseline_id else f"{SPAN}{window}"


def holds_span(field: str) -> bool:
    """Tell the fields of spans, of whatever baseline."""
    return field.startswith((SPAN, SPAN_BESIDE))


def fields_of_baseline(fields: Mapping[str, bytes], baseline_id: str) -> dict[int, bytes]:
    """Return the spans of one baseline by window.

    Without spans of its own these are the spans that name no baseline: whoever reads one refuses it if it is of another map.
    Raises ValueError for a field that names no window.
    """
    own = span_field(0, baseline_id)[:-1]
    prefix = own if any(name.startswith(own) for name in fields) else SPAN
    return {int(name[len(prefix) :]): blob for name, blob in fields.items() if name.startswith(prefix)}


def long_and_short(fields: Mapping[str, bytes], baseline: Baseline) -> list[bytes]:
    """Return the spans of one baseline, at most two: the long one began first; one alone is a life that began within it."""
    blobs = fields_of_baseline(fields, baseline.id)
    return [blobs[start] for start in sorted(blobs)[-2:]]


@dataclass(frozen=True, slots=True)
class Span:
    """One stored profile: the cell that holds it, its first window, its bytes and what they say."""

    cell: str
    window: int
    blob: bytes
    profile: Profile


def fields_of(
    store: ProfileStore, clients: Sequence[ClientKey], unreadable: UnreadableCells | None = None
) -> dict[ClientKey, dict[str, Mapping[str, bytes]]]:
    """What every profile cell holds of some clients, each cell at one offset; cells that hold nothing of a client are left out.

    Raises CorruptState for a cell that cannot be read, which `unreadable` reports.
    """
    found: dict[ClientKey, dict[str, Mapping[str, bytes]]] = {key: {} for key in clients}
    reports = UnreadableCells() if unreadable is None else unreadable
    for cell in store.cells():
        shards = reports.read(cell, "shards", functools.partial(store.shards, cell, clients))
        if shards is None:
            raise CorruptState(f"profile cell {cell}: cannot be read")
        for key, fields in shards.fields.items():
            if fields:
                found[key][cell] = fields
    return found


class OtherMap(IncompatibleProfile):
    """A whole profile, of another feature map."""


def read_span(cell: str, window: int, blob: bytes, baseline: Baseline) -> Span:
    """Raises IncompatibleProfile for bytes that are no profile of this baseline's map, OtherMap where that is all that is wrong."""
    profile = Profile.from_bytes(blob, baseline.shape)
    if profile.map_id != baseline.map_id:
        raise OtherMap(f"a profile of map {profile.map_id}, the baseline's is {baseline.map_id}")
    return Span(cell, window, blob, profile)


def spans_in_force(
    fields: Fields,
    baseline: Baseline,
    damaged: Callable[[str, Exception], None] = lambda cell, error: None,
) -> list[Span]:
    """What counts of each cell; spans of another map do not. damaged: told of bytes that are no profile, which are passed over."""
    found: dict[str, list[Span]] = {}
    for cell, values in sorted(fields.items()):
        try:
            stored = fields_of_baseline(values, baseline.id)
        except ValueError as error:
            damaged(cell, error)
            continue
        for window, blob in sorted(stored.items()):
            try:
                span = read_span(cell, window, blob, baseline)
            except OtherMap:
                continue  # from before the model was fitted anew
            except IncompatibleProfile as error:
                damaged(cell, error)
                continue
            found.setdefault(cell, []).append(span)
    newest = max((span.window for spans in found.values() for span in spans), default=0)
    counting = (_as_of(newest, sorted(spans, key=lambda span: span.window)) for spans in found.values())
    return [span for span in counting if span is not None]


@dataclass(frozen=True, slots=True)
class ProfilesInForce:
    """The merged profiles of some clients. columns: a row each; None: there is none; whose: (n,) the client of each row;
    changes: (n, 4) of each against its own earlier life."""

    columns: ProfileColumns | None
    whose: list[int]
    changes: NDArray[np.float64]


def profiles_in_force(
    clients: Sequence[Fields],
    baseline: Baseline,
    damaged: Callable[[int, str, Exception], None] = lambda client, cell, error: None,
) -> ProfilesInForce:
    """What `together(spans_in_force(…))` says of each client, in columns; a client without a readable profile has no row.

    Clients whose one span has to be merged with nothing are read together; the others one by one, through `Profile`.
    """
    alone = [(i, *found) for i, fields in enumerate(clients) if (found := _alone(fields, baseline)) is not None]
    others = sorted({*range(len(clients))} - {i for i, *_ in alone})
    columns, whose, own = None, list[int](), np.empty((0, len(CHANGE_KINDS)))
    if alone:
        whose, blobs, heads, shorts = (list(column) for column in zip(*alone, strict=True))
        columns, faults = ProfileColumns.read(blobs, heads, baseline.shape, baseline.table)
        own = _changes(columns, shorts, baseline)
        if any(faults):
            others += [i for i, fault in zip(whose, faults, strict=True) if fault]
            sound = [row for row, fault in enumerate(faults) if not fault]
            columns, whose, own = columns.rows(sound), [whose[row] for row in sound], own[sound]
    merged = [(i, together(spans_in_force(clients[i], baseline, functools.partial(damaged, i)))) for i in others]
    profiles = [(i, profile) for i, profile in merged if profile is not None]
    if profiles:
        more = ProfileColumns.of([profile for _, profile in profiles], baseline.table)
        columns = more if columns is None else columns.with_more(more)
        whose += [i for i, _ in profiles]
        own = np.vstack([own, np.full((len(profiles), len(CHANGE_KINDS)), UNKNOWN_CHANGE)])
    return ProfilesInForce(columns, whose, own)


def _changes(
    long: ProfileColumns, shorts: Sequence[tuple[bytes, ProfileHead] | None], baseline: Baseline
) -> NDArray[np.float64]:
    """How much each of n clients differs from its own earlier life. shorts: short spans, None for a client without one."""
    out = np.full((len(shorts), len(CHANGE_KINDS)), UNKNOWN_CHANGE)
    rows = [row for row, short in enumerate(shorts) if short is not None]
    if rows:
        blobs, heads = zip(*(short for short in shorts if short is not None), strict=True)
        short, faults = ProfileColumns.read(blobs, heads, baseline.shape, baseline.table)
        found = changes(*parts(long.rows(rows), short))
        for row, one, fault in zip(rows, found, faults, strict=True):
            if not fault:
                out[row] = one
    return out


def change_of(fields: Fields, baseline: Baseline) -> NDArray[np.float64] | None:
    """Return how much one client differs from its own earlier life, (4,); None where that is not known."""
    return profiles_in_force([fields], baseline).changes[0] if _alone(fields, baseline) is not None else None


def _alone(fields: Fields, baseline: Baseline) -> tuple[bytes, ProfileHead, tuple[bytes, ProfileHead] | None] | None:
    """The long span of a client that was seen in one cell, which counts as it is stored, and the short one, if there is one.

    None where it takes the long way to say.
    """
    if len(fields) != 1:
        return None
    (values,) = fields.values()
    try:
        stored = fields_of_baseline(values, baseline.id)
        heads = {window: read_head(blob, OLDER_FORMATS) for window, blob in stored.items()}
    except (ValueError, IncompatibleProfile):
        return None
    if any(head is None or head.map_id != baseline.map_id for head in heads.values()):
        return None
    first, newest = min(heads, default=0), max(heads, default=0)
    head = heads.get(first)
    if head is None or newest > min(first, head.window) + 1:
        return None
    short = heads[newest] if newest > first else None
    return stored[first], head, None if short is None else (stored[newest], short)


def _as_of(newest: int, spans: Sequence[Span]) -> Span | None:
    """What a cell's spans, long before short, count where the client has reached a later window; None for nothing."""
    long, after = spans[0], spans[1].profile if len(spans) > 1 else None
    profile = long.profile.left_behind(after, newest)
    if profile is long.profile:
        return long
    if not profile.queries and not profile.archive:
        return None
    return Span(long.cell, profile.window, profile.to_bytes(), profile)


def together(spans: Sequence[Span] | Iterable[Span]) -> Profile | None:
    """All spans as one profile; None for none."""
    profiles = [span.profile for span in sorted(spans, key=lambda span: span.cell)]
    return functools.reduce(Profile.merge, profiles) if profiles else None
