"""Findings as a STIX 2.1 bundle, for sharing with others. Extra ``[stix]``.

Rules:
* Ids are computed from the findings, so that the same findings give the same bundle.
* A client id is data of a `user-account` and, escaped, of the pattern of an indicator.
* Only the first alert and the last state of each finding are exported. There is no TAXII server.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from consumers.alerts import taxonomy
from consumers.alerts.finding import Finding, finding, visible
from consumers.alerts.taxonomy import Technique
from consumers.errors import ConfigError, Undeliverable
from consumers.store import OutboxAlert

NAMESPACE = uuid.UUID("6f1c0a38-5d0b-5f0e-9c66-2a3f6ad0c0de")
VALID_FOR = dt.timedelta(days=30)


def bundle(findings: Iterable[Finding]) -> str:
    """The bundle as JSON text, in a fixed order. Raises ConfigError without the extra."""
    stix2 = stix_library()
    newest: dict[str, Finding] = {}
    first: dict[str, Finding] = {}
    for found in sorted(findings, key=lambda f: f.update):
        first.setdefault(found.alert_id, found)
        newest[found.alert_id] = found
    if not newest:
        return json.dumps({"type": "bundle", "id": object_id("bundle", "empty"), "objects": []}, indent=1)
    us, began = observer(stix2)
    named = {row.id: row for found in newest.values() for row in _named(found)}
    patterns = {uid: attack_pattern(stix2, row, us.id, began) for uid, row in sorted(named.items())}
    objects: dict[str, Any] = {us.id: us, **{pattern.id: pattern for pattern in patterns.values()}}
    for alert_id, found in sorted(newest.items()):
        for thing in _objects(
            stix2, found, first[alert_id], us.id, {uid: pattern.id for uid, pattern in patterns.items()}
        ):
            objects[thing.id] = thing
    names = ",".join(f"{f.uid}" for _, f in sorted(newest.items()))
    made = stix2.Bundle(id=object_id("bundle", names), objects=list(objects.values()))
    return str(made.serialize(pretty=True))


def write(path: Path, alerts: Iterable[OutboxAlert]) -> int:
    """Write the bundle of these alerts; returns the number of findings. Raises ConfigError."""
    found = []
    for alert in alerts:
        with contextlib.suppress(Undeliverable):
            found.append(finding(alert))
    text = bundle(found)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    return len({one.alert_id for one in found})


def _named(found: Finding) -> list[Technique]:
    """Extraction, and what a finding names besides; not what always goes with extraction."""
    return [row for row in taxonomy.techniques(found) if row not in taxonomy.ACCOMPANYING]


def stix_library() -> Any:
    """Return the module `stix2`. Raises ConfigError without the extra."""
    try:
        import stix2
    except ImportError as error:
        raise ConfigError("STIX needs the extra: pip install 'querywarden[stix]'") from error
    return stix2


def observer(stix2: Any) -> tuple[Any, dt.datetime]:
    """Return the identity of who writes bundles, and the time at which what never changes was created."""
    began = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    us = stix2.Identity(
        id=object_id("identity", "querywarden"),
        name="QueryWarden",
        identity_class="system",
        created=began,
        modified=began,
    )
    return us, began


def attack_pattern(stix2: Any, row: Technique, us: str, began: dt.datetime) -> Any:
    """Return a technique of ATLAS as an object."""
    return stix2.AttackPattern(
        id=object_id("attack-pattern", row.id),
        name=row.sub or row.name,
        created=began,
        modified=began,
        created_by_ref=us,
        external_references=[
            {"source_name": "mitre-atlas", "external_id": uid, "url": f"https://atlas.mitre.org/techniques/{uid}"}
            for uid in dict.fromkeys((row.id, row.uid))
        ],
    )


def _objects(stix2: Any, found: Finding, first: Finding, us: str, attacks: Mapping[str, str]) -> list[Any]:
    begun, news = _when(first), max(_when(found), _when(first))
    accounts = [stix2.UserAccount(user_id=name, account_type="api-client") for name in found.members or [found.subject]]
    sources = [stix2.IPv6Address(value=ip) if ":" in ip else stix2.IPv4Address(value=ip) for ip in found.sources]
    seen = stix2.ObservedData(
        id=object_id("observed-data", found.alert_id),
        created=begun, modified=news, created_by_ref=us,
        first_observed=begun, last_observed=news,
        number_observed=max(1, min(found.queries_seen, 999_999_999)),
        object_refs=[thing.id for thing in (*accounts, *sources)],
    )  # fmt: skip
    names = " OR ".join(f"user-account:user_id = '{_literal(name)}'" for name in found.members or [found.subject])
    until = news if found.resolved else news + VALID_FOR
    indicator = stix2.Indicator(
        id=object_id("indicator", found.alert_id),
        created=begun, modified=news, created_by_ref=us,
        name=found.title, description=found.text,
        indicator_types=["malicious-activity"],
        pattern=f"[{names}]", pattern_type="stix",
        valid_from=begun, valid_until=max(until, begun + dt.timedelta(seconds=1)),
        confidence=round(100 * min(1.0, max(0.0, found.suspicion))),
        labels=["model-extraction", f"severity-{found.severity}"],
    )  # fmt: skip
    means = [
        stix2.Relationship(
            id=object_id("relationship", found.alert_id if row == taxonomy.EXTRACTION else f"{found.alert_id}:{row.id}"),
            relationship_type="indicates" if row == taxonomy.EXTRACTION else "related-to",
            created=begun, modified=news, created_by_ref=us, source_ref=indicator.id, target_ref=attacks[row.id],
        )
        for row in _named(found)
    ]  # fmt: skip
    sighting = stix2.Sighting(
        id=object_id("sighting", found.alert_id), created=begun, modified=news, created_by_ref=us, sighting_of_ref=indicator.id,
        observed_data_refs=[seen.id], first_seen=begun, last_seen=max(news, begun + dt.timedelta(milliseconds=1)),
        count=max(1, min(found.queries_seen, 999_999_999)), summary=False,
        description=f"model {visible(found.model_id)}",
    )  # fmt: skip
    return [*accounts, *sources, seen, indicator, *means, sighting]


def object_id(kind: str, name: str) -> str:
    """Return the id of an object: the same name gives the same id."""
    return f"{kind}--{uuid.uuid5(NAMESPACE, f'{kind}:{name}')}"


def _when(found: Finding) -> dt.datetime:
    return dt.datetime.fromtimestamp(found.time_ms / 1000, dt.UTC)


def _literal(text: str) -> str:
    """Inside the quotes of a STIX pattern."""
    return visible(text).replace("\\", "\\\\").replace("'", "\\'")
