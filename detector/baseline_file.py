"""The file of a baseline: written from a baseline, and read from bytes that nobody vouches for.

Format (docs/formats.md): ``QWBL``, format version (u16), header length (u32), JSON header, raw little-endian arrays in the order of the
header, SHA-256 of everything before it.

Rules:

* No pickle, no archive: loading reads numbers.
* Shapes, indices and ranges are checked on loading, because compiled kernels trust them and check nothing.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.baseline import Baseline
from detector.calibration import (
    CHANGE_KINDS,
    NO_CHANGES,
    NO_PATCHES,
    UNKNOWN_CHANGE,
    Calibration,
    FinalExcess,
    Persona,
    Tools,
)
from detector.errors import CorruptBaseline
from detector.exposure import EARLIER, REGRESSORS, Estimator
from detector.features import ARRAYS, DISTANCE_BINS, MEASURES, REGIONS, Column, FeatureMap, Schema
from detector.patches import KEPT, UNKNOWN
from detector.signals import SIGNALS, TABLE_VERSION
from detector.templates import KEPT as TEMPLATES_KEPT
from detector.templates import HonestTemplates
from detector.text import TEXT_VERSION, Embedder, Meaning, TextEncoder, Unbound
from detector.trees import Trees

MAGIC = b"QWBL"
FORMAT = 6
_FRONT = struct.Struct("<4sHI")
_TREE_ARRAYS = ("roots", "feature", "threshold", "left", "right", "value")
_CALIBRATION_ARRAYS = ("lifetime_maxima", "scale", "ordered", "free", "rehearsal_bound")
_TOOL_ARRAYS = ("lifetime_maxima", "final_values")
_FINAL_ARRAYS = ("distinct", "excess")
_PATCHES, _CHANGES = "final.patches", "final.changes"
_TEMPLATES, _SLOPES = "final.templates", "final.slopes"
"""Files of earlier versions lack them."""
_ESTIMATOR_ARRAYS = ("weights", "errors", "sizes", "usual")
_TYPES = ("<f8", "<f4", "<i8", "<i4", "<i2")
_OF_TYPE = {"start": "<i8", "category_counts": "<i8", "code_category": "<i8", "neighbours": "<f4", "region_of": "<i2"}
"""Types of a map's arrays; all others are float64."""
_STORED_NAMES = {
    "region_of": "cell_of",
    "region_at": "cell_at",
    "region_share": "cell_share",
    "common_value": "link_mode",
    "agreement_bits": "link_bits",
    "category_counts": "levels_of",
    "lifetime_maxima": "lives",
    "final_values": "ends",
    "rehearsal_bound": "reach",
}
"""Arrays that the file keeps under an older name."""
_UNBOUNDED = ("levels", "margin_levels")


def pack_baseline(baseline: Baseline) -> bytes:
    """Return the file of a baseline."""
    arrays: list[tuple[str, NDArray[Any]]] = [(f"map.{_stored(name)}", getattr(baseline.map, name)) for name in ARRAYS]
    for tree, trees in sorted(baseline.map.trees.items()):
        arrays += [(f"trees.{tree}.{name}", getattr(trees, name)) for name in _TREE_ARRAYS]
    encoder = baseline.map.schema.encoder
    if encoder is not None:
        arrays += [("text.rarity", encoder.rarity), ("text.domain", encoder.domain)]
        if encoder.meaning is not None:
            arrays += [(f"text.meaning.{name}", array) for name, array in encoder.meaning.arrays.items()]
    arrays += [(f"nulls.{_stored(name)}", getattr(baseline.calibration, name)) for name in _CALIBRATION_ARRAYS]
    arrays += [(f"tools.{_stored(name)}", getattr(baseline.calibration.tools, name)) for name in _TOOL_ARRAYS]
    for whose, final in (("final", baseline.calibration.final), ("tools.final", baseline.calibration.tools.final)):
        arrays += [(f"{whose}.{name}", getattr(final, name)) for name in _FINAL_ARRAYS]
    if len(baseline.calibration.patches):
        arrays.append((_PATCHES, baseline.calibration.patches))
    if len(baseline.calibration.changes):
        arrays.append((_CHANGES, baseline.calibration.changes))
    if len(baseline.calibration.templates):
        templates = baseline.calibration.templates
        arrays += [(_TEMPLATES, templates.hashes), (_SLOPES, templates.slopes)]
    for i, persona in enumerate(baseline.calibration.personas):
        arrays += [(f"persona.{i}.ordered", persona.ordered), (f"persona.{i}.free", persona.free)]
    if baseline.estimator is not None:
        arrays += [(f"extraction.{name}", getattr(baseline.estimator, name)) for name in _ESTIMATOR_ARRAYS]
    header = {
        "model_id": baseline.model_id,
        "map_id": baseline.map_id,
        "nulls_version": baseline.calibration_version,
        "signals_version": TABLE_VERSION,
        "schema": {k: v for k, v in asdict(replace(baseline.map.schema, encoder=None)).items() if k != "encoder"},
        "near": baseline.map.near,
        "link_level": baseline.map.agreement_level,
        "misfit_allowance": baseline.map.misfit_allowance,
        "bias": {name: trees.bias for name, trees in sorted(baseline.map.trees.items())},
        "nulls": {
            "distinct": baseline.calibration.distinct,
            "days": baseline.calibration.days,
            "calibrated": baseline.calibration.calibrated,
            "simulated": baseline.calibration.simulated,
        },
        "notes": list(baseline.notes),
        "facts": baseline.facts,
        "tools": list(baseline.calibration.tools.kinds),
        "estimator": baseline.estimator is not None,
        "personas": [p.name for p in baseline.calibration.personas],
        **({} if encoder is None else {"text": _text_header(encoder)}),
        "arrays": [[name, _little(a).dtype.str, list(a.shape)] for name, a in arrays],
    }
    text = json.dumps(header, sort_keys=True, allow_nan=False).encode()
    body = _FRONT.pack(MAGIC, FORMAT, len(text)) + text + b"".join(_little(a).tobytes() for _, a in arrays)
    return body + hashlib.sha256(body).digest()


def read_baseline(blob: bytes, embedder_of: Callable[[str], Embedder] = Unbound) -> Baseline:
    """Read the file of a baseline, from anybody.

    Parameters
    ----------
    blob : bytes
        The whole file.
    embedder_of : callable
        What embeds texts, by its identity, for a baseline with sentence embeddings; with the default it can be read, but not encode.

    Raises
    ------
    CorruptBaseline
        In one line, for anything but an undamaged file of this format version and of this table of signals.

    Examples
    --------
    >>> read_baseline(b"rubbish")
    Traceback (most recent call last):
        ...
    detector.errors.CorruptBaseline: not a QueryWarden baseline
    """
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
        return _from_parts(header, arrays, embedder_of)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise CorruptBaseline(f"the baseline's content is inconsistent: {said}") from error


def _from_parts(
    header: dict[str, Any], arrays: dict[str, NDArray[Any]], embedder_of: Callable[[str], Embedder]
) -> Baseline:
    raw = header["schema"]
    schema = Schema(
        columns=tuple(Column(**{**c, "categories": tuple(c["categories"])}) for c in raw["columns"]),
        input_form=raw["input_form"],
        named=raw["named"],
        task=raw["task"],
        labels=tuple(raw["labels"]),
        encoder=_encoder(header, arrays, embedder_of),
    )
    if schema.of_texts != (schema.encoder is not None):
        raise ValueError("a text encoder without texts, or texts without an encoder")
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
    calibration = Calibration(
        **{name: arrays[f"nulls.{_stored(name)}"] for name in _CALIBRATION_ARRAYS},
        distinct=float(header["nulls"]["distinct"]),
        days=float(header["nulls"]["days"]),
        calibrated=bool(header["nulls"]["calibrated"]),
        personas=tuple(
            Persona(str(name), arrays[f"persona.{i}.ordered"], arrays[f"persona.{i}.free"])
            for i, name in enumerate(header["personas"])
        ),
        tools=Tools(
            tuple(map(str, header["tools"])),
            **{name: arrays[f"tools.{_stored(name)}"] for name in _TOOL_ARRAYS},
            final=_final("tools.final", arrays),
        ),
        final=_final("final", arrays),
        simulated=_simulated(header["nulls"], len(arrays[f"nulls.{_stored('lifetime_maxima')}"])),
        patches=arrays.get(_PATCHES, NO_PATCHES),
        changes=arrays.get(_CHANGES, NO_CHANGES),
        templates=HonestTemplates(arrays[_TEMPLATES], arrays[_SLOPES]) if _TEMPLATES in arrays else HonestTemplates(),
    )
    _check_calibration(calibration)
    facts = {str(name): float(value) for name, value in header["facts"].items()}
    estimator = None
    if header["estimator"]:
        estimator = Estimator(**{name: arrays[f"extraction.{name}"] for name in _ESTIMATOR_ARRAYS})
        _check_estimator(estimator, feature_map)
    new = Baseline(
        str(header["model_id"]), feature_map, calibration, tuple(map(str, header["notes"])), facts, estimator
    )
    if new.map_id != header["map_id"] or new.calibration_version != header["nulls_version"]:
        raise CorruptBaseline("the baseline does not match its own identity")
    return new


def _text_header(encoder: TextEncoder) -> dict[str, Any]:
    text: dict[str, Any] = {"version": TEXT_VERSION, "bias": encoder.bias}
    if encoder.meaning is not None:
        text["meaning"] = {"embedder": encoder.meaning.embedder.identity, "bias": encoder.meaning.bias}
    return text


def _encoder(
    header: dict[str, Any], arrays: dict[str, NDArray[Any]], embedder_of: Callable[[str], Embedder]
) -> TextEncoder | None:
    if "text" not in header:
        return None
    if header["text"]["version"] != TEXT_VERSION:
        raise ValueError(
            f"its text encoder has version {header['text']['version']}; this QueryWarden has version {TEXT_VERSION}: fit it again"
        )
    told = header["text"].get("meaning")
    meaning = None
    if told is not None:
        center, axes, weights = (arrays[f"text.meaning.{name}"] for name in ("center", "axes", "domain"))
        meaning = Meaning(embedder_of(str(told["embedder"])), center, axes, weights, float(told["bias"]))
    encoder = TextEncoder(arrays["text.rarity"], arrays["text.domain"], float(header["text"]["bias"]), meaning)
    encoder.check()
    return encoder


def _final(whose: str, arrays: dict[str, NDArray[Any]]) -> FinalExcess:
    return FinalExcess(**{name: arrays[f"{whose}.{name}"] for name in _FINAL_ARRAYS})


def _stored(name: str) -> str:
    """Name of an array in the file."""
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


def _simulated(nulls: dict[str, Any], clients: int) -> int:
    """Simulated clients of a calibration. Older files hold real ones alone or simulated ones alone."""
    return int(nulls.get("simulated", 0 if nulls["calibrated"] else clients))


def _no_number(name: str) -> float:
    raise ValueError(f"{name} in the header")


def _refuse(faults: Iterable[tuple[bool, str]]) -> None:
    for found, fault in faults:
        if found:
            raise ValueError(fault)


def _check_map(fmap: FeatureMap) -> None:
    """Types and shapes must agree, and no index may leave its array: compiled kernels trust them and check nothing."""
    columns = fmap.schema.columns
    category_counts = fmap.schema.category_counts
    width = np.maximum(category_counts, 1)
    d, m, r = len(columns), fmap.basis.shape[1], fmap.neighbours.shape[1]
    w = min(m, 32) if fmap.wide else d
    k = len(fmap.margin_levels)
    want = {
        "center": (d,), "scale": (d,), "start": (d,), "category_counts": (d,), "lattice": (d,), "hash_grain": (d,),
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
            (
                bool(np.any(fmap.category_counts != category_counts) or np.any(fmap.start != start)),
                "columns do not fit the schema",
            ),
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


def _check_calibration(calibration: Calibration) -> None:
    g, h, s = len(calibration.lifetime_maxima), len(calibration.ordered), len(SIGNALS)
    want = {"lifetime_maxima": ("<f4", (g, s)), "scale": ("<f8", (s,)), "ordered": ("<f8", (h,)), "free": ("<f8", (h,))}
    for name, (kind, shape) in want.items():
        array = getattr(calibration, name)
        _refuse(
            (
                (
                    array.shape != shape or array.dtype != kind,
                    f"nulls: {_stored(name)} has shape {array.shape}, not {shape}",
                ),
                (
                    not np.isfinite(array).all() or bool(np.any(array < 0)),
                    f"nulls: {_stored(name)} holds what is no mass",
                ),
            )
        )
    r = len(calibration.tools.kinds)
    for array in (calibration.tools.lifetime_maxima, calibration.tools.final_values):
        _refuse(
            (
                (
                    len(array) != r or (r > 0 and array.shape != (r, s)) or array.dtype != "<f8",
                    f"tools: shape {array.shape}, not {(r, s)}",
                ),
                (not np.isfinite(array).all() or bool(np.any(array < 0)), "tools: what is no mass"),
            )
        )
    _check_final(calibration.final, g, "final")
    patches = calibration.patches
    _refuse(
        (
            (
                len(patches) not in (0, g) or patches.shape[1:] != (KEPT,) or patches.dtype != "<i8",
                f"final: patches have shape {patches.shape}, not {(g, KEPT)}",
            ),
            (bool(np.any(patches < UNKNOWN)), "final: patches hold what is no hash"),
        )
    )
    changes = calibration.changes
    _refuse(
        (
            (
                len(changes) not in (0, g) or changes.shape[1:] != (len(CHANGE_KINDS),) or changes.dtype != "<f4",
                f"final: changes have shape {changes.shape}, not {(g, len(CHANGE_KINDS))}",
            ),
            (
                not np.isfinite(changes).all() or bool(np.any((changes < 0) & (changes != UNKNOWN_CHANGE))),
                "final: changes hold what is no change",
            ),
        )
    )
    _check_templates(calibration.templates, g)
    _check_final(calibration.tools.final, r, "tools: final")
    pseudo_clients = calibration.tools.pseudo_clients(g)
    # Older calibrations on simulated clients alone have no pseudo-clients.
    alone = calibration.simulated == g and h == g
    _refuse(
        (
            (h != g + pseudo_clients and not alone, f"nulls: {h} maxima of {g} clients and {pseudo_clients} tools"),
            (not 0 <= calibration.simulated <= g, f"nulls: {calibration.simulated} simulated clients of {g}"),
            (calibration.calibrated and calibration.simulated > 0, "nulls: calibrated on simulated clients"),
        )
    )
    for persona in calibration.personas:
        for array in (persona.ordered, persona.free):
            wrong = array.shape != persona.ordered.shape or array.ndim != 1 or array.dtype != "<f8" or not len(array)
            _refuse(
                (
                    (wrong, f"persona {persona.name!r} has no lives of its own"),
                    (not np.isfinite(array).all() or bool(np.any(array < 0)), f"persona {persona.name!r}: no mass"),
                )
            )
    bound = calibration.rehearsal_bound
    _refuse(
        (
            (
                bound.shape not in ((0,), (s,)) or bound.dtype != "<f8",
                f"nulls: reach has shape {bound.shape}, not {(s,)}",
            ),
            (not bool(np.all(bound > 0)), "nulls: a reach that is not positive"),
            (bool(np.any(calibration.scale <= 0)), "nulls: a scale that is not positive"),
            (
                not 0 <= calibration.distinct < np.inf or not 0 <= calibration.days < np.inf,
                "nulls: lives without a length",
            ),
        )
    )


def _check_templates(templates: HonestTemplates, clients: int) -> None:
    """Rows of as many clients, or of none."""
    n, of_each = len(templates.hashes), templates.slopes
    wrong = n not in (0, clients) or templates.hashes.shape[1:] != (TEMPLATES_KEPT,) or templates.hashes.dtype != "<i8"
    _refuse(
        (
            (wrong, f"final: templates have shape {templates.hashes.shape}, not {(clients, TEMPLATES_KEPT)}"),
            (bool(np.any(templates.hashes < UNKNOWN)), "final: templates hold what is no hash"),
            (of_each.shape != (n,) or of_each.dtype != "<f8", f"final: slopes have shape {of_each.shape}, not {(n,)}"),
            (not np.isfinite(of_each).all(), "final: slopes hold what is no number"),
        )
    )


def _check_final(final: FinalExcess, clients: int, whose: str) -> None:
    """Rows of as many clients, or of none: a calibration that cannot judge groups."""
    n = len(final.distinct)
    want = {"distinct": ("<f8", (n,)), "excess": ("<f4", (n, len(SIGNALS)) if n else final.excess.shape)}
    _refuse(((n not in (0, clients), f"{whose}: {n} rows of {clients} clients"),))
    for name, (kind, shape) in want.items():
        array = getattr(final, name)
        _refuse(
            (
                (array.shape != shape or array.dtype != kind, f"{whose}: {name} has shape {array.shape}, not {shape}"),
                (not np.isfinite(array).all() or bool(np.any(array < 0)), f"{whose}: {name} holds what is no count"),
            )
        )


def _check_estimator(estimator: Estimator, feature_map: FeatureMap) -> None:
    b = len(estimator.sizes)
    known = EARLIER if len(estimator.weights) == EARLIER else len(REGRESSORS)
    want = {"weights": (known,), "errors": (b, 2), "sizes": (b,), "usual": (feature_map.classes,)}
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
