"""Campaigns: accounts that share a link are assessed as a group.

Once a minute a pass over all decision rows does the following. Each detector then writes what belongs to the decision cells that it holds.

1. The rows form groups, by links and by what accounts ask (`grouping`).
2. The members of a group are judged, each by its own profile (`assess_group`), and the group is decided (`decide_group`). A flagged group
   gets a row of its own under `campaign_key` and alerts of kind ``campaign``: a first one, one when the state rises or members join, one
   when it is over.
3. The rows of its members get the id of the campaign. Rows of former members lose it.

Rules:
* A campaign is alerted, but not enforced by itself. The store is told that its row is clear.
* Of a large group a sample is judged, the `MOST_JUDGED` members with the smallest keyed hashes. Exposure, coverage and event ids of a
  campaign are those of at most `MOST_MERGED` of its members, so they are understated for a larger one; queries and members are of all.
* The id of an alert is a hash of the campaign's id and the episode. So every detector computes the same ids.
* Everything is recorded with the fence of its decision cell. Cursors stay as they are.
* A pass reads all rows, and profiles of groups that changed since this detector last assessed them, at most `MOST_GROUPS`. The others
  wait for the next pass, the longest waiting first, among new ones those whose members are oddest for their sizes.
* A group is assessed again until what came of it is recorded. While a profile cell cannot be read, groups and campaigns stay as they are.
* A group of more than `MOST_JUDGED` has changed when `GROWN` of it has.
* A new group inside a flagged one is no campaign of its own. Nor is one that only odd queries close together, or a template, tie, if half
  of it is.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeVar

from consumers.detect.grouping import Grouping, Survey, Suspected
from consumers.errors import CorruptState, Fenced, Rewound
from consumers.records import alert, odd_patches, sample_events, templates
from consumers.records.alert import MEMBERS_TOLD
from consumers.records.client import ClientRecord, read_profile
from consumers.records.damaged import UnreadableCells, readable
from consumers.records.decision import (
    StoredDecision,
    decided,
    episode_after,
    packed_decision,
    previous,
    stored_decision,
    with_decision,
)
from consumers.records.indicators import NOTHING, Reported, reported
from consumers.records.refusals import Refusals
from consumers.records.sealing import unsealed
from consumers.records.spans import Fields, fields_of
from consumers.secrets import Secrets
from consumers.store import DecisionRow, OutboxAlert, Outcome, ServiceStore, decision_cell
from detector.baseline import Baseline
from detector.campaigns import FEWEST, SAME, assess_group, merged
from detector.exposure import estimate
from detector.group_statistic import MOST_JUDGED
from detector.policy import FLAGGED, Decision, Policy, decide_group, lapsed, news
from detector.profile import Profile
from detector.query import ClientKey
from detector.scoring import Evidence, trajectory

log = logging.getLogger("querywarden.campaigns")

EVERY_S = 60.0
MOST_GROUPS = 200
MOST_MEMBERS = 4_000
"""Profiles that a pass reads at most (those of one group, if they are more): a pass must end well within a lease."""
MOST_MERGED = 2_000
READ_AT_ONCE = 500
GROWN = 0.05
GROWN_CELL = 0.2
"""Share of its accounts that must be new before an update tells of a campaign that nothing ties: its accounts change with every pass."""

TIES = {
    odd_patches.KIND: "nothing but odd queries that lie close together",
    templates.KIND: "nothing but one template, filled with what is foreign to the model's domain,",
}


class Holding(Protocol):
    """A decision cell that this process holds."""

    token: str
    revision: int


H = TypeVar("H", bound=Holding)


Read = Callable[[Sequence[ClientKey]], Mapping[ClientKey, Fields]]
"""Clients → what the profile cells hold of them."""


class _Account(NamedTuple):
    """An account of a group as read; in_order: it was seen in one log cell; events: its sample events as stored."""

    key: ClientKey
    profile: Profile
    in_order: bool
    events: tuple[bytes | None, ...]


@dataclass(slots=True)
class Campaigns:
    """The pure half: rows and profiles in, rows and alerts out. policy_of: model → policy."""

    baselines: Mapping[str, Baseline]
    secrets: Secrets
    policy_of: Callable[[str], Policy]

    def survey(self, rows: Iterable[tuple[ClientKey, DecisionRow]], reported: Reported = NOTHING) -> Survey:
        """Clients, campaigns and groups of one tenant. reported: indicators of peers, which link the clients that match them."""
        return Grouping(self.baselines, self.secrets).survey(rows, reported)

    def assess(
        self, group: Suspected, read: Read, before: StoredDecision | None, now_s: int | None, episode: int = 0
    ) -> tuple[DecisionRow, OutboxAlert | None] | None:
        """The group's row as it is stored, and the alert if there is news.

        read: profile fields of clients; episode: the number of the first, where there is no readable row.

        None when it neither is nor was flagged, or has too few profiles left.
        """
        key, baseline = group.key, self.baselines[group.key.model]
        judged = list(self._accounts(group.members[:MOST_JUDGED], read, baseline))
        if len(judged) < FEWEST:
            return None
        assessment = assess_group([a.profile for a in judged], baseline, [a.in_order for a in judged], group.by_content)
        assessment = replace(assessment, queries=group.queries, evidence=_completed(assessment.evidence, group))
        names = tuple(sorted(unsealed(one, self.secrets, key.tenant) for one in group.sealed))
        earlier = previous(before, episode)
        now = max(a.profile.last_ms for a in judged) // 1000 if now_s is None else now_s
        decision = decide_group(earlier, assessment, baseline.calibration, self.policy_of(key.model), now)
        if before is not None and (before.assessment.queries, before.members) == (assessment.queries, names):
            decision = lapsed(earlier, decision, now)
        if before is None and decision.state not in FLAGGED:
            return None
        if group.honest_at_most is not None and decision.reason == "campaign":
            decision = replace(decision, reason="campaign_content")
        seen = {a.key: a for a in judged}
        few = group.named[:MOST_MERGED]
        others = self._accounts([k for k in few if k not in seen], read, baseline)
        accounts = [*(seen[k] for k in few if k in seen), *others] or judged
        whole = merged([a.profile for a in accounts])
        events = sample_events.together((blob for a in accounts for blob in a.events), self.secrets, key.tenant)
        record = ClientRecord(group.campaign_id, whole, (), group.links, events, Refusals(), names, group.ties)
        witnesses = sample_events.chosen(events, assessment.strongest, baseline.table)
        exposure = estimate(whole, baseline.map, baseline.estimator)
        spent = self.policy_of(key.model).exposure.spent(exposure)
        trail = trajectory(whole, baseline, assessment)
        row = decided(
            record, before, decision, assessment, exposure, trail, witnesses, exposed=spent, baseline=baseline.id
        )
        known = before.alert if before is not None else None
        new = len(set(names[:MEMBERS_TOLD]) - set(known.get("members", ()))) if known else 0
        joined = new > (0 if group.honest_at_most is None else GROWN_CELL * len(names))
        joined |= before is not None and spent not in ("none", before.exposed)  # its exposure budget is news too
        return alert.told(key, row, before, news(earlier, decision, known is not None, joined), self.secrets)

    def _accounts(self, keys: Sequence[ClientKey], read: Read, baseline: Baseline) -> Iterator[_Account]:
        """Those whose profile can be read, `READ_AT_ONCE` at a time."""
        for at in range(0, len(keys), READ_AT_ONCE):
            some = keys[at : at + READ_AT_ONCE]
            fields = read(some)
            for key in some:
                cells = fields.get(key, {})
                found = read_profile(key, cells, baseline, self.secrets)
                if found is not None:
                    events = tuple(shard.get(sample_events.FIELD) for shard in cells.values())
                    yield _Account(key, found[0], len(cells) <= 1, events)

    def ended(self, key: ClientKey, before: StoredDecision, now_s: int) -> tuple[DecisionRow, OutboxAlert | None]:
        """A campaign whose accounts nothing ties together any more, its time over."""
        decision = Decision("clear", "expired", now_s, 0, before.decision.episode + 1)
        telling = news(before.decision, decision, before.alert is not None)
        return alert.told(key, with_decision(before, decision), before, telling, self.secrets)

    def names(self, standing: Mapping[ClientKey, StoredDecision]) -> dict[ClientKey, str]:
        """Client → the flagged campaign that names it, the most suspicious of several."""
        flagged = [(row.assessment.p_value, key, row) for key, row in standing.items() if row.decision.state in FLAGGED]
        found: dict[ClientKey, str] = {}
        for _, key, row in sorted(flagged, key=lambda r: r[:2]):
            for member in row.members:
                client = ClientKey(key.tenant, key.model, self.secrets.client_hash(key.tenant, member))
                found.setdefault(client, row.client_id)
        return found


@dataclass(slots=True)
class Search:
    """The other half: a pass over the rows of a tenant.

    assessed  campaign → (members, queries of those named) when what came of it was last recorded by us, the longest ago first
    surveyed  told at the end of a pass what stands then, by tenant
    """

    store: ServiceStore
    campaigns: Campaigns
    most_groups: int = MOST_GROUPS
    most_members: int = MOST_MEMBERS
    assessed: dict[ClientKey, tuple[tuple[ClientKey, ...], int]] = field(default_factory=dict)
    surveyed: Callable[[str, Survey], None] = lambda tenant, survey: None
    unreadable: UnreadableCells = field(default_factory=UnreadableCells)

    def run(
        self, tenant: str, held: MutableMapping[int, H], now_s: int | None, process: str, lease_ms: int
    ) -> list[Outcome]:
        """What was recorded. A cell that is not ours any more is dropped from `held`. Raises Unavailable."""
        survey = self.campaigns.survey(self.store.decisions(tenant), reported(self.store, tenant, now_s or 0))
        groups = {group.key: group for group in survey.groups}
        self.assessed = {k: v for k, v in self.assessed.items() if k.tenant != tenant or k in groups}
        due = [*self._due(survey, held, now_s), *_without_group(survey, groups, now_s)]
        inside = _inside(survey.groups)
        new_inside = [key for key in due if key in inside and key not in survey.standing]
        recorded = []
        for keys in ([key for key in due if key not in new_inside], new_inside):
            work: dict[int, list[ClientKey]] = {}
            for key in keys:
                if key not in new_inside or not any(_flagged(survey.standing.get(larger)) for larger in inside[key]):
                    work.setdefault(decision_cell(key, self.store.decision_cells), []).append(key)
            for cell, mine in sorted(work.items()):
                looked: dict[ClientKey, tuple[tuple[ClientKey, ...], int]] = {}
                assess = functools.partial(self._assess, groups=groups, now_s=now_s, looked=looked)
                outcome = self._recorded(cell, mine, assess, held, process, lease_ms)
                if outcome is None:
                    continue  # not ours any more, so nobody may take these groups for assessed
                for key, state in looked.items():
                    self.assessed.pop(key, None)
                    self.assessed[key] = state
                if outcome.rows:
                    recorded.append(outcome)
                    for key, row in outcome.rows.items():
                        survey.standing[key] = stored_decision(row, self.campaigns.secrets, tenant)
        names = self.campaigns.names(survey.standing)
        renamed: dict[int, list[ClientKey]] = {}
        for key, summary in survey.clients.items():
            if names.get(key) != summary.campaign_id:
                renamed.setdefault(decision_cell(key, self.store.decision_cells), []).append(key)
        for cell, keys in sorted(renamed.items()):
            outcome = self._recorded(
                cell, keys, lambda c, k, rows: self._rename(c, k, names, rows), held, process, lease_ms
            )
            if outcome is not None and outcome.rows:
                recorded.append(outcome)
        self.surveyed(tenant, survey)
        return recorded

    def _due(self, survey: Survey, held: Mapping[int, Any], now_s: int | None) -> list[ClientKey]:
        """Groups of our cells that changed, or whose campaign's time is over; as many as a pass takes."""
        due = []
        for group in survey.groups:
            before = survey.standing.get(group.key)
            over = before is not None and now_s is not None and 0 < before.decision.until_s <= now_s
            if decision_cell(group.key, self.store.decision_cells) in held and (
                over or _changed(group, self.assessed.get(group.key))
            ):
                due.append(group)
        waited = {key: i for i, key in enumerate(self.assessed)}
        due.sort(key=lambda g: (waited.get(g.key, -1), -g.oddness, g.key))
        chosen: list[ClientKey] = []
        members = 0
        for group in due[: self.most_groups]:
            members += min(len(group.members), MOST_MERGED)
            if chosen and members > self.most_members:
                break
            chosen.append(group.key)
        if len(chosen) < len(due):
            log.warning("more groups than a pass assesses", extra={"groups": len(due), "assessed": len(chosen)})
        return chosen

    def _recorded(
        self,
        cell: int,
        keys: Sequence[ClientKey],
        step: Callable[[int, Sequence[ClientKey], Mapping[ClientKey, DecisionRow]], Outcome],
        held: MutableMapping[int, H],
        process: str,
        lease_ms: int,
    ) -> Outcome | None:
        """Read the rows, and write what `step` makes of them under the cell's fence; None when the cell is not ours any more."""
        mine = held.get(cell)
        if mine is None:
            return None
        try:
            outcome = step(cell, keys, self.store.load_decisions(cell, mine.token, mine.revision, keys))
            if outcome.rows:
                mine.revision = self.store.record(mine.token, mine.revision, outcome, process, lease_ms)
        except (Fenced, Rewound):
            held.pop(cell, None)
            return None
        return outcome

    def _assess(
        self,
        cell: int,
        keys: Sequence[ClientKey],
        rows: Mapping[ClientKey, DecisionRow],
        groups: Mapping[ClientKey, Suspected],
        now_s: int | None,
        looked: dict[ClientKey, tuple[tuple[ClientKey, ...], int]],
    ) -> Outcome:
        """What the groups and campaigns come to. looked: filled with what they were when we looked, for `assessed`."""
        outcome, read = Outcome(cell), functools.partial(fields_of, self.store, unreadable=self.unreadable)
        for key in keys:
            before = self._stored(key, rows)
            episode = episode_after(rows[key]) if before is None and key in rows else 0
            group, found = groups.get(key), None
            if group is not None:
                try:
                    found = self.campaigns.assess(group, read, before, now_s, episode)
                except CorruptState:  # it was reported
                    looked[key] = (), -1  # has changed in any case, and waits behind the others
                    continue
                looked[key] = group.members, group.queries
            if found is None and before is not None and _over(before, now_s):
                found = self.campaigns.ended(key, before, now_s or 0)
            if found is not None:
                outcome.rows[key], told = found
                outcome.alerts += [told] if told is not None else []
        return outcome

    def _rename(
        self,
        cell: int,
        keys: Sequence[ClientKey],
        names: Mapping[ClientKey, str],
        rows: Mapping[ClientKey, DecisionRow],
    ) -> Outcome:
        outcome = Outcome(cell)
        for key in keys:
            row = self._stored(key, rows)
            if row is not None and row.campaign_id != names.get(key):
                named = replace(row, campaign_id=names.get(key))
                outcome.rows[key] = packed_decision(named, self.campaigns.secrets, key.tenant)
        return outcome

    def _stored(self, key: ClientKey, rows: Mapping[ClientKey, DecisionRow]) -> StoredDecision | None:
        if key not in rows:
            return None
        secrets = self.campaigns.secrets
        return readable("decision row", stored_decision, rows[key], secrets, key.tenant, model=key.model)


def _completed(evidence: tuple[Evidence, ...], group: Suspected) -> tuple[Evidence, ...]:
    """The evidence; its first sentence says how many accounts are not named, or, where only content ties them, may be honest."""
    if not evidence:
        return evidence
    if group.honest_at_most is None:
        others = len(group.members) - len(group.named)
        more = f"; others that are tied to these, {others:,} in number, are not named, for they are not odd enough for their size"
        return (replace(evidence[0], text=evidence[0].text + more), *evidence[1:]) if others else evidence
    tie = TIES.get(group.by_shared_content, "nothing")
    bound = f"; {tie} ties these {len(group.named):,} accounts, and at most {group.honest_at_most:,} of them are honest (95 %)"
    if group.alike >= SAME * len(group.named):
        bound += f"; {group.alike:,} share one template filled with texts of the model's domain, as accounts of one application do"
    return (replace(evidence[0], text=evidence[0].text + bound), *evidence[1:])


def _changed(group: Suspected, before: tuple[tuple[ClientKey, ...], int] | None) -> bool:
    """Whether a group is to be assessed again; a large one only when it has grown by more than `GROWN`."""
    if before is None or before == (group.members, group.queries):
        return before is None
    if len(group.members) <= MOST_JUDGED:
        return True
    members, queries = before
    other = len(set(members) ^ set(group.members))
    return other > GROWN * len(members) or abs(group.queries - queries) > GROWN * queries


def _inside(groups: Sequence[Suspected]) -> dict[ClientKey, list[ClientKey]]:
    """Group → the larger groups that hold all of its accounts (half, if odd queries or a template tie it); only groups that have such."""
    of: dict[ClientKey, list[int]] = {}
    for i, group in enumerate(groups):
        for member in group.members:
            of.setdefault(member, []).append(i)
    found = {}
    for group in groups:
        shared = Counter(i for member in group.members for i in of[member])
        size = len(group.members)
        held = SAME * size if group.by_shared_content else size
        larger = [groups[i].key for i, both in sorted(shared.items()) if both >= held and size < len(groups[i].members)]
        if larger:
            found[group.key] = larger
    return found


def _flagged(row: StoredDecision | None) -> bool:
    return row is not None and row.decision.state in FLAGGED


def _over(before: StoredDecision, now_s: int | None) -> bool:
    """Whether a campaign that nothing holds together has come to its end."""
    return now_s is not None and before.decision.state != "clear" and before.decision.until_s <= now_s


def _without_group(survey: Survey, groups: Mapping[ClientKey, Suspected], now_s: int | None) -> list[ClientKey]:
    return sorted(key for key, row in survey.standing.items() if key not in groups and _over(row, now_s))
