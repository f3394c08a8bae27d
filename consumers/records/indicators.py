"""Indicators: what peers reported about clients that they flagged, as stored, and how clients here are compared with it.

An *indicator* is one finding of a peer, another organisation that watches a model of its own. It holds hashes under a sharing key of
what the finding's clients were seen with (address, means of payment, client software …), and no value, prompt or client id.

Rules:

* An indicator proposes and never accuses. All clients that match one share a *link* to it; whether they act as one is for the group
  statistic to decide, as with every link, and a client that matches alone is shown to people.
* A hash that many accounts of a model share says nothing about any of them, whoever reported it (`most_matching`).
* What has expired is not there. What cannot be read is not there either.
* Operators import indicators (`operators.indicators`), one entry for each source; an import takes the place of the one before.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from consumers.records import odd_contents
from consumers.records.damaged import readable
from consumers.records.decision import RowSummary
from consumers.records.operator_entries import unpacked
from consumers.store import OperatorStore
from detector.query import ClientKey

KIND = "indicators"
"""Kind of the entries in the operator cell; their key is the source."""
LINK = "peer"
"""Kind of the link of clients that match the same indicator."""
CONTENT_LINK = "content_peer"
"""Kind of the link of clients that match the same indicator by what they ask."""
FEW_ENOUGH, MOST_SHARE = 20, 0.01
MOST_SHOWN = 16
"""Indicators of one client that are shown, at most."""


@dataclass(frozen=True, slots=True)
class Indicator:
    """One finding of a peer.

    id          of the STIX object
    key_id      of the sharing key
    hashes      ``kind:hash``, under that key
    confidence  0 to 100, as the peer gave it
    reason      reason code of the peer's decision; family: the kind of theft that it resembled, as far as known
    techniques  ids of MITRE ATLAS
    """

    id: str
    key_id: str
    hashes: tuple[str, ...]
    confidence: int
    reason: str
    family: str
    techniques: tuple[str, ...]
    valid_from_s: int
    valid_until_s: int


@dataclass(frozen=True, slots=True)
class StoredIndicators:
    """What was imported from one source. digest: SHA-256 of the file, in hex."""

    source: str
    indicators: tuple[Indicator, ...]
    digest: str
    actor: str
    at_s: int
    format: int = 1

    @property
    def until_s(self) -> int:
        """When the last of them expires."""
        return max((one.valid_until_s for one in self.indicators), default=0)


@dataclass(frozen=True, slots=True)
class Match:
    """That a client matches an indicator. kinds: of what it was seen with, such as ``ip``."""

    source: str
    indicator: Indicator
    kinds: tuple[str, ...]

    @property
    def links(self) -> list[str]:
        """The links that clients share which match this indicator: one of those that match by what they were seen with, one by content."""
        name = f"{self.source}\x00{self.indicator.id}".encode("utf-8", "surrogatepass")
        hashed = hashlib.blake2b(name, digest_size=8).hexdigest()
        kinds = sorted({CONTENT_LINK if kind == odd_contents.KIND else LINK for kind in self.kinds}, reverse=True)
        return [f"{kind}:{hashed}" for kind in kinds]


def most_matching(accounts: int) -> int:
    """Return how many of `accounts` of a model a hash may match before it says nothing.

    >>> most_matching(100), most_matching(50_000)
    (20, 500)
    """
    return max(FEW_ENOUGH, int(MOST_SHARE * accounts))


class Reported:
    """The indicators that hold at a moment."""

    def __init__(self, imports: Iterable[StoredIndicators], now_s: float) -> None:
        self._of: dict[str, list[tuple[str, Indicator]]] = {}
        for stored in sorted(imports, key=lambda one: one.source):
            for one in stored.indicators:
                if one.valid_from_s <= now_s < one.valid_until_s:
                    for hashed in one.hashes:
                        self._of.setdefault(f"{one.key_id}.{hashed}", []).append((stored.source, one))

    def among(self, clients: Iterable[tuple[ClientKey, Collection[str]]]) -> dict[ClientKey, tuple[Match, ...]]:
        """Return the matches of clients.

        Parameters
        ----------
        clients : Iterable
            All accounts of whole models, each with its hashes under sharing keys, ``KEYID.kind:hash``.

        Returns
        -------
        dict
            Client → the indicators that it matches, the most confident first; clients that match none are left out.
        """
        if not self._of:
            return {}
        accounts: Counter[str] = Counter()
        sharing: dict[tuple[str, str], list[ClientKey]] = {}
        for key, shared in clients:
            accounts[key.model] += 1
            for hashed in set(shared) & self._of.keys():
                sharing.setdefault((key.model, hashed), []).append(key)
        found: dict[ClientKey, dict[tuple[str, str], Match]] = {}
        for (model, hashed), keys in sorted(sharing.items()):
            if len(keys) > most_matching(accounts[model]):
                continue
            kind = hashed.partition(".")[2].partition(":")[0]
            for key in keys:
                mine = found.setdefault(key, {})
                for source, one in self._of[hashed]:
                    before = mine.get((source, one.id))
                    kinds = (*(before.kinds if before else ()), kind)
                    mine[source, one.id] = Match(source, one, tuple(sorted(set(kinds))))
        return {key: _first(mine.values()) for key, mine in found.items()}

    def tie(self, clients: Mapping[ClientKey, RowSummary]) -> None:
        """Add to the links of clients those of the indicators that they match. clients: all accounts of whole models."""
        for key, matches in self.among((key, one.shared) for key, one in clients.items()).items():
            clients[key].links += [link for match in matches for link in match.links]


NOTHING = Reported((), 0)


def _first(matches: Iterable[Match]) -> tuple[Match, ...]:
    return tuple(sorted(matches, key=lambda m: (-m.indicator.confidence, m.source, m.indicator.id))[:MOST_SHOWN])


def imports_of(store: OperatorStore, tenant: str) -> tuple[StoredIndicators, ...]:
    """Return what a tenant imported, by source. Raises Unavailable."""
    entries = store.operator_entries(KIND, tenant)[1]
    found = [readable("entry", unpacked, entry, StoredIndicators, kind=KIND) for entry in entries]
    return tuple(sorted((one for one in found if one is not None), key=lambda one: one.source))


def reported(store: OperatorStore, tenant: str, now_s: float) -> Reported:
    """Return the indicators that hold now. Raises Unavailable."""
    return Reported(imports_of(store, tenant), now_s)
