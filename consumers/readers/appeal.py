"""An appeal: what was counted about a client, how many clients that were never flagged went further, and what its owner can show.

For the person who must answer "why me?". Rules:

* It names no other client and no threshold: what is told here may be told to the client.
* "Further" is a rank. In the store it is taken among the clients of the same model that were never flagged; in the calibration, among the
  honest clients that detection compares with.
* Only stored values are used. A row that cannot be read is left out of the count.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from consumers.readers.models import ClientDetail
from consumers.store import DecisionRow
from consumers.times import minute
from detector.baseline import Baseline
from detector.policy import FLAGGED

log = logging.getLogger("querywarden.readings")


@dataclass(frozen=True, slots=True)
class Counted:
    """One thing that was counted. signal: its name; text: in words; never_flagged_further: clients of the store with a higher count."""

    signal: str
    text: str
    never_flagged_further: int


@dataclass(frozen=True, slots=True)
class Further:
    """Clients that went further, of all that were compared. Never flagged in the store, and honest in the calibration (None: not known)."""

    in_store: int
    of_store: int
    in_calibration: int | None
    of_calibration: int | None


@dataclass(frozen=True, slots=True)
class Appeal:
    """What a client's owner may be told."""

    counted: tuple[Counted, ...]
    never_flagged_further: Further
    can_show: tuple[str, ...]


class _Evidence(msgspec.Struct):
    signal: str
    statistic: float


class _RankedRow(msgspec.Struct):
    """The little of a row that a rank needs, read without unsealing."""

    state: str = "clear"
    suspicion: float = 0.0
    history: list[list[Any]] = []
    evidence: list[_Evidence] = []

    @property
    def flagged(self) -> bool:
        """Whether it is or ever was flagged, as far as its history goes back."""
        return self.state in FLAGGED or any(entered[1] in FLAGGED for entered in self.history)


_past = msgspec.msgpack.Decoder(_RankedRow)


def appeal_of(one: ClientDetail, others: Iterable[DecisionRow], baseline: Baseline | None) -> Appeal:
    """Return what may be told. others: rows of the clients of the model; the client's own counts for nothing."""
    compared = [past for past in map(_read, others) if past is not None and not past.flagged]
    own = _RankedRow(
        one.client.state, one.client.suspicion, [], [_Evidence(e.signal, e.statistic) for e in one.client.evidence]
    )
    if not _ever_flagged(one):
        compared = _without(compared, own)
    strongest = {e.signal: e for e in one.client.evidence}
    counted = [
        Counted(
            e.signal,
            e.text.partition(";")[0],
            sum(any(o.signal == e.signal and o.statistic > e.statistic for o in past.evidence) for past in compared),
        )
        for e in strongest.values()
    ]
    further = Further(
        in_store=sum(past.suspicion > one.client.suspicion for past in compared),
        of_store=len(compared),
        in_calibration=_in_calibration(one, baseline),
        of_calibration=baseline.calibration.clients if baseline is not None else None,
    )
    return Appeal((_queries(one), *counted), further, can_show(one))


def _ever_flagged(one: ClientDetail) -> bool:
    return one.client.state in FLAGGED or any(change.state in FLAGGED for change in one.history)


def _without(compared: list[_RankedRow], own: _RankedRow) -> list[_RankedRow]:
    """The others: one row that is the client's own is taken out."""
    for i, past in enumerate(compared):
        if (past.suspicion, past.evidence) == (own.suspicion, own.evidence):
            return compared[:i] + compared[i + 1 :]
    return compared


def _queries(one: ClientDetail) -> Counted:
    c = one.client
    until = f", the last on {minute(c.last_seen_ms)}" if c.last_seen_ms else ""
    return Counted("queries", f"{c.queries:,} queries, {c.distinct:,.0f} of them distinct{until}", 0)


def _in_calibration(one: ClientDetail, baseline: Baseline | None) -> int | None:
    """Honest calibration clients that went at least as far, by the rank that the p-value is."""
    if baseline is None or not baseline.calibration.calibrated:
        return None
    ranked = len(baseline.calibration.ordered if one.client.in_order else baseline.calibration.free)
    above = max(0, math.ceil(one.client.p_value * (ranked + 1) - 1e-6) - 1)
    return min(above, baseline.calibration.clients)


def can_show(one: ClientDetail) -> tuple[str, ...]:
    """Return what the owner of the key can show to explain its queries."""
    said = [
        (
            "The declared use: what the queries are for (explanations, tests, monitoring, batch scoring). A use that the operator declares"
            " for the client is compared with clients of the same use."
        ),
        "The contract or plan that covers this use and this number of queries.",
        "The origin of the inputs: a data set, a generator or a customer base, with a sample of the queries to look up.",
        "Who works with the key, and from where; whether it may have leaked.",
    ]
    if one.misfit:
        said.append(
            "A change of the client's software or schema: some of the queries do not fit the schema of the model."
        )
    if one.client.campaign_id:
        said.append("How the accounts that share an organisation, an address or a session with it are related.")
    return tuple(said)


def _read(row: DecisionRow) -> _RankedRow | None:
    try:
        return _past.decode(row.row)
    except (msgspec.DecodeError, ValueError) as error:
        log.warning("decision row set aside", extra={"why": str(error)})
        return None
