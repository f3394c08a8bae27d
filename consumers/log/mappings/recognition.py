"""Recognition: finds the preset that fits a log.

Rules:
* A preset fits a record when every path of its `recognise` leads to a value, and to one of the given values where it gives some. Most
  records must fit. Among several presets, the one with more conditions is chosen.
* A CSV file is recognised by its lines: each has as many cells as the first line has names.
* A log that fits no preset gets a mapping that is proposed from its field names (proposals.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from consumers.log.mappings import bodies
from consumers.log.mappings.fields import ConditionTest
from consumers.log.mappings.mapping import Condition, LogMapping, ReadSpec, preset, presets
from consumers.log.mappings.proposals import Recognised, Sample, Sure, proposal, propose, views_of

MOST_SAMPLED = 500
ENOUGH = 0.5
"""Share of the records that must fit."""
NATIVE_INPUTS = frozenset(("features", "embedding", "text", "messages"))
LETTER_KEYS = frozenset(("place", "offset", "reason", "detail", "sha256", "head"))
DELIMITERS = (",", ";", "\t", "|")

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def recognise(sample: Sample) -> Recognised:
    """Say what the first records of a log are.

    Parameters
    ----------
    sample
        Records and where they come from, in their order; `MOST_SAMPLED` are looked at.
    """
    sample = sample[:MOST_SAMPLED]
    if not sample:
        return Recognised("unknown", "unknown", why=("the log is empty",))
    n = len(sample)
    letters = sum(_keys(value) >= LETTER_KEYS for value, _ in sample)
    if letters > ENOUGH * n:
        return Recognised(
            "dead-letters", "certain", why=(f"{letters:,} of {n:,} records are dead letters of QueryWarden",)
        )
    native = sum(is_native(value) for value, _ in sample)
    if native > ENOUGH * n:
        return Recognised(
            "native", _sure(native / n), why=(f"{native:,} of {n:,} records have an input and a prediction",)
        )
    fits = {mapping.name: fitting(mapping, sample) for mapping in presets() if _conditions(mapping)}
    best = max(fits, key=lambda name: (round(fits[name], 2), _conditions(preset(name))))
    if fits[best] > ENOUGH:
        return Recognised(
            best, _sure(fits[best]), preset(best), (f"{fits[best]:.0%} of {n:,} records have its fields",)
        )
    table = _table(sample)
    if table is not None:
        return table
    return propose(sample)


def is_native(value: bytes) -> bool:
    """Whether a record has an input and a prediction, or a client, under the names of the native event."""
    keys = _keys(value)
    return bool(keys & NATIVE_INPUTS) and bool(keys & {"prediction", "client_id"})


def fitting(mapping: LogMapping, sample: Sample) -> float:
    """Share of some records that have what tells a mapping's source."""
    test = ConditionTest(Condition(equal=mapping.recognise.equal, have=mapping.recognise.have))
    return sum(any(map(test.holds, views)) for views in views_of(mapping, sample)) / max(len(sample), 1)


def _conditions(mapping: LogMapping) -> int:
    return len(mapping.recognise.have) + len(mapping.recognise.equal)


def _sure(share: float) -> Sure:
    return "certain" if share > 0.9 else "likely"


def _keys(value: bytes) -> frozenset[str]:
    try:
        return frozenset(_object.decode(value))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return frozenset()


# ------------------------------------------------------------------------------------------------------------- tables


def _table(sample: Sample) -> Recognised | None:
    """A CSV file: every line has as many cells as the first, whose cells are names; None: it is none."""
    lines = [value.decode("utf-8", "replace").rstrip("\r\n") for value, _ in sample[:50]]
    if lines[0].lstrip()[:1] in ("{", "["):
        return None
    for delimiter in DELIMITERS:
        widths = [len(bodies.line(text, delimiter)) for text in lines]
        names = [name.strip() for name in bodies.line(lines[0], delimiter)]
        named = (
            len(names) > 1
            and all(isinstance(bodies.cell(name), str) for name in names)
            and len(set(names)) == len(names)
        )
        if named and widths.count(len(names)) > 0.9 * len(widths):
            return _of_table(names, delimiter, sample)
    return None


def _of_table(names: Sequence[str], delimiter: str, sample: Sample) -> Recognised:
    base = preset("csv")
    read = ReadSpec(format="csv", delimiter=delimiter)
    known = {place.path for place in base.client.paths} & set(names)
    if known and set(base.time.paths) & set(names) and set(base.answer.paths) & set(names):
        mapping = msgspec.structs.replace(base, read=read)
        return Recognised("csv", "certain", mapping, (f"{len(names)} columns with the names of the preset csv",))
    lines = [bodies.line(value.decode("utf-8", "replace"), delimiter) for value, _ in sample[1:]]
    rows = [bodies.columnar([bodies.cell(text) for text in cells], names) for cells in lines]
    found = proposal(rows)
    proposed = None if found.mapping is None else msgspec.structs.replace(found.mapping, read=read)
    return Recognised(found.format, found.sure, proposed, (f"CSV with {len(names)} columns", *found.why))
