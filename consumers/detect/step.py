"""The pure half of detect: profiles come in, an outcome goes out.

Rules:
* No I/O, no clock, no random numbers: a redo over the same shards and rows gives the same outcome.
* Input: the touched clients, what is stored about them, and operators' entries. Output: rows and alerts, sealed as they are stored.
* This file knows the order of the steps and nothing else. `records.client` reads what ingest stored; the detector assesses, decides and
  says what there is to tell; `records.decision` and `records.alert` build and seal rows and alerts.
* Profiles are read and assessed together, in columns (docs/decisions/0044); decisions follow one by one.
* A client without a readable profile or header is not assessed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from consumers.records import alert, odd_patches, sample_events, templates
from consumers.records.client import ClientRecord, read_clients
from consumers.records.decision import StoredDecision, decided
from consumers.secrets import Secrets
from consumers.store import Cursor, Outcome
from detector.baseline import Baseline
from detector.exposure import Exposure, estimate_columns
from detector.own_life import Observation, observed, shared_template
from detector.patch_groups import LEVEL
from detector.policy import (
    BUDGETS,
    SPENT,
    Decision,
    ExposureBudget,
    Mode,
    Policy,
    decide,
    lapsed,
    news,
    within_exposure,
)
from detector.query import ClientKey
from detector.scoring import Assessment, assess_columns, reached, trajectory

AT_ONCE = 256
"""Clients whose profiles are read and assessed together: enough that a call costs nothing a client, some 4 MB of columns."""

Overrule = Callable[[ClientKey, Decision, Decision, float], Decision]
"""(client, previous decision, decision, now in s) → the decision as it may be enforced."""


@dataclass(slots=True)
class Seen:
    """A touched client with all that was read of it: its shards by profile cell, its header, its earlier decision.

    episode  of a client without a readable decision, the number of its first episode
    """

    key: ClientKey
    fields: dict[str, Mapping[str, bytes]]
    before: StoredDecision | None
    episode: int = 0


class CellSeen(NamedTuple):
    """What was read for one decision cell: its touched clients, and the cursors to be."""

    cell: int
    seen: Sequence[Seen]
    cursors: Mapping[str, Cursor]


class _Judged(NamedTuple):
    """What the profile of a client says, and by which baseline and policy it is to be decided about."""

    baseline: Baseline
    policy: Policy
    record: ClientRecord
    persona: str
    assessment: Assessment
    exposure: Exposure | None
    observations: tuple[Observation, ...]


@dataclass(slots=True)
class Detect:
    """Everything it needs to turn profiles and earlier decisions into an outcome.

    modes     models with another mode than the policy's
    personas  client id → the use that its owner declared
    exposures  models with another exposure budget than the policy's
    plans     client id → distinct queries that it declared
    misfits_held  (tenant, model) → whether misfits are held back until an operator rules (detect/schema_holds.py)
    """

    baselines: Mapping[str, Baseline]
    secrets: Secrets
    policy: Policy = field(default_factory=Policy)
    modes: Mapping[str, Mode] = field(default_factory=dict)
    personas: Mapping[str, str] = field(default_factory=dict)
    misfits_held: Callable[[str, str], bool] = lambda tenant, model: False
    exposures: Mapping[str, ExposureBudget] = field(default_factory=dict)
    plans: Mapping[str, int] = field(default_factory=dict)

    def policy_of(self, model: str) -> Policy:
        """The policy for one model."""
        mode, exposure = self.modes.get(model, self.policy.mode), self.exposures.get(model, self.policy.exposure)
        return replace(self.policy, mode=mode, exposure=exposure)

    def step(
        self,
        cell: int,
        seen: Sequence[Seen],
        cursors: Mapping[str, Cursor],
        now_s: int | None,
        overrule: Overrule | None = None,
    ) -> Outcome:
        """Assess and decide. `now_s` None: the time of the client's last query is now (replay). No I/O."""
        return next(self.steps([CellSeen(cell, seen, cursors)], now_s, overrule))

    def steps(
        self, cells: Sequence[CellSeen], now_s: int | None, overrule: Overrule | None = None
    ) -> Iterator[Outcome]:
        """The step of each decision cell, in their order. Profiles are assessed together, decisions follow when their cell's turn comes."""
        judged = self._judged([client for one in cells for client in one.seen])
        for one in cells:
            outcome = Outcome(cell=one.cell, cursors=dict(one.cursors))
            self._decide(itertools.islice(judged, len(one.seen)), outcome, now_s, overrule)
            yield outcome

    def _decide(
        self,
        clients: Iterable[tuple[Seen, _Judged | None]],
        outcome: Outcome,
        now_s: int | None,
        overrule: Overrule | None,
    ) -> None:
        """Add the clients' rows to the outcome, and an alert for each of which there is news."""
        # one after the other: what the breaker allows depends on who came before
        for client, judged in clients:
            if judged is None:
                continue
            key, before = client.key, client.before
            baseline, policy, record, persona, assessment, exposure, observations = judged
            earlier = Decision(episode=client.episode) if before is None else before.decision
            profile = record.profile
            now = profile.last_ms // 1000 if now_s is None else now_s
            decision = decide(earlier, assessment, baseline.calibration, policy, now)
            silent = before is not None and before.assessment.queries == assessment.queries
            if silent:
                decision = lapsed(earlier, decision, now)
            plan = self.plans.get(record.client_id)
            budget = policy.exposure if plan is None else policy.exposure.of_plan(plan)
            by_worth, by_queries = budget.spent(exposure), budget.spent_by_queries(assessment.distinct)
            asked = (by_worth, by_queries, budget.spent_by_tokens(record.tokens))
            spent, why = max(zip(asked, BUDGETS, strict=True), key=lambda one: SPENT.index(one[0]))
            decision = within_exposure(earlier, decision, spent, policy.mode, now, silent, why)
            if overrule is not None:
                decision = overrule(key, earlier, decision, now)
            trail = trajectory(profile, baseline, assessment, persona)
            telling = news(earlier, decision, before is not None and before.alert is not None)
            began = None
            if telling == "raised" and assessment.in_order:
                began = reached(profile, baseline, policy.budget, persona)
            witnesses = sample_events.chosen(record.sample_events, assessment.strongest, baseline.table)
            tied, told_of_texts = self._tied(key, record, baseline) if assessment.size_p_value <= LEVEL else ((), ())
            row = decided(
                record,
                before,
                decision,
                assessment,
                exposure,
                trail,
                witnesses,
                persona,
                exposed=spent,
                baseline=baseline.id,
                observations=observations + told_of_texts,
                patches=tied,
            )
            row, told_spent = alert.spent_told(key, row, before, budget, why, self.secrets)
            outcome.rows[key], told = alert.told(key, row, before, telling, self.secrets, began)
            outcome.alerts += [one for one in (told, told_spent) if one is not None]

    def _tied(
        self, key: ClientKey, record: ClientRecord, baseline: Baseline
    ) -> tuple[tuple[str, ...], tuple[Observation, ...]]:
        """Of a client that is odd for its size: keyed hashes of its odd patches and of its templates; what its texts share."""
        place = baseline.map_id, self.secrets, key.tenant
        links = odd_patches.hashed(odd_patches.together(record.patches, *place) or (), *place)
        recurring = templates.together(record.templates, *place)
        if recurring is None:
            return links, ()
        foreign = recurring.foreign(baseline.calibration.templates.level)
        usual = [one for one in recurring.templates if one not in foreign]
        links += templates.hashed(foreign, *place) + templates.hashed(usual, *place, templates.USUAL)
        return links, shared_template(*recurring.shared)

    def _judged(self, clients: Sequence[Seen]) -> Iterator[tuple[Seen, _Judged | None]]:
        """The clients in their order, with what their profiles say; None for one that is not assessed."""
        for at in range(0, len(clients), AT_ONCE):
            some = clients[at : at + AT_ONCE]
            judged: dict[ClientKey, _Judged] = {}
            for model in dict.fromkeys(client.key.model for client in some):
                if model in self.baselines:
                    judged |= self._judged_of(model, [client for client in some if client.key.model == model])
            yield from ((client, judged.get(client.key)) for client in some)

    def _judged_of(self, model: str, clients: Sequence[Seen]) -> dict[ClientKey, _Judged]:
        """What the profiles of clients of one model say."""
        baseline, policy = self.baselines[model], self.policy_of(model)
        read = read_clients([(client.key, client.fields) for client in clients], baseline, self.secrets)
        if read.profiles is None:
            return {}
        held = {tenant: self.misfits_held(tenant, model) for tenant in {key.tenant for key in read.keys}}
        personas = [self.personas.get(record.client_id, "") for record in read.records]
        assessments = assess_columns(
            read.profiles,
            baseline,
            [len(record.cells) for record in read.records],
            personas,
            [held[key.tenant] for key in read.keys],
        )
        exposures = estimate_columns(read.profiles, baseline.map, baseline.estimator)
        in_order = [assessment.in_order for assessment in assessments]
        plans = [self.plans.get(record.client_id) for record in read.records]
        observations = observed(read.profiles, baseline, in_order, plans, read.changes)
        rows = zip(read.records, personas, assessments, exposures, observations, strict=True)
        return {key: _Judged(baseline, policy, *row) for key, row in zip(read.keys, rows, strict=True)}
