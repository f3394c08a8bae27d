"""Groups of accounts that may be a campaign, from all rows of a tenant.

Six ways lead to a group, and each only proposes (`campaigns` assesses and decides):

1. Accounts share a link of their metadata (`detector.campaigns`).
2. Accounts share two weak links, and too many of them are odd for their size (`detector.weak_pairs`).
3. Too many accounts are odd in one measure for their size (`detector.fleet`).
4. Too many accounts that are odd for their size ask odd queries close together (`detector.patch_groups`).
5. Too many accounts that are odd for their size fill one template with what is foreign (`detector.templates`).
6. Of accounts that are odd for their size one starts when another stops, again and again (`detector.handovers`).

Rules:
* A group that has a link of a known campaign is that campaign. The id of a campaign is a hash of the tenant, the model and the link that
  it was first known by.
* Of the third to fifth kind all accounts are named, and how many of them may be honest is said with the group.
* Over a weak link, or two, those are named that are odd for their size (`detector.campaigns.named_of`). Without any there is no group.
* The rows say all: no profile is read here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from consumers.records import alert, odd_patches, templates
from consumers.records.client import Tie
from consumers.records.damaged import readable
from consumers.records.decision import (
    RowSummary,
    StoredDecision,
    campaign_key,
    is_campaign,
    stored_decision,
    summary_of,
)
from consumers.records.indicators import CONTENT_LINK, LINK, NOTHING, Reported
from consumers.secrets import Secrets
from consumers.store import DecisionRow
from detector.baseline import Baseline
from detector.campaigns import STRONG, Group, candidates, named_of
from detector.fleet import fleet_cells
from detector.handovers import handover_chains
from detector.patch_groups import LEVEL, OddAccounts, patch_groups
from detector.patches import listed
from detector.query import ClientKey
from detector.weak_pairs import starts, weak_pairs

CONTENT = "content"
"""Kind of link of accounts that only what they ask ties."""
HANDOVER = "handover"
"""Kind of link of an account that starts when another stops."""
BY_CONTENT = (CONTENT, odd_patches.KIND, templates.KIND, HANDOVER, CONTENT_LINK)
"""Kinds of links by which accounts are chosen for what they ask."""
WEAK_PAIR = "weak_pair"
"""Kind of link of accounts that have two weak links in common."""
NOT_WEAK = (*STRONG, *BY_CONTENT, LINK)
"""Beginnings of links that make no weak pair: they say who an account is, what it asks, or what a peer told."""
LINKS_KEPT = 64


@dataclass(frozen=True, slots=True)
class Suspected:
    """A group under the key of its campaign.

    members    all accounts of its links; named: those that its campaign consists of, by keyed hash
    queries    of those named; oddness: mean of 1 − the members' p-values among clients of their sizes
    sealed     sealed client id of each of those named
    ties       what ties those named
    honest_at_most  of a group that nothing but what it asks ties: how many of its accounts may be honest; None: other links tie it
    alike      how many of those named share a template that is filled with texts of the model's domain
    """

    key: ClientKey
    links: tuple[str, ...]
    members: tuple[ClientKey, ...]
    named: tuple[ClientKey, ...]
    queries: int
    oddness: float
    sealed: tuple[str, ...]
    ties: tuple[Tie, ...]
    honest_at_most: int | None = None
    alike: int = 0

    @property
    def campaign_id(self) -> str:
        return self.key.client.partition(":")[2]

    @property
    def by_content(self) -> bool:
        """Whether its accounts were chosen by what they ask, so that it must be odd among groups of one kind."""
        return self.links[0].startswith(BY_CONTENT)

    @property
    def by_shared_content(self) -> str:
        """The kind of link if odd queries that lie close together, or a template, are all that ties it; else empty."""
        kind = self.ties[0].kind if self.honest_at_most is not None else CONTENT
        return "" if kind == CONTENT else kind


@dataclass(slots=True)
class Survey:
    """A summary of all rows of a tenant: clients, campaigns as stored, and groups."""

    clients: dict[ClientKey, RowSummary] = field(default_factory=dict)
    standing: dict[ClientKey, StoredDecision] = field(default_factory=dict)
    groups: list[Suspected] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Grouping:
    """Rows in, groups out."""

    baselines: Mapping[str, Baseline]
    secrets: Secrets

    def survey(self, rows: Iterable[tuple[ClientKey, DecisionRow]], reported: Reported = NOTHING) -> Survey:
        """Clients, campaigns and groups of one tenant. reported: indicators of peers, which link the clients that match them."""
        found = Survey()
        linked: dict[tuple[str, str], dict[ClientKey, list[str]]] = {}
        for key, row in rows:
            if is_campaign(key):
                campaign = readable("decision row", stored_decision, row, self.secrets, key.tenant, model=key.model)
                if campaign is not None:
                    found.standing[key] = campaign
                continue
            summary = readable("decision row", summary_of, row, model=key.model)
            if summary is None:
                continue
            found.clients[key] = summary
            if key.model in self.baselines:
                linked.setdefault((key.tenant, key.model), {})[key] = summary.links
        reported.tie(found.clients)  # adds to the same lists
        for (tenant, model), links in sorted(linked.items()):
            # in one order whatever order the rows came in
            groups = candidates({key: links[key] for key in sorted(links)})
            found.groups += self._known(tenant, model, groups, found)
            found.groups += self._by_pairs(tenant, model, sorted(links), found)
            found.groups += self._by_content(tenant, model, sorted(links), found)
            of_texts = len(self.baselines[model].calibration.templates) > 0
            for kind in (odd_patches.KIND, templates.KIND)[: 1 + of_texts]:
                found.groups += self._by_shared(kind, tenant, model, sorted(links), found)
            found.groups += self._by_handover(tenant, model, sorted(links), found)
        return found

    def _by_pairs(self, tenant: str, model: str, accounts: Sequence[ClientKey], found: Survey) -> Iterator[Suspected]:
        """Groups that two weak links tie, and too many of them are odd for their size (`detector.weak_pairs`)."""
        rows = {key: found.clients[key] for key in accounts}
        weak = {key: [link for link in row.links if not link.startswith(NOT_WEAK)] for key, row in rows.items()}
        for key, row in rows.items():
            weak[key] += starts(row.first_ms) if row.first_ms else ()  # not known in rows of earlier versions
        pairs = {
            f"{WEAK_PAIR}:{alert.digest_of(*one.links)[:16]}": one
            for one in weak_pairs(weak, {key: row.size_p_value for key, row in rows.items()})
        }
        tied = [Group((link,), one.accounts) for link, one in pairs.items()]
        for suspected in self._known(tenant, model, tied, found):
            both = next(pairs[link].links for link in suspected.links if link in pairs)
            ties = (Tie(link.partition(":")[0], len(suspected.named)) for link in both)
            yield replace(suspected, ties=tuple(ties))

    def _by_content(self, tenant: str, model: str, accounts: Sequence[ClientKey], found: Survey) -> Iterator[Suspected]:
        """Groups that no link ties: too many accounts are odd in the same measure for their size (`detector.fleet`)."""
        rows = [found.clients[key] for key in accounts]
        p_values = np.array([row.size_p_value for row in rows])
        for cell in fleet_cells(p_values, [row.oddest for row in rows], self.baselines[model].size_null):
            link = f"{CONTENT}:{cell.measure}"
            group = Group((link,), tuple(accounts[i] for i in cell.accounts))
            key = campaign_key(tenant, model, campaign_id(tenant, model, link))
            suspected = _suspected(key, group.links, group, _named(group, found.clients), found.clients)
            yield replace(suspected, ties=(Tie(CONTENT, len(group.members)),), honest_at_most=cell.honest_at_most)

    def _by_shared(
        self, kind: str, tenant: str, model: str, accounts: Sequence[ClientKey], found: Survey
    ) -> Iterator[Suspected]:
        """Groups that odd queries close together tie, or a template: too many accounts have them (`detector.patch_groups`)."""
        baseline, rows = self.baselines[model], [found.clients[key] for key in accounts]
        mine = [[link for link in row.patches if link.startswith(f"{kind}:")] for row in rows]
        fleet = OddAccounts.of(np.array([row.size_p_value for row in rows]), mine)
        honest = self._honest if kind == odd_patches.KIND else self._honest_templates
        groups = {
            tuple(accounts[i] for i in one.accounts): one for one in patch_groups(fleet, honest(tenant, baseline))
        }
        tied = [Group(one.patches, members) for members, one in groups.items()]
        for suspected in self._known(tenant, model, tied, found):
            members = suspected.members
            tie = Tie(kind, len(members))
            yield replace(suspected, ties=(tie,), honest_at_most=groups[members].honest_at_most)

    def _by_handover(
        self, tenant: str, model: str, accounts: Sequence[ClientKey], found: Survey
    ) -> Iterator[Suspected]:
        """Chains of accounts that are odd for their size, of which one starts when another stops (`detector.handovers`)."""
        odd = [key for key in accounts if found.clients[key].size_p_value <= LEVEL and found.clients[key].first_ms]
        rows = [found.clients[key] for key in odd]
        starts, stops = (np.array([getattr(row, name) for row in rows], np.float64) for name in ("first_ms", "last_ms"))
        tied = []
        for chain in handover_chains(starts, stops, np.array([row.queries for row in rows], np.int64)):
            members = [odd[i] for i in chain]
            pairs = (alert.digest_of(one.client, other.client) for one, other in pairwise(members))
            tied.append(Group(tuple(f"{HANDOVER}:{pair[:16]}" for pair in pairs), tuple(members)))
        for suspected in self._known(tenant, model, tied, found):
            yield replace(suspected, ties=(Tie(HANDOVER, len(suspected.named)),))

    def _honest(self, tenant: str, baseline: Baseline) -> OddAccounts:
        """The calibration clients, with their patches hashed as those of the tenant's accounts."""
        patches = listed(baseline.calibration.patches)
        if not patches:
            return OddAccounts(0, 0, {})
        p_values = baseline.size_null.honest_p_values()[0]
        links: list[tuple[str, ...] | None] = []
        for p, some in zip(p_values.tolist(), patches, strict=True):
            known = some if some is None or p <= LEVEL else []  # of the others nobody asks
            links.append(None if known is None else odd_patches.hashed(known, baseline.map_id, self.secrets, tenant))
        return OddAccounts.of(p_values, links)

    def _honest_templates(self, tenant: str, baseline: Baseline) -> OddAccounts:
        """All calibration clients, odd or not, with their templates hashed as those of the tenant's accounts."""
        known = listed(baseline.calibration.templates.hashes)
        links = [
            None if some is None else templates.hashed(some, baseline.map_id, self.secrets, tenant) for some in known
        ]
        return OddAccounts.of(np.zeros(len(known)), links)

    def _known(self, tenant: str, model: str, groups: Sequence[Group[ClientKey]], found: Survey) -> Iterator[Suspected]:
        """The groups under the names of the campaigns that they are, each name once."""
        with_members = [(group, those) for group in groups if (those := _named(group, found.clients)).any()]
        mine = sorted((k, row) for k, row in found.standing.items() if (k.tenant, k.model) == (tenant, model))
        place = {link: i for i, (group, _) in enumerate(with_members) for link in group.links}
        named: dict[int, ClientKey] = {}
        for key, row in mine:
            i = next((place[link] for link in row.links if place.get(link, -1) not in {-1, *named}), None)
            if i is not None:
                named[i] = key
        for i, (group, those) in enumerate(with_members):
            key = named.get(i) or campaign_key(tenant, model, campaign_id(tenant, model, group.links[0]))
            if i not in named and key in found.standing:
                continue  # the campaign of that name goes on elsewhere
            before = found.standing.get(key)
            links = dict.fromkeys([*(before.links if before else ()), *group.links])
            yield _suspected(key, tuple(links)[:LINKS_KEPT], group, those, found.clients)


def _named(group: Group[ClientKey], clients: Mapping[ClientKey, RowSummary]) -> NDArray[np.bool_]:
    """Which members are named, (m,) bool; all of a group that what they ask ties."""
    summaries = [clients[k] for k in group.members]
    if group.links[0].startswith(BY_CONTENT):
        return np.ones(len(summaries), np.bool_)
    p_values = np.array([summary.size_p_value for summary in summaries])
    return named_of(p_values, group.bound(one.links for one in summaries))


def _suspected(
    key: ClientKey,
    links: tuple[str, ...],
    group: Group[ClientKey],
    those: NDArray[np.bool_],
    clients: Mapping[ClientKey, RowSummary],
) -> Suspected:
    """The group, with the accounts that its campaign consists of. those: which members are named, (m,)."""
    summaries = [clients[k] for k in group.members]
    kept = [(k, one) for k, one, yes in zip(group.members, summaries, those, strict=True) if yes]
    of_kind: dict[str, set[ClientKey]] = {}
    for link in group.links:
        tied = {k for k, one in kept if link in one.links}
        of_kind.setdefault(link.partition(":")[0], set()).update(tied)
    usual = Counter(link for _, one in kept for link in set(one.patches) if link.startswith(templates.USUAL))
    ties = sorted((Tie(kind, len(tied)) for kind, tied in of_kind.items()), key=lambda tie: (-tie.members, tie.kind))
    return Suspected(
        key,
        links,
        group.members,
        tuple(k for k, _ in kept),
        sum(one.queries for _, one in kept),
        1.0 - sum(one.size_p_value for one in summaries) / len(summaries),
        tuple(one.client_id for _, one in kept),
        tuple(ties),
        alike=max(usual.values(), default=0),
    )


def campaign_id(tenant: str, model: str, link: str) -> str:
    """32 hex digits."""
    return alert.digest_of(tenant, model, link)
