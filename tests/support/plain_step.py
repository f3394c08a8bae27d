"""The slow twin of a step of detect: client by client, through `Profile`, as before clients were assessed in columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from support import plain_assessment as plain

from consumers.detect.step import Detect, Overrule, Seen
from consumers.records import alert, client, links, refusals, sample_events, usage
from consumers.records.client import ClientRecord
from consumers.records.decision import decided, previous
from consumers.records.spans import fields_of_baseline
from consumers.store import Cursor, Outcome
from detector.baseline import Baseline
from detector.errors import IncompatibleProfile
from detector.policy import EXPOSURE, QUERIES, SPENT, TOKENS, decide, lapsed, news, within_exposure
from detector.profile import Profile
from detector.scoring import reached


def plain_step(
    detect: Detect,
    cell: int,
    seen: Iterable[Seen],
    cursors: Mapping[str, Cursor],
    now_s: int | None,
    overrule: Overrule | None = None,
) -> Outcome:
    """What `detect.step` must say."""
    outcome = Outcome(cell=cell, cursors=dict(cursors))
    for one in seen:
        if one.key.model in detect.baselines:
            _assess(detect, one, outcome, now_s, overrule)
    return outcome


def _assess(detect: Detect, seen: Seen, outcome: Outcome, now_s: int | None, overrule: Overrule | None) -> None:
    key, before, policy = seen.key, seen.before, detect.policy_of(seen.key.model)
    baseline, earlier = detect.baselines[seen.key.model], previous(before, seen.episode)
    found = client.read_profile(key, seen.fields, baseline, detect.secrets)
    if found is None:
        return
    profile, client_id = found
    record = _record(detect, seen, profile, client_id)
    persona = detect.personas.get(client_id, "")
    held = detect.misfits_held(key.tenant, key.model)
    assessment = plain.assessed(profile, baseline, len(record.cells), persona, held)
    now = profile.last_ms // 1000 if now_s is None else now_s
    decision = decide(earlier, assessment, baseline.calibration, policy, now)
    silent = before is not None and before.assessment.queries == assessment.queries
    if silent:
        decision = lapsed(earlier, decision, now)
    exposure = plain.exposed(profile, baseline)
    plan = detect.plans.get(client_id)
    budget = policy.exposure if plan is None else policy.exposure.of_plan(plan)
    asked = (
        (budget.spent(exposure), EXPOSURE),
        (budget.spent_by_queries(assessment.distinct), QUERIES),
        (budget.spent_by_tokens(record.tokens), TOKENS),
    )
    spent, why = max(asked, key=lambda one: SPENT.index(one[0]))
    decision = within_exposure(earlier, decision, spent, policy.mode, now, silent, why)
    if overrule is not None:
        decision = overrule(key, earlier, decision, now)
    trail = plain.trail(profile, baseline, assessment, persona)
    telling = news(earlier, decision, before is not None and before.alert is not None)
    began = None
    if telling == "raised" and assessment.in_order:
        began = reached(profile, baseline, policy.budget, persona)
    witnesses = sample_events.chosen(record.sample_events, assessment.strongest, baseline.table)
    observations = plain.observed(profile, baseline, assessment.in_order, plan, _change(seen, baseline))
    row = decided(
        record, before, decision, assessment, exposure, trail, witnesses, persona, spent, baseline.id, observations
    )
    row, told_spent = alert.spent_told(key, row, before, budget, why, detect.secrets)
    outcome.rows[key], told = alert.told(key, row, before, telling, detect.secrets, began)
    outcome.alerts += [one for one in (told, told_spent) if one is not None]


def _change(seen: Seen, baseline: Baseline) -> list[float] | None:
    if len(seen.fields) != 1:
        return None
    (values,) = seen.fields.values()
    try:
        stored = sorted(fields_of_baseline(values, baseline.id).items())
        spans = [Profile.from_bytes(blob, baseline.shape) for _, blob in stored]
    except (ValueError, IncompatibleProfile):
        return None
    windows = [window for window, _ in stored]
    return plain.own_change(spans) if windows and windows[-1] == windows[0] + 1 else None


def _record(detect: Detect, seen: Seen, profile: Profile, client_id: str) -> ClientRecord:
    shards = [shard for _, shard in sorted(seen.fields.items())]
    counted = refusals.together(shard.get(refusals.FIELD) for shard in shards)
    tokens = usage.together(shard.get(usage.FIELD) for shard in shards)
    linked, shared = links.together(shard.get(links.FIELD) for shard in shards)
    events = sample_events.together(
        (shard.get(sample_events.FIELD) for shard in shards), detect.secrets, seen.key.tenant
    )
    return ClientRecord(
        client_id, profile, tuple(sorted(seen.fields)), linked, events, counted, shared=shared, tokens=tokens
    )
