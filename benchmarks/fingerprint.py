"""A fingerprint of what the detector does: the figures of a small seeded run through fit, fold, assessment and decision.

Results that took half an hour to measure carry it. A refactoring keeps it, and the results stay valid; a change of behaviour changes it,
and `tests/benchmarks/test_fingerprint.py` asks for a new run. Figures are rounded to four digits, so that machines agree.

Its reach is what the run exercises: numeric columns, one model, every order-aware and order-free signal that these clients raise. Groups of
accounts have a fingerprint of their own (`group_fingerprint`), for the benchmark of campaigns; so have groups that a link ties
(`link_fingerprint`) and weak pairs (`pair_fingerprint`), for the benchmark of weak pairs.

    python -m benchmarks.fingerprint
"""

from __future__ import annotations

import hashlib
import json
import sys
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from detector.baseline import Baseline
from detector.calibration import FinalExcess, Tools
from detector.campaigns import candidates, named_of
from detector.features import Column, Schema, infer_grain
from detector.fitting.baseline import fit_baseline
from detector.fleet import fleet_cells
from detector.group_statistic import Members, compared
from detector.patch_groups import OddAccounts, patch_groups
from detector.policy import Policy, wanted
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.scoring import Assessment, assess, reached
from detector.signals import SIGNALS, Statistics
from detector.simulation.attacks import AttackerKnowledge, steal
from detector.simulation.domain import Domain, HonestPools, Rows, strangers
from detector.simulation.population import Stream, account_name, clock, honest_stream, interleave, population
from detector.size_null import SizeNull
from detector.weak_pairs import starts, weak_pairs

CLIENTS, MOST_QUERIES, STOLEN = 48, 120, 260
FAMILIES = ("noise_uniform", "jbda", "line_search", "mixup", "in_domain")
DAY_MS = 86_400_000


def figures() -> list[Any]:
    """Every figure of the run, rounded, in a fixed order."""
    rng = np.random.default_rng(2026)
    x = np.round(rng.normal(size=(400, 3)) @ rng.normal(size=(3, 6)) + 0.3 * rng.normal(size=(400, 6)), 2)
    weights = rng.normal(size=6)
    domain = Domain.of(x)

    def predict(rows: Rows) -> Rows:
        p = 1.0 / (1.0 + np.exp(-rows @ weights))
        return np.stack([1.0 - p, p], 1)

    def batch_of(streams: list[Stream]) -> QueryBatch:
        log = interleave(streams)
        p = predict(log.inputs)
        n = len(p)
        return QueryBatch(
            log.clients, log.who, np.ascontiguousarray(log.inputs), p.argmax(1).astype(np.int32), p.astype(np.float32), np.full(n, np.nan),
            (log.times_s * 1000).astype(np.int64), np.ones(n, np.float32), np.arange(n),
        )  # fmt: skip

    def cut(stream: Stream) -> Stream:
        return Stream(
            stream.client, stream.role, stream.kind, stream.variant, stream.run, stream.inputs[:MOST_QUERIES],
            stream.is_attack[:MOST_QUERIES], stream.times_s[:MOST_QUERIES],
        )  # fmt: skip

    foreign = strangers(domain, x, rng)
    pools = HonestPools(domain, domain.emit(x[:250]), predict(x[:250]).argmax(1).astype(np.int64), x[250:], foreign)
    streams = [
        cut(honest_stream(kind, pools, child))
        for kind, child in zip(population(CLIENTS, rng), rng.spawn(CLIENTS), strict=True)
    ]
    thieves = []
    for family in FAMILIES:
        rows = steal(family, AttackerKnowledge(domain, x[250:], foreign), predict, STOLEN, rng)
        name, times = account_name(rng), clock(STOLEN, rng)
        thieves.append(Stream(name, "attack", family, "plain", family, rows, np.ones(STOLEN, bool), times))
    columns = tuple(
        Column(f"c{j}", "numeric", float(x[:, j].min()), float(x[:, j].max()), infer_grain(x[:, j])) for j in range(6)
    )
    schema = Schema(columns, "features", False, "classification", ("0", "1"))
    reference = batch_of([Stream("r", "benign", "", "", "", x, np.zeros(400, bool), np.arange(400.0))])
    baseline, _ = fit_baseline("m", schema, reference, batch_of(streams[:36]), rng=rng)
    tested = batch_of([*streams[36:], *thieves])
    out: list[Any] = [[_rounded(v) for v in baseline.table.fusing_scale]]
    for half_ms, memory_ms in ((2**62, 0.0), (DAY_MS, 20.0 * DAY_MS)):
        table = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, half_ms, memory_ms=memory_ms)
        profiles = table.of_log(tested, bytes(16), 500)
        for profile in profiles:
            a = assess(profile, baseline)
            out.append([_shown(a), wanted(a, baseline.calibration, Policy(0.05)), reached(profile, baseline, 0.2)])
            out.append(_shown(assess(profile, baseline, shards=2)))
    return out


def fingerprint() -> str:
    """The digest of all figures."""
    return hashlib.sha256(json.dumps(figures()).encode()).hexdigest()[:16]


def group_figures(by_content: bool = True) -> list[Any]:
    """What is made of invented accounts as groups, rounded, in a fixed order. by_content: of groups found by what they ask, too."""
    rng = np.random.default_rng(2026)
    signals = len(SIGNALS)

    def accounts(n: int, odd: float) -> FinalExcess:
        distinct = np.asarray(np.round(np.exp(rng.uniform(2.0, 6.0, n))), np.float64)
        share = np.where(rng.random((n, 1)) < 0.1, 0.5, odd) * rng.random((n, signals))
        return FinalExcess(distinct, (share * distinct[:, None]).astype(np.float32))

    final, tools = accounts(200, 0.02), accounts(12, 0.4)
    kinds = tuple(("what_if", "qa_edge", "explainer")[i % 3] for i in range(len(tools)))
    none = np.empty((len(tools), 0))
    known = SimpleNamespace(final=final, tools=Tools(kinds, none, none, tools))
    baseline, null = cast("Baseline", SimpleNamespace(calibration=known)), SizeNull(final)
    out: list[Any] = []
    for size, odd in ((3, 0.3), (20, 0.1), (60, 0.02), (300, 0.25)):
        group = accounts(size, odd)
        measured = [
            Statistics(*(group.excess[i].astype(np.float64),) * 5, float(group.distinct[i])) for i in range(size)
        ]
        test = compared(Members(measured, np.ones(size, np.bool_)), baseline)
        p_values = np.array([null.p_value(one)[0] for one in measured])
        named = named_of(p_values, np.zeros(size, np.bool_))
        found = (test.fused, test.p_value, test.like, *((test.by_content,) if by_content else ()), p_values.sum())
        out.append([*map(_rounded, found), int(named.sum())])
        cells = fleet_cells(p_values, [null.p_value(one)[1] for one in measured], null)
        out.append([[c.measure, c.level, len(c.accounts), c.honest_at_most] for c in cells])
    tied = {i: [f"org:{i % 7}", f"ip:{i % 3}", "agent:1"] for i in range(300)}
    out.append([[group.links, len(group.members)] for group in candidates(tied)])
    smallest = [[str(patch) for patch in sorted(rng.integers(0, 12, 3).tolist())] for _ in range(600)]
    fleet, honest = (OddAccounts.of(rng.uniform(0, most, 300), smallest) for most in (0.12, 1.0))
    out.append([[group.patches, len(group.accounts), group.honest_at_most] for group in patch_groups(fleet, honest)])
    return out


def group_fingerprint() -> str:
    """The digest of what is done to groups."""
    return hashlib.sha256(json.dumps(group_figures()).encode()).hexdigest()[:16]


def link_fingerprint() -> str:
    """The digest of what is done to groups that a link ties."""
    return hashlib.sha256(json.dumps(group_figures(by_content=False)).encode()).hexdigest()[:16]


def pair_fingerprint() -> str:
    """The digest of what weak pairs are proposed among invented accounts."""
    rng, out = np.random.default_rng(2026), []
    for most in (0.1, 0.3, 1.0):
        links = {
            i: [f"agent:{rng.integers(1 + i % 9)}", f"plan:{i % 3}", *starts(int(rng.integers(0, 4 * DAY_MS)))]
            for i in range(600)
        }
        p_values = {i: float(rng.uniform(0, most if links[i][0] == "agent:0" else 1.0)) for i in links}
        out.append([[one.links, len(one.accounts), one.odd] for one in weak_pairs(links, p_values)])
    return hashlib.sha256(json.dumps(out).encode()).hexdigest()[:16]


def _rounded(value: float) -> float:
    return float(f"{float(value):.4g}")


def _shown(a: Assessment) -> list[Any]:
    evidence = [[e.signal, _rounded(e.statistic), _rounded(e.p_value)] for e in a.evidence]
    return [a.queries, *map(_rounded, (a.distinct, a.fused, a.p_value, a.content_p_value, a.odd)), a.family, evidence]


if __name__ == "__main__":
    sys.stdout.write(f"{fingerprint()}\n")
