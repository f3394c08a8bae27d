"""The chain of a tenant's evidence bundles, and whether an audit log holds it.

Rules:
* A bundle names the digest of the one before it. Of the bundles that are given, each must follow from the one before it, where that one is
  given too; those that are missing in between are named, because a link across a gap cannot be checked.
* A copy of the audit log proves itself row by row. It must hold the row of the bundle, with the same number, digest and predecessor.
* Whoever holds the secrets file can write another chain and another log. Only what left the house before (a head of the audit log at a
  notary, a log collector, the other side's copy of a bundle) shows which one is older.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from consumers.errors import InvalidInput
from consumers.operators.audit import Chain
from consumers.readers.evidence import Checked

ACTION = "evidence.make"


class _EvidenceRow(msgspec.Struct):
    n: int = 0
    ts: str = ""
    tenant: str = ""
    actor: str = ""
    action: str = ""
    object: str = ""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The row of a bundle in an audit log. row: its number; rows: how many the log has, all of them chained."""

    row: int
    rows: int
    time: str
    actor: str


def follow(bundles: Sequence[Checked]) -> list[int]:
    """Numbers that are missing between bundles of one tenant. Raises InvalidInput where one does not follow from the one before it."""
    if len({one.manifest.tenant for one in bundles}) > 1:
        raise InvalidInput("evidence: the bundles are of several tenants, and each tenant has a chain of its own")
    known: dict[int, Checked] = {}
    for one in bundles:
        number = one.manifest.number
        if not number:
            raise InvalidInput("evidence: a bundle of format 1 has no place in a chain")
        if number in known and known[number].digest != one.digest:
            raise InvalidInput(f"evidence: there are two bundles with the number {number}")
        known[number] = one
    for number, one in known.items():
        if number == 1 and one.manifest.previous:
            raise InvalidInput("evidence: bundle 1 names one before it")
        before = known.get(number - 1)
        if before is not None and one.manifest.previous != before.digest:
            raise InvalidInput(f"evidence: bundle {number} does not follow from bundle {number - 1}")
    return [number for number in range(min(known), max(known)) if number not in known]


def recorded(one: Checked, log: Iterable[bytes]) -> Recorded:
    """The row of a bundle. log: lines of a copy of the audit log. Raises InvalidInput where the log is broken or holds no such row."""
    chain, found = Chain("audit log"), None
    manifest = one.manifest
    wanted = f"digest:{one.digest} previous:{manifest.previous or 'none'}"
    for line in log:
        line = line.rstrip(b"\n")
        if line.startswith(b'{"head":'):
            continue
        chain.row(line)
        try:
            row = msgspec.json.decode(line, type=_EvidenceRow)
        except (msgspec.DecodeError, ValueError, RecursionError):
            continue
        about = f"client:{manifest.client} model:{manifest.model_id} number:{manifest.number} {wanted}"
        if (row.action, row.tenant, row.object) == (ACTION, manifest.tenant, about):
            found = row
    if chain.found.findings:
        raise InvalidInput(f"evidence: {chain.found.findings[0]}")
    if found is None:
        raise InvalidInput("evidence: the audit log holds no row of this bundle")
    return Recorded(found.n, chain.found.rows, found.ts, found.actor)
