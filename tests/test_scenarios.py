"""Scenarios as data: a query log in, decisions out (tests/scenarios/*.yaml).

Each entry of `log` is one client's queries: an honest kind, an attack family (with honest `cover` between its queries), or `lines` as they
are; `repeat` sends them again; `accounts` deals them out round robin to ``client-0``, ``client-1`` …; `metadata` goes into each. All go
into one log by time, on the small victim of `victims.py`, and through the replay. `expect` names what is asked of a client (``client-*``:
of all its accounts) at the end, `campaigns` the members of each campaign's alert: none where nothing is said; `answers: label` makes
the victim answer with its label only.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support import victims

from consumers import replay
from consumers.detect.step import Detect
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from detector.policy import FLAGGED, Policy
from detector.simulation.attacks import ATTACKS, AttackerKnowledge, steal
from detector.simulation.domain import HonestPools, Rows, strangers
from detector.simulation.honest import BENIGN

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.yaml"))
KEYS = {
    "campaigns",
    "name",
    "why",
    "log",
    "expect",
    "answers",
    "status",
    "counters",
    "reasons",
    "same_suspicion",
    "unchanged_without_lines",
}


def scenario_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert found.keys() <= KEYS, f"{path.name}: unknown {found.keys() - KEYS}"
    assert {"name", "why", "log", "expect"} <= found.keys(), path.name
    return found


def rows_of(entry: dict[str, Any], rng: np.random.Generator) -> Rows:
    """(n, 10) inputs of one entry, in sending order."""
    pool = victims.items(800, rng)
    domain, foreign = victims.domain(), strangers(victims.domain(), victims.reference_rows(), rng)
    pools = HonestPools(domain, pool, victims.predict(pool).argmax(axis=1), victims.items(300, rng), foreign,
                  lambda rows, rng: victims.items(len(rows), rng))  # fmt: skip
    if "honest" in entry:
        return BENIGN[entry["honest"]].generate(pools, entry["queries"], rng)
    stolen = steal(
        entry["attack"], AttackerKnowledge(domain, pools.own, foreign), victims.predict, entry["queries"], rng
    )
    assert entry["attack"] in ATTACKS
    if "cover" not in entry:
        return stolen
    cover = BENIGN["regular"].generate(pools, entry["cover"], rng)
    order = rng.permutation(len(stolen) + len(cover))
    mixed = np.empty((len(order), stolen.shape[1]))
    mixed[np.sort(order[: len(stolen)])], mixed[np.sort(order[len(stolen) :])] = stolen, cover
    return mixed


def names_of(entry: dict[str, Any]) -> list[str]:
    """Accounts of an entry."""
    name, accounts = entry["client"], entry.get("accounts", 1)
    return [name] if accounts == 1 else [f"{name}-{i}" for i in range(accounts)]


def meant(pattern: str, names: Iterable[str]) -> set[str]:
    """Clients that ``name`` or ``name-*`` means."""
    return {n for n in names if n == pattern or (pattern.endswith("-*") and n.startswith(pattern[:-1]))}


def lines_of(scenario: dict[str, Any], *, with_lines: bool = True) -> Iterator[bytes]:
    """The log, a query a minute for each client, by time; given lines come at the end."""
    timed: list[tuple[int, bytes]] = []
    given: list[bytes] = []
    statuses = scenario.get("status")
    for number, entry in enumerate(scenario["log"]):
        if "lines" in entry:
            given += [text.encode() for text in entry["lines"]] * entry.get("repeat", 1)
            continue
        rows = rows_of(entry, np.random.default_rng(number))
        accounts = names_of(entry)
        for i, row in enumerate(np.tile(rows, (entry.get("repeat", 1), 1))):
            at_s = round(victims.START_S) + i * 60
            stamp = dt.datetime.fromtimestamp(at_s, dt.UTC).isoformat()
            changes: dict[str, Any] = {"client_id": accounts[i % len(accounts)], "timestamp": stamp}
            changes |= {"metadata": entry.get("metadata"), "event_id": f"{number}-{i}" if "metadata" in entry else None}
            if statuses:
                changes |= {"status": statuses[i % len(statuses)], "prediction": None}
            event = victims.event(row, **changes)
            if scenario.get("answers") == "label":
                event["prediction"] = {"label": event["prediction"]["label"]}
            timed.append((at_s, victims.encoded(event)))
    yield from (value for _, value in sorted(timed, key=lambda t: t[0]))
    if with_lines:
        yield from given


def replayed(folder: Path, lines: Iterator[bytes], secrets: Secrets) -> replay.Replayed:
    folder.mkdir()
    baselines = {victims.MODEL: victims.baseline()}
    store, log = EmbeddedStore(folder / "store.sqlite"), FileLog([victims.write_lines(folder / "log.jsonl", lines)])
    try:
        return replay.replay(
            log, store, Ingest(baselines, secrets), Detect(baselines, secrets, Policy(0.01, "observe"))
        )
    finally:
        log.close()
        store.close()


@pytest.fixture(scope="module")
def secrets() -> Secrets:
    return Secrets(b"s" * 16, b"p" * 32, b"k" * 32)


@pytest.mark.parametrize("path", SCENARIOS, ids=[p.stem for p in SCENARIOS])
def test_scenario(path: Path, tmp_path: Path, secrets: Secrets) -> None:
    scenario = scenario_of(path)
    result = replayed(tmp_path / "run", lines_of(scenario), secrets)
    rows = {row.client_id: row for row in result.scores.values()}
    wanted = {name: asked for pattern, asked in scenario["expect"].items() for name in meant(pattern, rows)}
    assert rows.keys() == wanted.keys(), scenario["name"]
    assert all(meant(pattern, rows) for pattern in scenario["expect"])
    for client, expected in wanted.items():
        row = rows[client]
        found = {
            "flagged": row.decision.state in FLAGGED,
            "state": row.decision.state,
            "queries": row.assessment.queries,
            "distinct": round(row.assessment.distinct),
            "family": row.assessment.family,
            "misfit": round(row.assessment.misfit),
            "refused": row.refused,
        }
        assert {name: found[name] for name in expected} == expected, (
            f"{scenario['name']}: {client} {row.assessment.suspicion}"
        )
        told = [alert for alert in result.alerts if alert.get("client_id") == client]
        assert len(told) == (row.decision.state in FLAGGED)
    campaigns = [alert for alert in result.alerts if alert["kind"] == "campaign"]
    members = [{n for pattern in patterns for n in meant(pattern, rows)} for patterns in scenario.get("campaigns", [])]
    assert [set(alert["members"]) for alert in campaigns] == members, scenario["name"]
    for alert in campaigns:
        assert {c for c, row in rows.items() if row.campaign_id == alert["campaign_id"]} == set(alert["members"])
        assert 1 <= len(alert["witnesses"]) <= 5
    for name, count in scenario.get("counters", {}).items():
        assert result.counters[name] == count, name
    assert dict(result.reasons) == scenario.get("reasons", {})
    same = scenario.get("same_suspicion", [])
    assert len({rows[client].assessment.suspicion for client in same}) <= 1
    if scenario.get("unchanged_without_lines"):
        clean = replayed(tmp_path / "clean", lines_of(scenario, with_lines=False), secrets)
        assert [r.score(m) for m, r in replay.ranked(clean.scores)] == [
            r.score(m) for m, r in replay.ranked(result.scores)
        ]


def test_there_are_scenarios_of_thieves_and_of_honest_clients() -> None:
    flags = [row.get("flagged") for path in SCENARIOS for row in scenario_of(path)["expect"].values()]
    assert len(SCENARIOS) >= 6
    assert flags.count(True) >= 3
    assert flags.count(False) >= 6
