"""The pages of models: all of them in a list, and one with its calibration and where its clients stand among honest ones.

Rules: as in this folder's `__init__`. A figure without a baseline of this process is left out, not guessed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from consumers.http.dashboard import page_charts
from consumers.http.dashboard.queue_page import Filters
from consumers.http.dashboard.site import BIG, SMALL, Site, counts_of
from consumers.readers.explanation import MODE_WORDS
from consumers.readers.models import Model
from detector.baseline import Baseline
from detector.policy import BLOCK_FACTOR, STATES, WATCH_FACTOR

MOST_SPOTS = 300


def models(site: Site) -> dict[str, Any]:
    return {
        "models": [
            {
                "id": m.model_id,
                "href": site.model_address(m.model_id),
                "calibration": _calibration(site, m),
                "total": m.clients,
                "counts": counts_of([m]),
                "mode": site.reader.modes.of(m.model_id),
            }
            for m in site.reader.models()
        ]
    }


def model(site: Site, model: str) -> dict[str, Any] | None:
    m, baseline = site.reader.model(model), site.baselines.get(model)
    if m is None:
        return None
    counts = counts_of([m])
    limits = [
        ("watch", site.budget * WATCH_FACTOR),
        ("throttle", site.budget),
        ("block", site.budget * BLOCK_FACTOR),
    ]
    reach = {
        "watch": counts["watch"] + counts["throttle"] + counts["block"],
        "throttle": counts["throttle"] + counts["block"],
        "block": counts["block"],
    }
    page: dict[str, Any] = {
        "id": model,
        "known": baseline is not None,
        "calibrated": bool(m.calibrated),
        "calibration": _calibration(site, m),
        "counts": counts,
        "budget": site.budget,
        "mode": site.reader.modes.of(model),
        "mode_words": MODE_WORDS[site.reader.modes.of(model)],
        "figure": None,
        "facts": [],
        "limits": [],
        "expected": [{"state": s, "p": p, "expected": p * m.clients, "seen": reach[s]} for s, p in limits]
        if m.clients
        else [],
        "queue_href": f"/{Filters(model=model).address()}",
    }
    if baseline is not None:
        page |= {
            "figure": _honest(site, model, baseline, limits),
            "facts": _facts(baseline),
            "limits": _limits(site, baseline),
        }
    return {"m": page}


def _honest(site: Site, model: str, baseline: Baseline, limits: Sequence[tuple[str, float]]) -> list[str]:
    tail = baseline.ordered
    spots = [
        (tail.level(c.p_value), c.state)
        for c in itertools.islice(site.ranked(model, STATES), MOST_SPOTS)
        if c.p_value < 1
    ]
    levels = [(state, tail.level(p)) for state, p in limits if p < 1]
    maxima = tail.maxima.tolist()
    return [page_charts.honest_figure(maxima, tail.p, levels, spots, w, h) for w, h in ((BIG + 340, 380), (SMALL, 320))]


def _calibration(site: Site, m: Model) -> str:
    baseline = site.baselines.get(m.model_id)
    if baseline is None:
        return "the baseline is not loaded here"
    return "; ".join(baseline.notes) or "calibrated"


def _limits(site: Site, baseline: Baseline) -> list[str]:
    calibration, said = baseline.calibration, []
    if calibration.calibrated and not calibration.supports(site.budget * BLOCK_FACTOR):
        need = round(1 / (site.budget * BLOCK_FACTOR))
        said.append(
            f"{calibration.clients:,} honest clients are too few to block at this budget; {need:,} are needed. Detection blocks no client."
        )
    if not calibration.calibrated:
        said.append(
            f"Calibrated on {calibration.source}: no client is blocked, and the rates are rough. "
            "Fit it again with the traffic of more clients."
        )
    return said


def _facts(baseline: Baseline) -> list[tuple[str, str]]:
    calibration = baseline.calibration
    return [
        ("honest clients", calibration.source),
        ("longest honest client", f"{calibration.days:.1f} days, {calibration.distinct:,.0f} distinct queries"),
        (
            "reference",
            f"{baseline.facts.get('reference_rows', 0):,.0f} rows, {len(baseline.map.schema.columns)} columns",
        ),
        ("feature map", baseline.map_id),
        ("nulls", str(baseline.calibration_version)),
    ]
