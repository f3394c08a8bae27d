"""Names of findings in public frameworks: which ids an alert carries, by its reason and by whose finding it is.

MITRE ATLAS is as of 2026 (5.6), OWASP and NIST as their names say. What ATLAS says of a technique is in `TECHNIQUES`; sinks write it out.

Rules:
* An id that an alert carries is either shown by the log (a client extracts a model) or fits (linked accounts are what a proxy service
  of accounts looks like; a query log cannot show who sold them). The table says which.
* Every reason code has a row, also one that adds nothing. A new release of a framework changes this file and `alerts/taxonomy.py` only.
* An alert about the exposure budget accuses nobody, so it names a limit and no technique.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

ATLAS_VERSION = "5.6"
_ATLAS = "MITRE-ATLAS:"

FRAMEWORKS = ("OWASP:ML05:2023", "MITRE-ATLAS:AML.T0024.002", "OWASP-AISVS:C11.3.1", "NIST-AI-100-2:NISTAML.031")
"""Of every finding that somebody extracts a model."""
LIMIT = ("OWASP-AISVS:C11.2.2",)
"""Of an alert that a client received more than it may."""


class Technique(NamedTuple):
    """A row of ATLAS: tactic → technique → sub-technique (empty where there is none)."""

    tactic_uid: str
    tactic: str
    uid: str
    name: str
    sub_uid: str = ""
    sub: str = ""

    @property
    def id(self) -> str:
        return self.sub_uid or self.uid


TECHNIQUES: tuple[Technique, ...] = (
    Technique("AML.TA0010", "Exfiltration", "AML.T0024", "Exfiltration via AI Inference API", "AML.T0024.002", "Extract AI Model"),
    Technique("AML.TA0001", "AI Attack Staging", "AML.T0005", "Create Proxy AI Model", "AML.T0005.001", "Train Proxy via Replication"),
    Technique("AML.TA0000", "AI Model Access", "AML.T0040", "AI Model Inference API Access"),
    Technique("AML.TA0003", "Resource Development", "AML.T0008", "Acquire Infrastructure", "AML.T0008.005", "AI Service Proxies"),
    Technique("AML.TA0004", "Initial Access", "AML.T0012", "Valid Accounts"),
)  # fmt: skip
OF_EXTRACTION = TECHNIQUES[:3]
"""The finding itself first, then what goes with it."""


class Named(NamedTuple):
    """An id that an alert carries beside `FRAMEWORKS`, and how much the log says about it."""

    id: str
    basis: Literal["shown", "fits"]


_POOL = (Named("MITRE-ATLAS:AML.T0008.005", "fits"), Named("MITRE-ATLAS:AML.T0012", "fits"))

BY_REASON: Mapping[str, tuple[Named, ...]] = MappingProxyType(
    {
        "no_evidence": (),
        "unusual": (),
        "suspicious": (),
        "extraction": (),
        "too_few_to_throttle": (),
        "too_few_to_block": (),
        "misfit_only": (),
        "uncalibrated": (),
        "budget_unsupported": (),
        "holds": (),
        "expired": (),
        "allow_listed": (),
        "exposure_budget": (),
        "query_budget": (),
        "token_budget": (),
        "campaign": _POOL,
        "campaign_content": _POOL,
        "breaker": (),
    }
)
"""Reason code → ids that its alerts carry in addition."""

OF_CAMPAIGN = _POOL
"""Ids that every alert of a campaign carries in addition, whatever its reason is by then."""


def frameworks_of(kind: Literal["client", "campaign"], reason: str) -> list[str]:
    """The ids of an alert: those of every finding first.

    >>> frameworks_of("client", "extraction") == list(FRAMEWORKS)
    True
    >>> frameworks_of("campaign", "holds")[4:]
    ['MITRE-ATLAS:AML.T0008.005', 'MITRE-ATLAS:AML.T0012']
    """
    more = (*BY_REASON.get(reason, ()), *(OF_CAMPAIGN if kind == "campaign" else ()))
    return list(dict.fromkeys((*FRAMEWORKS, *(named.id for named in more))))


def techniques_of(frameworks: list[str]) -> list[Technique]:
    """The rows of ATLAS that go with an alert's ids: extraction and what goes with it, then those that it names besides.

    >>> [
    ...     row.id
    ...     for row in techniques_of(["MITRE-ATLAS:AML.T0024.002", "MITRE-ATLAS:AML.T0012", "MITRE-ATLAS:AML.T9999"])
    ... ]
    ['AML.T0024.002', 'AML.T0005.001', 'AML.T0040', 'AML.T0012']
    >>> techniques_of(["OWASP-AISVS:C11.2.2"])
    []
    """
    named = {one.removeprefix(_ATLAS) for one in frameworks if one.startswith(_ATLAS)}
    first = OF_EXTRACTION if OF_EXTRACTION[0].id in named else ()
    return [*first, *(row for row in TECHNIQUES[len(OF_EXTRACTION) :] if row.id in named)]
