"""The report of a check of an evidence bundle: one HTML page for people who know neither the product nor statistics.

Rules:
* The page says what is claimed, how it was measured, what was checked and with what result, by whom and when, who held it before, and what
  it does not show. What was not checked is named with the reason, in the same table.
* Every figure comes from the bundle or from the check. The page stands alone: no script, and nothing from elsewhere.
* Text of the bundle is hostile: made `legible`, and escaped by the template.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from consumers import atomic_file
from consumers.legible import legible
from consumers.readers.custody import Recorded
from consumers.readers.evidence import CANARIES, Checked
from consumers.readers.timestamps import Stamp
from consumers.times import rfc3339

Outcome = Literal["holds", "differs", "not checked"]
MOST_ROWS = 500
"""Rows of the audit log that the page shows, the last ones."""

LIMITS = (
    "It is evidence of behaviour, not of intent: an honest client that behaves as no other honest client does looks the same.",
    "The p-value is how rarely an honest client ever gets this far, judged by those that the baseline was calibrated on.",
    "The p-value is not the chance that this client is innocent.",
    "The bundle holds statistics of queries, not the queries. What was asked has to be shown from the query log.",
    "The client is an account. Who used it is not known here.",
    "A signature shows that nothing changed since somebody with the key signed. Whose key it is must be known from somewhere else.",
    "Whoever holds the installation's secrets file could write another chain and log; a copy given away earlier rules it out.",
)
OWN_CLOCK = (
    "Times are those of the machine that made the bundle and of the query log. No outside authority has stamped them."
)
STAMPED = (
    "Times are those of the machine that made the bundle and of the query log. The time stamp shows that the bundle existed when it was "
    "stamped, and every earlier bundle of the chain with it; it does not show when the queries were asked."
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked, or not: words say with what result or why not."""

    what: str
    outcome: Outcome
    words: str


@dataclass(frozen=True, slots=True)
class Examination:
    """A check of a bundle.

    signer_given  whether the fingerprint of the key was known from somewhere else
    earlier       bundles that were checked with it, and the numbers that are missing between; None: none were given
    recorded      its row in a copy of the audit log; None: no copy was given
    stamp         of an outside authority; None: no response was given
    by, at_ms     who checked, and when
    """

    name: str
    blob: bytes
    checked: Checked
    signer_given: bool
    earlier: tuple[int, Sequence[int]] | None
    recorded: Recorded | None
    by: str
    at_ms: int
    stamp: Stamp | None = None


def checks_of(one: Examination) -> list[Check]:
    """Everything that a bundle can be checked for, with what came out."""
    checked, manifest = one.checked, one.checked.manifest
    found = [
        Check("Signature", "holds", f"Ed25519 by the key {checked.signer} over the manifest"),
        Check(
            "Whose key it is",
            "holds" if one.signer_given else "not checked",
            "the fingerprint is the one that was given for this check" if one.signer_given else "no fingerprint was given (--signer)",
        ),
        Check("Content", "holds", f"{len(checked.members)} files, each with the SHA-256 that the signed manifest states"),
    ]  # fmt: skip
    if not checked.assessed:
        found.append(Check("Measurement", "not checked", "no baseline was given (--baseline)"))
    elif checked.differences:
        found.append(Check("Measurement", "differs", "; ".join(checked.differences)))
    else:
        found.append(Check("Measurement", "holds", "the profile was assessed again and gives the same figures"))
    if not manifest.number:
        found.append(Check("Chain of bundles", "not checked", "the bundle has no place in a chain: an older format"))
    elif one.earlier is None:
        found.append(
            Check("Chain of bundles", "not checked", f"bundle {manifest.number}; no other was given (--earlier)")
        )
    else:
        number, missing = one.earlier
        gaps = f"; not given: {', '.join(map(str, missing[:20]))}" if missing else ""
        found.append(
            Check("Chain of bundles", "holds", f"bundle {manifest.number}, checked with {number} others{gaps}")
        )
    if one.recorded is None:
        found.append(Check("Audit log", "not checked", "no copy of the audit log was given (--audit)"))
    else:
        words = (
            f"row {one.recorded.row} of {one.recorded.rows}, which are chained, holds the digest of this bundle; "
            f"written {one.recorded.time} by {one.recorded.actor}"
        )
        found.append(Check("Audit log", "holds", words))
    if CANARIES not in checked.members:
        found.append(Check("Marked answers", "not checked", "no test of a suspected copy is part of this bundle"))
    else:
        canaries = _read(checked, CANARIES)
        found.append(
            Check("Marked answers", "holds", f"result as signed, p-value {canaries.get('p_value')}; the suspect was not asked again")
        )  # fmt: skip
    if one.stamp is None:
        found.append(
            Check("Time stamp", "not checked", "no response of an outside authority was given (--timestamp-response)")
        )
    else:
        found.append(
            Check("Time stamp", "holds", f"{one.stamp.words}; under the certificates that were given for this check")
        )
    return found


def page(one: Examination) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: legible(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    decision = _read(one.checked, "decision.json")
    rows = [msgspec.json.decode(line) for line in one.checked.members.get("audit.jsonl", b"").splitlines()]
    return environment.get_template("custody_report.html.j2").render(
        one=one,
        manifest=one.checked.manifest,
        digest=one.checked.digest,
        sha256=hashlib.sha256(one.blob).hexdigest(),
        size=f"{len(one.blob):,}",
        made=rfc3339(one.checked.manifest.made_ms),
        at=rfc3339(one.at_ms),
        stamped="" if one.stamp is None else rfc3339(one.stamp.time_ms),
        decision=decision,
        last=rfc3339(int(decision["last_ms"])) if isinstance(decision.get("last_ms"), int) else "unknown",
        evidence=[e for e in decision.get("evidence", []) if isinstance(e, dict)],
        canaries=_read(one.checked, CANARIES) if CANARIES in one.checked.members else None,
        checks=checks_of(one),
        rows=[{k: str(row.get(k, "")) for k in ("n", "ts", "actor", "action", "object")} for row in rows[-MOST_ROWS:]],
        limits=(*LIMITS, OWN_CLOCK if one.stamp is None else STAMPED),
    )


def write(path: Path, one: Examination) -> None:
    """Write the report. Raises Refused when the file cannot be written."""
    text = page(one)
    with atomic_file.whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _read(checked: Checked, name: str) -> Mapping[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(checked.members[name], type=dict[str, Any])
    return found
