"""Indicators for peers as a STIX 2.1 bundle, and the way back. Writing needs the extra ``[stix]``, reading does not.

Rules:

* A bundle holds hashes under a sharing key, times, a confidence, a reason code and ids of MITRE ATLAS; no client id, model, prompt or
  value.
* The hashes are in a property extension of each indicator (`EXTENSION`). Its pattern says the same for tools that show patterns.
* Each indicator carries a tag made with the sharing key over all that is read of it. One that was changed, or made without the key, is
  left out.
* What is read is a stranger's file: it is bounded before it is decoded, and an object that is not as it must be is left out and counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from consumers.alerts.stix import attack_pattern, object_id, observer, stix_library
from consumers.errors import InvalidInput
from consumers.records import odd_contents
from consumers.records.frameworks import TECHNIQUES
from consumers.records.indicators import Indicator
from consumers.records.links import SHAREABLE
from consumers.sharing_keys import SharingKey
from consumers.times import milliseconds, second

EXTENSION = "extension-definition--0b1d7c1e-8a55-4c1f-9a35-5d9d5f0f6b7a"
SCHEMA = "docs/indicators.md of QueryWarden"
MOST_BYTES = 8 << 20
MOST_OBJECTS = 10_000
MOST_HASHES = 64
"""Hashes of one indicator."""

LeftOut = Literal["malformed", "another key", "wrong tag", "expired", "not yet valid", "of another kind", "twice"]
"""Why an object of a bundle was not taken."""

_Text = Annotated[str, msgspec.Meta(max_length=64)]
_KINDS = "|".join(sorted(SHAREABLE | {odd_contents.KIND}))
_Hash = Annotated[str, msgspec.Meta(pattern=rf"^({_KINDS}):[0-9a-f]{{32}}$")]
_IndicatorId = Annotated[str, msgspec.Meta(pattern=r"^indicator--[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


class _Extension(msgspec.Struct):
    key_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    hashes: Annotated[list[_Hash], msgspec.Meta(min_length=1, max_length=MOST_HASHES)]
    reason: _Text
    family: _Text
    techniques: Annotated[list[_Text], msgspec.Meta(max_length=16)]
    tag: _Text


class _Object(msgspec.Struct):
    type: str
    extensions: dict[str, msgspec.Raw] = {}


class _StixIndicator(msgspec.Struct):
    id: _IndicatorId
    valid_from: _Text
    valid_until: _Text
    confidence: Annotated[int, msgspec.Meta(ge=0, le=100)]
    revoked: bool = False


class _Bundle(msgspec.Struct):
    type: Literal["bundle"]
    objects: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MOST_OBJECTS)] = []


_bundle = msgspec.json.Decoder(_Bundle)
_object = msgspec.json.Decoder(_Object)
_indicator = msgspec.json.Decoder(_StixIndicator)
_extension = msgspec.json.Decoder(_Extension)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of a bundle. left_out: why → how many objects."""

    indicators: tuple[Indicator, ...]
    left_out: Mapping[LeftOut, int]


def indicator_id(finding: str, key: SharingKey) -> str:
    """Return the id of the indicator of a finding under a sharing key: the same whenever it is exported."""
    return object_id("indicator", f"{finding}:{key.key_id}")


def bundle_of(indicators: Iterable[Indicator], key: SharingKey, described: Mapping[str, str]) -> str:
    """Return the bundle as JSON text, in a fixed order.

    described  id of an indicator → a sentence about it, that names nobody. Raises ConfigError without the extra.
    """
    stix2 = stix_library()
    listed = sorted(indicators, key=lambda one: one.id)
    if not listed:
        return json.dumps({"type": "bundle", "id": object_id("bundle", "no indicators"), "objects": []}, indent=1)
    us, began = observer(stix2)
    objects: dict[str, Any] = {us.id: us}
    objects[EXTENSION] = stix2.ExtensionDefinition(
        id=EXTENSION, created_by_ref=us.id, created=began, modified=began, name="Keyed hashes of links",
        description="Hashes, under a key that peers share, of what clients that extract a model were seen with",
        schema=SCHEMA, version="1.0.0", extension_types=["property-extension"],
    )  # fmt: skip
    named = {row.id: row for row in TECHNIQUES}
    for one in listed:
        made = _written(stix2, one, key, us.id, described.get(one.id, ""))
        objects[made.id] = made
        for technique in one.techniques:
            if technique not in named:
                continue
            pattern = attack_pattern(stix2, named[technique], us.id, began)
            objects[pattern.id] = pattern
            means = stix2.Relationship(
                id=object_id("relationship", f"{made.id}:{technique}"), relationship_type="indicates", created=made.created,
                modified=made.modified, created_by_ref=us.id, source_ref=made.id, target_ref=pattern.id,
            )  # fmt: skip
            objects[means.id] = means
    names = ",".join(one.id for one in listed)
    return str(stix2.Bundle(id=object_id("bundle", names), objects=list(objects.values())).serialize(pretty=True))


def read_bundle(blob: bytes, keys: Iterable[SharingKey], now_s: float) -> Read:
    """Read the indicators of a bundle that hold now or will. Raises InvalidInput for what is no bundle, or too large."""
    if len(blob) > MOST_BYTES:
        raise InvalidInput(f"indicators: more than {MOST_BYTES:,} bytes")
    try:
        objects = _bundle.decode(blob).objects
    except _UNREADABLE:
        raise InvalidInput(f"indicators: not a STIX bundle of at most {MOST_OBJECTS:,} objects") from None
    known = {key.key_id: key for key in keys}
    taken: dict[str, Indicator] = {}
    left_out: Counter[LeftOut] = Counter()
    for raw in objects:
        try:
            found = _read(raw, known, now_s)
        except _UNREADABLE:
            found = "malformed"
        if isinstance(found, Indicator) and found.id not in taken:
            taken[found.id] = found
        elif found is not None:
            left_out["twice" if isinstance(found, Indicator) else found] += 1
    return Read(tuple(taken.values()), dict(left_out))


def _read(raw: msgspec.Raw, keys: Mapping[str, SharingKey], now_s: float) -> Indicator | LeftOut | None:
    """The indicator in an object, why it is left out, or None for an object that is no indicator. Raises as `_UNREADABLE` says."""
    one = _object.decode(raw)
    if one.type != "indicator":
        return None
    if EXTENSION not in one.extensions:
        return "of another kind"
    stated, said = _indicator.decode(raw), _extension.decode(one.extensions[EXTENSION])
    found = Indicator(
        stated.id, said.key_id, tuple(sorted(set(said.hashes))), stated.confidence, said.reason, said.family,
        tuple(said.techniques), milliseconds(stated.valid_from) // 1000, milliseconds(stated.valid_until) // 1000,
    )  # fmt: skip
    if said.key_id not in keys:
        return "another key"
    if not keys[said.key_id].holds(_said(found), said.tag):
        return "wrong tag"
    if stated.revoked or found.valid_until_s <= now_s:
        return "expired"
    return "not yet valid" if found.valid_from_s > now_s else found


def _said(one: Indicator) -> bytes:
    """All that is read of an indicator, in one form."""
    return msgspec.json.encode(one, order="sorted")


def _written(stix2: Any, one: Indicator, key: SharingKey, us: str, description: str) -> Any:
    pattern = ", ".join(f"'{hashed}'" for hashed in one.hashes)
    return stix2.Indicator(
        id=one.id, created=second(one.valid_from_s), modified=second(one.valid_from_s), created_by_ref=us,
        name="Model extraction", description=description, indicator_types=["malicious-activity"],
        pattern=f"[x-querywarden-link:value IN ({pattern})]", pattern_type="stix",
        valid_from=second(one.valid_from_s), valid_until=second(one.valid_until_s), confidence=one.confidence,
        labels=["model-extraction"],
        extensions={EXTENSION: {
            "extension_type": "property-extension", "key_id": one.key_id, "hashes": list(one.hashes), "reason": one.reason,
            "family": one.family, "techniques": list(one.techniques), "tag": key.tag(_said(one)),
        }},
    )  # fmt: skip
