"""The pure half of detect: profiles come in, an outcome goes out.

Rules:
* No I/O, no clock, no random numbers: a redo over the same shards and rows gives the same outcome.
* Input: the touched clients, what is stored about them, and operators' entries. Output: rows and alerts, sealed as they are stored.
* A profile or header that cannot be read is skipped with a warning. A client without any readable one is not assessed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from consumers.detect import episodes
from consumers.errors import CorruptState
from consumers.records import links, refusals, sample_events
from consumers.records.decision import StoredDecision, packed_decision
from consumers.records.spans import Fields, spans_in_force, together
from consumers.secrets import Secrets
from consumers.store import Cursor, OutboxAlert, Outcome
from detector.baseline import Baseline
from detector.policy import Decision, Mode, Policy, decide, lapsed
from detector.profile import Profile
from detector.query import ClientKey
from detector.scoring import Assessment, assess, reached

log = logging.getLogger("querywarden.detect")

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
    misfits_held  (tenant, model) → whether misfits are held back until an operator rules (detect/schema_holds.py)
    """

    baselines: Mapping[str, Baseline]
    secrets: Secrets
    policy: Policy = field(default_factory=Policy)
    modes: Mapping[str, Mode] = field(default_factory=dict)
    personas: Mapping[str, str] = field(default_factory=dict)
    misfits_held: Callable[[str, str], bool] = lambda tenant, model: False

    def policy_of(self, model: str) -> Policy:
        """The policy for one model."""
        return replace(self.policy, mode=self.modes[model]) if model in self.modes else self.policy

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
        for one in seen:
            baseline = self.baselines.get(one.key.model)
            merged = self.merged(one.key, one.fields) if baseline is not None else None
            if baseline is None or merged is None:
                continue
            profile, display = merged
            persona = self.personas.get(display, "")
            held = self.misfits_held(one.key.tenant, one.key.model)
            assessment = assess(profile, baseline, len(one.fields), persona, held)
            before, previous = one.before, episodes.previous(one.before)
            now = profile.last_ms // 1000 if now_s is None else now_s
            decision = decide(previous, assessment, baseline.nulls, self.policy_of(one.key.model), now)
            if before is not None and before.queries == assessment.queries:
                decision = lapsed(previous, decision, now)
            if overrule is not None:
                decision = overrule(one.key, previous, decision, now)
            row = episodes.assessed(display, profile, baseline, assessment, decision, before, persona)
            row, alert = self._told(one, row, profile, baseline, assessment)
            outcome.rows[one.key] = packed_decision(row, self.secrets, one.key.tenant)
            if alert is not None:
                outcome.alerts.append(alert)
        return outcome

    def merged(self, key: ClientKey, shards: Fields) -> tuple[Profile, str] | None:
        """The client over one horizon (spans.py), and its id."""
        display = None
        for cell, fields in sorted(shards.items()):
            if "h" in fields:
                try:
                    display = self.secrets.unseal(fields["h"], key.tenant)
                except CorruptState as error:
                    log.warning("header not read", extra={"cell": cell, "model": key.model, "why": str(error)})
        if display is None:
            return None

        def damaged(cell: str, error: Exception) -> None:
            log.warning("profile not read", extra={"cell": cell, "model": key.model, "why": str(error)})

        profile = together(spans_in_force(shards, self.baselines[key.model], damaged))
        return (profile, display) if profile is not None else None

    def _told(
        self, one: Seen, row: StoredDecision, profile: Profile, baseline: Baseline, assessment: Assessment
    ) -> tuple[StoredDecision, OutboxAlert | None]:
        """The row with what only this client's shards say, and its alert if there is news."""
        shards = [fields for _, fields in sorted(one.fields.items())]
        refused = refusals.together(f.get(refusals.FIELD) for f in shards)
        row = msgspec.structs.replace(
            row,
            refused=refused.reasons,
            misfits=refused.columns,
            cells=sorted(one.fields),
            campaign_id=one.before.campaign_id if one.before else None,
            links=links.together(f.get(links.FIELD) for f in shards),
            witnesses=sample_events.chosen(
                (f.get(sample_events.FIELD) for f in shards), assessment.strongest, baseline.table, self.secrets, one.key.tenant
            ),
        )  # fmt: skip

        def began() -> tuple[int, int] | None:
            return reached(profile, baseline, self.policy.budget, row.persona) if assessment.in_order else None

        return episodes.told(one.key, row, one.before, self.secrets, began)
