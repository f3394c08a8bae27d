"""The baseline of one model: feature map and nulls, fitted from a reference and honest traffic, and its file.

File format (docs/formats.md): ``QWBL``, format version (u16), header length (u32), JSON header, raw little-endian arrays in the
order of the header, SHA-256 of all before. No pickle, no archive: loading reads numbers and checks them. The file carries

* ``map_id``: identity of the feature map; profiles of another map are not mixed with this one's;
* ``nulls_version``: identity of the nulls; new nulls keep profiles and restart their marks.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.calibration import NO_TOOLS, UNREHEARSED, Nulls, Persona, Tail, Tools, implausible, scale_of
from detector.discriminators import Trees
from detector.errors import CorruptBaseline, UnfittedModel
from detector.extraction import NAMES, Estimator
from detector.features import ARRAYS, DISTANCE_BINS, MEASURES, REGIONS, Column, FeatureMap, Schema
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.signal_table import SignalTable
from detector.signals import (
    BY_ANSWER,
    FLOOR,
    FREE,
    FUSED,
    MISFIT,
    SIGNALS,
    TABLE_VERSION,
    Statistics,
    fuse,
    masses,
    measure,
)

MAGIC = b"QWBL"
FORMAT = 5
_FRONT = struct.Struct("<4sHI")
_TREE_ARRAYS = ("roots", "feature", "threshold", "left", "right", "value")
_NULL_ARRAYS = ("lives", "scale", "ordered", "free", "reach")
_TOOL_ARRAYS = ("lives", "ends")
_ESTIMATOR_ARRAYS = ("weights", "errors", "sizes", "usual")
_TYPES = ("<f8", "<f4", "<i8", "<i4", "<i2")
_OF_TYPE = {"start": "<i8", "levels_of": "<i8", "code_category": "<i8", "neighbours": "<f4", "region_of": "<i2"}
"""Types of a map's arrays; all others are float64."""
_STORED_NAMES = {
    "region_of": "cell_of",
    "region_at": "cell_at",
    "region_share": "cell_share",
    "common_value": "link_mode",
    "agreement_bits": "link_bits",
}
"""Arrays of a map that the file keeps under an older name."""
_UNBOUNDED = ("levels", "margin_levels")
PUBLIC_KEY = bytes(16)
"""Sampling key of calibration: a baseline must not depend on an installation's secrets."""

ODDEST_CLIENTS_LEFT_OUT = 0.15
HONEST_ODD_SHARE = 0.01
MIN_CLIENTS = 20
MIN_PERSONA_CLIENTS = 5
MS_A_DAY = 86_400_000


@dataclass(frozen=True, slots=True)
class Lives:
    """What a fit made of the clients without a persona: their ids (g), their statistics (g), who has no say in the nulls (g,)."""

    clients: tuple[str, ...]
    statistics: tuple[Statistics, ...]
    left_out: NDArray[np.bool_]

    @property
    def masses(self) -> NDArray[np.float64]:
        """(g, s) lifetime masses."""
        return np.array([s.lifetime for s in self.statistics])


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """Queries of simulated honest tools, and the odd kind that each client of the batch stands for, "" for one that is not odd."""

    queries: QueryBatch
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Baseline:
    """What honest use of one model looks like.

    notes      sentences for people (where the calibration came from, its limits)
    estimator  what a copy made of a client's queries would be worth; None: not rehearsed
    """

    model_id: str
    map: FeatureMap
    nulls: Nulls
    notes: tuple[str, ...] = ()
    facts: dict[str, float] = field(default_factory=dict)
    estimator: Estimator | None = None

    @cached_property
    def map_id(self) -> str:
        return self.map.map_id

    @cached_property
    def nulls_version(self) -> str:
        return self.nulls.version

    @cached_property
    def table(self) -> SignalTable:
        """The signals as the fold needs them, in units of this baseline."""
        return masses(self.nulls.scale, self.nulls.distinct, self.map.misfit_allowance)

    @cached_property
    def ordered(self) -> Tail:
        return Tail.fit(self.nulls.ordered)

    @cached_property
    def free(self) -> Tail:
        return Tail.fit(self.nulls.free)

    @cached_property
    def tails(self) -> tuple[Tail, ...]:
        """The null of each signal by itself."""
        return tuple(Tail.fit(column) for column in self.nulls.lives.T)

    def tail(self, in_order: bool, persona: str = "") -> Tail:
        """The null of the fused score: that of a declared persona, where this baseline knows it, or of all others."""
        return self._personas.get((persona, in_order)) or (self.ordered if in_order else self.free)

    @cached_property
    def _personas(self) -> dict[tuple[str, bool], Tail]:
        known = self.nulls.personas
        return {(p.name, order): Tail.fit(p.ordered if order else p.free) for p in known for order in (True, False)}

    # ------------------------------------------------------------------ fitting

    @classmethod
    def fit(
        cls,
        model_id: str,
        schema: Schema,
        reference: QueryBatch,
        traffic: QueryBatch,
        *,
        real_clients: bool,
        rng: np.random.Generator,
        personas: Mapping[str, str] | None = None,
        rehearsed: Rehearsed | None = None,
    ) -> tuple[Baseline, Lives]:
        """Fit map and nulls; the second result says what was made of each client.

        reference     honest inputs with the model's answers; clients and times don't matter
        traffic       queries of presumably honest clients; the unit of calibration is the client
        real_clients  False when `traffic` was simulated: the nulls are then marked uncalibrated
        personas      client of the traffic → the use that its owner declared; it gets a null of its own
        rehearsed     simulated honest tools: they bound the influence of each client, and the odd ones stand in for what the
                      traffic does not hold; None: no bound, and nobody stands in
        """
        declared = [(personas or {}).get(client, "") for client in traffic.clients]
        seen = np.unique(traffic.who)
        clients = enough_clients([declared[i] for i in seen], "in the traffic")
        feature_map = FeatureMap.fit(schema, reference.inputs, reference.labels, reference.probabilities, rng)
        feature_map.learn_misfits([reference, traffic])
        _settle_levels(feature_map, traffic)
        reach, tools = (UNREHEARSED, NO_TOOLS) if rehearsed is None else _played(feature_map, rehearsed)
        nulls, lives = _calibrate(feature_map, traffic, declared, real_clients, reach, tools)
        notes = [
            f"calibrated on {clients} real clients"
            if real_clients
            else f"UNCALIBRATED: no honest traffic was given; {clients} simulated clients stand in, and nothing is blocked on them"
        ]
        notes += limits_of(nulls)
        if lives.left_out.any():
            notes.append(
                f"left out of the calibration: {int(lives.left_out.sum())} clients, beyond what honest tools reach in rehearsal; "
                "they may be thieves"
            )
        facts = {
            "reference_rows": float(len(reference)),
            "traffic_clients": float(clients),
            "traffic_queries": float(len(traffic)),
            "honest_days": nulls.days,
            "honest_distinct": nulls.distinct,
        }
        return cls(model_id, feature_map, nulls, tuple(notes), facts), lives

    # ------------------------------------------------------------------ bytes

    def to_bytes(self) -> bytes:
        arrays: list[tuple[str, NDArray[Any]]] = [(f"map.{_stored(name)}", getattr(self.map, name)) for name in ARRAYS]
        for tree, trees in sorted(self.map.trees.items()):
            arrays += [(f"trees.{tree}.{name}", getattr(trees, name)) for name in _TREE_ARRAYS]
        arrays += [(f"nulls.{name}", getattr(self.nulls, name)) for name in _NULL_ARRAYS]
        arrays += [(f"tools.{name}", getattr(self.nulls.tools, name)) for name in _TOOL_ARRAYS]
        for i, persona in enumerate(self.nulls.personas):
            arrays += [(f"persona.{i}.ordered", persona.ordered), (f"persona.{i}.free", persona.free)]
        if self.estimator is not None:
            arrays += [(f"extraction.{name}", getattr(self.estimator, name)) for name in _ESTIMATOR_ARRAYS]
        header = {
            "model_id": self.model_id,
            "map_id": self.map_id,
            "nulls_version": self.nulls_version,
            "signals_version": TABLE_VERSION,
            "schema": asdict(self.map.schema),
            "near": self.map.near,
            "link_level": self.map.agreement_level,
            "misfit_allowance": self.map.misfit_allowance,
            "bias": {name: trees.bias for name, trees in sorted(self.map.trees.items())},
            "nulls": {"distinct": self.nulls.distinct, "days": self.nulls.days, "calibrated": self.nulls.calibrated},
            "notes": list(self.notes),
            "facts": self.facts,
            "tools": list(self.nulls.tools.kinds),
            "estimator": self.estimator is not None,
            "personas": [p.name for p in self.nulls.personas],
            "arrays": [[name, _little(a).dtype.str, list(a.shape)] for name, a in arrays],
        }
        text = json.dumps(header, sort_keys=True, allow_nan=False).encode()
        body = _FRONT.pack(MAGIC, FORMAT, len(text)) + text + b"".join(_little(a).tobytes() for _, a in arrays)
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, blob: bytes) -> Baseline:
        """Raises CorruptBaseline, in one line, for anything but an undamaged file of this format version."""
        if len(blob) < _FRONT.size + 32 or blob[:4] != MAGIC:
            raise CorruptBaseline("not a QueryWarden baseline")
        _, version, length = _FRONT.unpack_from(blob)
        if version != FORMAT:
            raise CorruptBaseline(
                f"baseline format version {version}; this QueryWarden reads version {FORMAT}: fit it again"
            )
        if hashlib.sha256(blob[:-32]).digest() != blob[-32:]:
            raise CorruptBaseline("the baseline is damaged: its SHA-256 does not match")
        try:
            header = json.loads(blob[_FRONT.size : _FRONT.size + length], parse_constant=_no_number)
            if header["signals_version"] != TABLE_VERSION:
                raise CorruptBaseline(
                    f"the baseline was fitted for another table of signals, version {header['signals_version']}; "
                    f"this QueryWarden has version {TABLE_VERSION}: fit it again"
                )
            arrays = _read_arrays(blob, _FRONT.size + length, header["arrays"])
            return cls._from_parts(header, arrays)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
            said = " ".join(str(error).split())[:200]
            raise CorruptBaseline(f"the baseline's content is inconsistent: {said}") from error

    @classmethod
    def _from_parts(cls, header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Baseline:
        raw = header["schema"]
        schema = Schema(
            columns=tuple(Column(**{**c, "categories": tuple(c["categories"])}) for c in raw["columns"]),
            input_form=raw["input_form"],
            named=raw["named"],
            task=raw["task"],
            labels=tuple(raw["labels"]),
        )
        feature_map = FeatureMap(
            schema=schema,
            near=float(header["near"]),
            agreement_level=float(header["link_level"]),
            misfit_allowance=float(header["misfit_allowance"]),
            trees={
                name: Trees(bias=float(bias), **{a: arrays[f"trees.{name}.{a}"] for a in _TREE_ARRAYS})
                for name, bias in header["bias"].items()
            },
            **{name: arrays[f"map.{_stored(name)}"] for name in ARRAYS},
        )
        _check_map(feature_map)
        nulls = Nulls(
            **{name: arrays[f"nulls.{name}"] for name in _NULL_ARRAYS},
            distinct=float(header["nulls"]["distinct"]),
            days=float(header["nulls"]["days"]),
            calibrated=bool(header["nulls"]["calibrated"]),
            personas=tuple(
                Persona(str(name), arrays[f"persona.{i}.ordered"], arrays[f"persona.{i}.free"])
                for i, name in enumerate(header["personas"])
            ),
            tools=Tools(tuple(map(str, header["tools"])), **{name: arrays[f"tools.{name}"] for name in _TOOL_ARRAYS}),
        )
        _check_nulls(nulls)
        facts = {str(name): float(value) for name, value in header["facts"].items()}
        estimator = None
        if header["estimator"]:
            estimator = Estimator(**{name: arrays[f"extraction.{name}"] for name in _ESTIMATOR_ARRAYS})
            _check_estimator(estimator, feature_map)
        new = cls(str(header["model_id"]), feature_map, nulls, tuple(map(str, header["notes"])), facts, estimator)
        if new.map_id != header["map_id"] or new.nulls_version != header["nulls_version"]:
            raise CorruptBaseline("the baseline does not match its own identity")
        return new


def enough_clients(declared: Sequence[str], where: str) -> int:
    """How many clients have no persona ("" in `declared`). Raises UnfittedModel for too few, with or without one."""
    clients = sum(not name for name in declared)
    if clients < MIN_CLIENTS:
        raise UnfittedModel(
            f"{clients} clients{' without a persona' if any(declared) else ''} {where}; "
            f"at least {MIN_CLIENTS} are needed to calibrate by client"
        )
    for name in sorted({name for name in declared if name}):
        own = sum(other == name for other in declared)
        if own < MIN_PERSONA_CLIENTS:
            raise UnfittedModel(f"persona {name}: {own} clients; at least {MIN_PERSONA_CLIENTS} are needed for a null")
    return clients


def limits_of(nulls: Nulls) -> list[str]:
    """Sentences about what the nulls can and can't support."""
    said = []
    if nulls.calibrated and nulls.clients < 100:
        said.append(f"{nulls.clients} clients are too few for a 1 % lifetime budget: the tail beyond them is a model")
    return said + [f"persona {p.name}: calibrated on {len(p.ordered)} clients of its own" for p in nulls.personas]


def _stored(name: str) -> str:
    """What the file calls an array of a map."""
    return _STORED_NAMES.get(name, name)


def _little(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _read_arrays(blob: bytes, at: int, entries: list[tuple[str, str, list[int]]]) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name, dtype, shape in entries:
        if dtype not in _TYPES:
            raise ValueError(f"array {name} of type {dtype}")
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        if count < 0 or at + count * kind.itemsize > len(blob) - 32:
            raise ValueError(f"array {name} reaches beyond the file")
        arrays[name] = np.frombuffer(blob, kind, count, at).reshape(shape).copy()
        at += count * kind.itemsize
    if at != len(blob) - 32:
        raise ValueError("bytes behind the last array")
    return arrays


def _no_number(name: str) -> float:
    raise ValueError(f"{name} in the header")


def _refuse(faults: Iterable[tuple[bool, str]]) -> None:
    for found, fault in faults:
        if found:
            raise ValueError(fault)


def _check_map(fmap: FeatureMap) -> None:
    """Types and shapes must agree, and no index may leave its array: compiled kernels trust them and check nothing."""
    columns = fmap.schema.columns
    levels = np.array([len(c.categories) if c.kind == "categorical" else 0 for c in columns], np.int64)
    width = np.maximum(levels, 1)
    d, m, r = len(columns), fmap.basis.shape[1], fmap.neighbours.shape[1]
    w = min(m, 32) if fmap.wide else d
    k = len(fmap.margin_levels)
    want = {
        "center": (d,), "scale": (d,), "start": (d,), "levels_of": (d,), "lattice": (d,), "hash_grain": (d,),
        "basis": (int(width.sum()), m), "spread": (m,), "neighbours": (m, r), "region_of": (r,), "region_at": (REGIONS, 2),
        "region_share": (REGIONS,), "distance_edges": (DISTANCE_BINS - 1,), "levels": (len(MEASURES), 2), "margin_levels": (k, 2),
        "common_value": (d,), "agreement_bits": (2, d), "code_low": (w,), "code_step": (w,), "code_weight": (w,), "code_category": (w,),
        "donors": (len(fmap.donors), d), "donor_weight": (d,), "misfit_bits": (3, d), "misfit_kinds": (3,),
    }  # fmt: skip
    for name in ARRAYS:
        array, kind = getattr(fmap, name), _OF_TYPE.get(name, "<f8")
        _refuse(
            (
                (array.shape != want[name], f"{name} has shape {array.shape}, not {want[name]}"),
                (array.dtype != kind, f"{name} is of type {array.dtype}, not {kind}"),
                (bool(np.isnan(array).any()), f"{name} holds a value that is no number"),
                (name not in _UNBOUNDED and not np.isfinite(array).all(), f"{name} holds a value that is not finite"),
            )
        )
    bounds = np.array([(c.lower, c.upper, c.grain) for c in columns], np.float64).reshape(d, 3)
    positive = (fmap.hash_grain, fmap.code_step, fmap.scale, fmap.spread)
    regions = (int(fmap.region_of.min(initial=0)), int(fmap.region_of.max(initial=0)))
    start = np.concatenate([[0], np.cumsum(width)[:-1]])
    _refuse(
        (
            (min(d, m, r, k, len(fmap.donors)) < 1, "a map without columns, axes, neighbours or margins"),
            (bool(np.any(fmap.levels_of != levels) or np.any(fmap.start != start)), "columns do not fit the schema"),
            (not np.isfinite(bounds).all() or bool(np.any(bounds[:, 0] > bounds[:, 1])), "a column without bounds"),
            (regions[0] < 0 or regions[1] >= REGIONS, "coverage regions outside the map"),
            (any(bool(np.any(a <= 0)) for a in positive), "a scale that is not positive"),
            (
                not 0 <= fmap.near < np.inf or not np.isfinite(fmap.agreement_level),
                "no distance between parents and strangers",
            ),
        )
    )
    for trees in fmap.trees.values():
        trees.check(d)


def _check_nulls(nulls: Nulls) -> None:
    g, h, s = len(nulls.lives), len(nulls.ordered), len(SIGNALS)
    want = {"lives": ("<f4", (g, s)), "scale": ("<f8", (s,)), "ordered": ("<f8", (h,)), "free": ("<f8", (h,))}
    for name, (kind, shape) in want.items():
        array = getattr(nulls, name)
        _refuse(
            (
                (array.shape != shape or array.dtype != kind, f"nulls: {name} has shape {array.shape}, not {shape}"),
                (not np.isfinite(array).all() or bool(np.any(array < 0)), f"nulls: {name} holds what is no mass"),
            )
        )
    r = len(nulls.tools.kinds)
    for array in (nulls.tools.lives, nulls.tools.ends):
        _refuse(
            (
                (
                    len(array) != r or (r > 0 and array.shape != (r, s)) or array.dtype != "<f8",
                    f"tools: shape {array.shape}, not {(r, s)}",
                ),
                (not np.isfinite(array).all() or bool(np.any(array < 0)), "tools: what is no mass"),
            )
        )
    guests = nulls.tools.guests(g) if nulls.calibrated else 0
    _refuse(((h != g + guests, f"nulls: {h} maxima of {g} clients and {guests} tools"),))
    for persona in nulls.personas:
        for array in (persona.ordered, persona.free):
            wrong = array.shape != persona.ordered.shape or array.ndim != 1 or array.dtype != "<f8" or not len(array)
            _refuse(
                (
                    (wrong, f"persona {persona.name!r} has no lives of its own"),
                    (not np.isfinite(array).all() or bool(np.any(array < 0)), f"persona {persona.name!r}: no mass"),
                )
            )
    reach = nulls.reach
    _refuse(
        (
            (
                reach.shape not in ((0,), (s,)) or reach.dtype != "<f8",
                f"nulls: reach has shape {reach.shape}, not {(s,)}",
            ),
            (not bool(np.all(reach > 0)), "nulls: a reach that is not positive"),
            (bool(np.any(nulls.scale <= 0)), "nulls: a scale that is not positive"),
            (not 0 <= nulls.distinct < np.inf or not 0 <= nulls.days < np.inf, "nulls: lives without a length"),
        )
    )


def _check_estimator(estimator: Estimator, feature_map: FeatureMap) -> None:
    b = len(estimator.sizes)
    want = {"weights": (len(NAMES),), "errors": (b, 2), "sizes": (b,), "usual": (feature_map.classes,)}
    for name, shape in want.items():
        array = getattr(estimator, name)
        _refuse(
            (
                (
                    array.shape != shape or array.dtype != "<f8",
                    f"extraction: {name} has shape {array.shape}, not {shape}",
                ),
                (not np.isfinite(array).all(), f"extraction: {name} holds a value that is not finite"),
            )
        )
    _refuse(((b < 1 or bool(np.any(np.diff(estimator.sizes) <= 0)), "extraction: sizes that don't rise"),))


def _settle_levels(feature_map: FeatureMap, traffic: QueryBatch) -> None:
    """Raise the levels to what honest clients do.

    A reference of some hundred rows says little about its own upper percent, so the level of each measure is raised until one honest
    query in a hundred exceeds it, every client weighing the same and the oddest clients left out (they may be thieves, or tools).
    """
    x = feature_map.complete(traffic.inputs)
    _, residual, distance, _ = feature_map.locate(x)
    measured = feature_map.oddness(x, distance, residual, feature_map.surprise(traffic))
    count = np.bincount(traffic.who, minlength=len(traffic.clients)).astype(float)
    seen = count > 0
    for i, odd in enumerate(measured):
        if odd is None:
            continue
        share = np.bincount(traffic.who, odd > feature_map.levels[i, 0], minlength=len(count)) / np.maximum(count, 1)
        usual = share <= np.quantile(share[seen], 1 - ODDEST_CLIENTS_LEFT_OUT)
        rows = usual[traffic.who]
        only = [odd[rows] if j == i else None for j in range(len(measured))]
        feature_map.raise_levels(only, 1 / count[traffic.who[rows]], HONEST_ODD_SHARE)


def _statistics(feature_map: FeatureMap, queries: QueryBatch) -> list[tuple[str, Profile, Statistics]]:
    """Every client with a query: id, profile, statistics by the very fold that the service uses."""
    table = masses(misfit_allowance=feature_map.misfit_allowance)
    profiles = ProfileTable(feature_map, table, "0" * 16, half_horizon_ms=2**62).of_log(queries, PUBLIC_KEY)
    return [(client, p, measure(p, table)) for client, p in zip(queries.clients, profiles, strict=True) if p.queries]


def _played(feature_map: FeatureMap, rehearsed: Rehearsed) -> tuple[NDArray[np.float64], Tools]:
    """How far honest tools get, (s,), never below a signal's floor, and the odd ones.

    Of a kind that stands in, the reach is that of one that went far, of all others the most that one has. Signals that look at answers
    say nothing, for those of a rehearsal are borrowed from the nearest reference row: their reach is inf, and nobody who stands in has
    any of them. The same holds for misfits: simulated tools fit the schema, and which misfits are honest only the traffic can say.
    """
    judged = FUSED & ~MISFIT & np.array([s.name not in BY_ANSWER for s in SIGNALS])
    kind = dict(zip(rehearsed.queries.clients, rehearsed.kinds, strict=True))
    played = _statistics(feature_map, rehearsed.queries)
    odd = [(kind[client], s) for client, _, s in played if kind[client]]
    lives, ends = (
        np.array([getattr(s, name) for _, s in odd]).reshape(-1, len(SIGNALS)) * judged
        for name in ("lifetime", "value")
    )
    tools = Tools(tuple(k for k, _ in odd), lives, ends)
    most = np.max([FLOOR, *tools.far(), *(s.lifetime for client, _, s in played if not kind[client])], axis=0)
    return np.where(judged, most, np.inf), tools


def _calibrate(
    feature_map: FeatureMap,
    traffic: QueryBatch,
    declared: Sequence[str],
    real_clients: bool,
    reach: NDArray[np.float64] = UNREHEARSED,
    tools: Tools = NO_TOOLS,
) -> tuple[Nulls, Lives]:
    """Lifetime maxima of honest clients; declared: persona of each client of the traffic, "" for none."""
    persona = dict(zip(traffic.clients, declared, strict=True))
    honest = _statistics(feature_map, traffic)
    nulls, left_out = nulls_of(
        [s for _, _, s in honest],
        [persona[client] for client, _, _ in honest],
        distinct=max(p.distinct for _, p, _ in honest),
        days=max(p.last_ms - p.first_ms for _, p, _ in honest) / MS_A_DAY,
        calibrated=real_clients,
        reach=reach,
        tools=tools,
    )
    others = [(client, s) for client, _, s in honest if not persona[client]]
    return nulls, Lives(tuple(c for c, _ in others), tuple(s for _, s in others), left_out)


def nulls_of(
    lives: Sequence[Statistics],
    declared: Sequence[str],
    *,
    distinct: float,
    days: float,
    calibrated: bool,
    reach: NDArray[np.float64],
    tools: Tools,
) -> tuple[Nulls, NDArray[np.bool_]]:
    """Nulls of honest lives, one a client, and which clients without a persona have no say in them.

    declared  each client's persona, "" for none; at least one has none
    calibrated  whether these are real clients; simulated ones all have their say
    reach     (s,) of honest tools in rehearsal, (0,) where there was none
    tools     that were rehearsed: some stand among real clients; simulated ones have tools among them
    """
    maxima = np.array([s.lifetime for s in lives])
    ends = np.array([s.value for s in lives])
    persona = np.array(declared)
    others = persona == ""
    shares = np.array([s.count / np.maximum(s.base, 1.0) for s in lives])
    left_out = implausible(maxima[others], shares[others], reach if calibrated else UNREHEARSED)
    kept = np.flatnonzero(others)[~left_out]
    scale = scale_of(maxima[kept], FLOOR)
    guests = tools.standing_in(scale, FUSED, len(kept)) if calibrated else np.empty(0, np.int64)
    their_maxima, their_ends = (of[guests].reshape(-1, len(SIGNALS)) for of in (tools.lives, tools.ends))
    scale = scale_of(np.vstack([maxima[kept], their_maxima]), FLOOR)
    ordered, free = fuse(maxima, scale, FUSED), fuse(ends, scale, FREE)
    nulls = Nulls(
        lives=maxima[kept].astype(np.float32),
        scale=scale,
        ordered=np.sort(np.concatenate([ordered[kept], fuse(their_maxima, scale, FUSED)])),
        free=np.sort(np.concatenate([free[kept], fuse(their_ends, scale, FREE)])),
        distinct=distinct,
        days=days,
        calibrated=calibrated,
        personas=tuple(
            Persona(str(name), np.sort(ordered[persona == name]), np.sort(free[persona == name]))
            for name in np.unique(persona[~others])
        ),
        reach=reach,
        tools=tools,
    )
    return nulls, left_out
