"""Recalibrate a baseline: the clients in the store become the new null distributions of its model.

Rules:
* Each client counts once.
* Excluded are: flagged clients, unless an analyst's verdict is false positive; clients with the verdict true positive; clients that the
  caller excludes; the overflow client and campaigns, which are not clients.
* Nothing is written to the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from consumers.errors import InvalidInput
from consumers.records import odd_patches, operator_entries, templates
from consumers.records.damaged import readable
from consumers.records.decision import StoredDecision, is_campaign, stored_decision
from consumers.records.ledger import OVERFLOW
from consumers.records.spans import change_of, fields_of, spans_in_force, together
from consumers.secrets import Secrets
from consumers.store import ServiceStore
from consumers.times import rfc3339
from detector.baseline import Baseline
from detector.errors import DetectorError
from detector.features import PATCHED
from detector.fitting.recalibration import MIN_DAYS, KnownClient, Recalibrated
from detector.fitting.recalibration import recalibrate as with_new_calibration
from detector.policy import FLAGGED
from detector.query import ClientKey

AT_ONCE = 500
"""Clients whose profiles are read from a cell at once."""


@dataclass(frozen=True, slots=True)
class Presumption:
    """Who counts as honest.

    personas  client id → declared use
    excluded  client ids that don't
    flagged   whether clients that were flagged do, too
    """

    personas: Mapping[str, str] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()
    flagged: bool = False


def recalibrate(
    store: ServiceStore,
    secrets: Secrets,
    tenant: str,
    baseline: Baseline,
    presumption: Presumption,
    min_days: float = MIN_DAYS,
) -> Recalibrated:
    """Calibrate `baseline` anew on a model's clients in the store. Raises InvalidInput in one line."""
    left_out: Counter[str] = Counter()
    newest = [0]
    clients = _known_clients(store, secrets, tenant, baseline, presumption, left_out, newest)
    try:
        made = with_new_calibration(baseline, clients, "clients that the service saw", min_days, left_out)
    except DetectorError as error:
        why = f" (left out: {', '.join(f'{n} {why}' for why, n in left_out.most_common())})" if left_out else ""
        raise InvalidInput(f"model {baseline.model_id}: {error}{why}") from error
    notes = (*made.baseline.notes, f"their last query is of {rfc3339(newest[0])}")
    return replace(made, baseline=replace(made.baseline, notes=notes))


def _known_clients(
    store: ServiceStore,
    secrets: Secrets,
    tenant: str,
    baseline: Baseline,
    presumption: Presumption,
    left_out: Counter[str],
    newest: list[int],
) -> Iterator[KnownClient]:
    """Presumably honest clients, some at a time. `left_out` counts the others, `newest` gets the time of the last query."""
    verdicts = operator_entries.last_verdicts(store, tenant)
    nobody = secrets.client_hash(tenant, OVERFLOW)
    honest: dict[ClientKey, str] = {}
    for key, row in store.decisions(tenant, baseline.model_id):
        if key.client == nobody or is_campaign(key):
            continue
        decision = readable(None, stored_decision, row, secrets, tenant)
        if decision is None:
            left_out["unreadable"] += 1
            continue
        why = _suspect(key, decision, verdicts, presumption)
        if why:
            left_out[why] += 1
        else:
            honest[key] = decision.client_id
    keys = list(honest)
    for start in range(0, len(keys), AT_ONCE):
        for key, by_cell in fields_of(store, keys[start : start + AT_ONCE]).items():
            profile = together(spans_in_force(by_cell, baseline))
            if profile is None:
                left_out["without a profile"] += 1
                continue
            newest[0] = max(newest[0], profile.last_ms)
            client = honest[key]
            blobs = (fields.get(odd_patches.FIELD) for fields in by_cell.values())
            patches = odd_patches.together(blobs, baseline.map_id, secrets, tenant)
            if patches is None and not (profile.odd_bits & np.uint32(PATCHED)).any():
                patches = ()  # nothing about it is odd; otherwise it was last seen before they were kept
            persona = presumption.personas.get(client, "")
            written = (fields.get(templates.FIELD) for fields in by_cell.values())
            recurring = templates.together(written, baseline.map_id, secrets, tenant)
            yield KnownClient(client, profile, len(by_cell), persona, patches, change_of(by_cell, baseline), recurring)


def _suspect(
    key: ClientKey,
    decision: StoredDecision,
    verdicts: Mapping[str, operator_entries.StoredVerdict],
    presumption: Presumption,
) -> str:
    """Why a client is not presumed honest; "" when it is."""
    if decision.client_id in presumption.excluded:
        return "excluded by hand"
    alert_id = decision.alert["alert_id"] if decision.alert else ""
    verdict = verdicts.get(operator_entries.entry_key(key.model, key.client)) or verdicts.get(alert_id)
    if verdict is not None:
        return "found to be a thief" if verdict.verdict == "true_positive" else ""
    was = {decision.decision.state, *(entered.state for entered in decision.history)}
    return "flagged, without a verdict" if was & set(FLAGGED) and not presumption.flagged else ""
