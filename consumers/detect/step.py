"""The pure half of detect: profiles come in, an outcome goes out.

Rules:
* No I/O, no clock, no random numbers: a redo over the same shards and rows gives the same outcome.
* Input: the touched clients, what is stored about them, and operators' entries. Output: rows and alerts, sealed as they are stored.
* This file knows the order of the steps and nothing else. `records.client` reads what ingest stored; the detector assesses, decides and
  says what there is to tell; `records.decision` and `records.alert` build and seal rows and alerts.
* A client without a readable profile or header is not assessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from consumers.records import alert, sample_events
from consumers.records.client import read_client
from consumers.records.decision import StoredDecision, decided, previous
from consumers.secrets import Secrets
from consumers.store import Cursor, Outcome
from detector.baseline import Baseline
from detector.exposure import estimate
from detector.policy import (
    EXPOSURE,
    QUERIES,
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
from detector.scoring import assess, reached, trajectory

Overrule = Callable[[ClientKey, Decision, Decision, float], Decision]
"""(client, previous decision, decision, now in s) → the decision as it may be enforced."""


@dataclass(slots=True)
class Seen:
    """A touched client with all that was read of it: its shards by profile cell, its header, its earlier decision."""

    key: ClientKey
    fields: dict[str, Mapping[str, bytes]]
    before: StoredDecision | None


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
        seen: Iterable[Seen],
        cursors: Mapping[str, Cursor],
        now_s: int | None,
        overrule: Overrule | None = None,
    ) -> Outcome:
        """Assess and decide. `now_s` None: the time of the client's last query is now (replay). No I/O."""
        outcome = Outcome(cell=cell, cursors=dict(cursors))
        for client in seen:
            if (baseline := self.baselines.get(client.key.model)) is not None:
                self._assess(client, baseline, outcome, now_s, overrule)
        return outcome

    def _assess(
        self, client: Seen, baseline: Baseline, outcome: Outcome, now_s: int | None, overrule: Overrule | None
    ) -> None:
        """Add the client's row to the outcome, and its alert if there is news."""
        key, before, policy = client.key, client.before, self.policy_of(client.key.model)
        earlier = previous(before)
        record = read_client(key, client.fields, baseline, self.secrets)
        if record is None:
            return
        profile, persona = record.profile, self.personas.get(record.client_id, "")
        assessment = assess(profile, baseline, len(record.cells), persona, self.misfits_held(key.tenant, key.model))
        now = profile.last_ms // 1000 if now_s is None else now_s
        decision = decide(earlier, assessment, baseline.calibration, policy, now)
        silent = before is not None and before.assessment.queries == assessment.queries
        if silent:
            decision = lapsed(earlier, decision, now)
        exposure = estimate(profile, baseline.map, baseline.estimator)
        plan = self.plans.get(record.client_id)
        budget = policy.exposure if plan is None else policy.exposure.of_plan(plan)
        by_worth, by_queries = budget.spent(exposure), budget.spent_by_queries(assessment.distinct)
        spent, why = max((by_worth, EXPOSURE), (by_queries, QUERIES), key=lambda one: SPENT.index(one[0]))
        decision = within_exposure(earlier, decision, spent, policy.mode, now, silent, why)
        if overrule is not None:
            decision = overrule(key, earlier, decision, now)
        trail = trajectory(profile, baseline, assessment, persona)
        telling = news(earlier, decision, before is not None and before.alert is not None)
        began = None
        if telling == "raised" and assessment.in_order:
            began = reached(profile, baseline, policy.budget, persona)
        witnesses = sample_events.chosen(record.sample_events, assessment.strongest, baseline.table)
        row = decided(record, before, decision, assessment, exposure, trail, witnesses, persona)
        row = replace(row, exposed=spent, baseline=baseline.id)
        outcome.rows[key], told = alert.told(key, row, before, telling, self.secrets, began)
        told_spent = alert.spent_told(key, row, before, budget, why, self.secrets)
        outcome.alerts += [one for one in (told, told_spent) if one is not None]
