"""The health page: whether queries arrive and the store answers, where alerts wait, which records were refused.

Rules:
* An unknown number is left out, never shown as zero. A warning says what to do.
* Ingest and detect leave what they know in the store as heartbeats; `Pulse` is what `serve` knows of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from consumers.readers.queries import Reader
from consumers.telemetry.alarms import ALARMS
from consumers.times import day_and_minute

QUIET_MS = 15 * 60_000
"""A log whose newest query is older is called quiet."""
STALE_S = 5.0
_STOPPED = "Its records wait until an operator restarts it: querywarden rebuild --cell."
_QUIET = "Either no queries arrive any more, or an old log was replayed."


@dataclass(frozen=True, slots=True)
class ShownSink:
    """Where alerts go: waiting is how many it has not taken yet, None when unknown."""

    name: str
    waiting: int | None
    state: str = "taking alerts"


@dataclass(frozen=True, slots=True)
class Pulse:
    """What `serve` knows beyond the store.

    stale_s   age of the gateway's list of restrictions, None when there is none
    breaker   "" while the breaker lets blocks through, else why it does not
    """

    stale_s: float | None = None
    breaker: str = ""
    sinks: Sequence[ShownSink] = ()


def health_page(reader: Reader, pulse: Pulse, mode: str, now_ms: int) -> dict[str, Any]:
    """What the page shows; `answers` is False while the store is silent."""
    found = reader.health()
    age = max(0, now_ms - found.newest_ms) if found.newest_ms else None
    dead = sorted((found.dead_letters or {}).items(), key=lambda d: -d[1])
    stale = pulse.stale_s is not None and pulse.stale_s > STALE_S
    held = bool(pulse.breaker) or found.breaker == "open"
    alarms = [ALARMS.get(name, name) for name in found.alarms or () if name not in ("breaker", "cell_stopped")]
    stopped = sorted((found.stopped or {}).items())
    live = found.processes or {}
    quiet = age is not None and age > QUIET_MS
    facts = [
        _fact("store", "answers" if found.store else "no answer", "", "clear" if found.store else "block"),
        None if age is None else _fact("newest query", ago(age), "ago", "throttle" if quiet else ""),
        None
        if found.clients is None
        else _fact("clients", f"{found.clients:,}", f"of {_plural(found.models, 'model')}"),
        None if found.cells is None else _fact("log cells", f"{found.cells:,}", "claimed so far"),
        _fact("stopped cells", f"{len(stopped):,}", "wait for an operator", "block") if stopped else None,
        None
        if pulse.stale_s is None
        else _fact("gateway list", f"{pulse.stale_s:.1f} s", "old", "throttle" if stale else ""),
        _fact("breaker", "open" if held else "closed", f"mode {mode}", "block" if held else ""),
        *(
            _fact(role, f"{n:,}", "process" if n == 1 else "processes", "" if n else "throttle")
            for role, n in live.items()
        ),
        None if found.lag is None else _fact("log lag", f"{found.lag:,}", "records"),
        None if found.alarms is None else _fact("alarms", f"{len(alarms):,}", "raised", "block" if alarms else ""),
        _fact("refused", f"{sum(n for _, n in dead):,}", "records") if dead else None,
    ]
    warnings = [
        _warning(look, title, text)
        for holds, look, title, text in (
            (
                not found.store,
                "bad",
                "The store does not answer.",
                "Ingest and detect wait for it. Gateways keep the decisions that they have.",
            ),
            (
                found.cells == 0,
                "warn",
                "No query was read yet.",
                "Start querywarden ingest, or replay a log with --store.",
            ),
            (
                quiet,
                "warn",
                "The log is quiet.",
                f"The newest assessed query was sent at {day_and_minute(found.newest_ms or 0)} UTC. {_QUIET}",
            ),
            (
                stale,
                "warn",
                "Gateways use an old list of decisions.",
                "The store does not answer at the moment. New decisions reach gateways when it does.",
            ),
            (
                held,
                "bad",
                "The breaker is open.",
                "Too many clients were restricted at once. New detections are alerted but not enforced until an operator resets it.",
            ),
            *(
                (True, "bad", f"The log cell {cell} stopped.", f"{words}. The others go on. {_STOPPED}")
                for cell, words in stopped
            ),
            *((True, "bad", "Alarm.", f"{text[0].upper()}{text[1:]}.") for text in alarms),
        )
        if holds
    ]
    return {
        "answers": found.store,
        "headline": "Something needs your attention." if warnings else "No problem was found.",
        "facts": [f for f in facts if f is not None],
        "warnings": warnings,
        "counters": _models(reader) if found.store else [],
        "dead": dead,
        "sinks": [
            {"name": s.name, "state": s.state, "waiting": "?" if s.waiting is None else f"{s.waiting:,}"}
            for s in (
                *pulse.sinks,
                *(ShownSink(s.name, s.waiting, "away" if s.away else "taking alerts") for s in found.sinks or ()),
            )
        ],
        "detecting": bool(live.get("detect")),
    }


def ago(age_ms: int) -> str:
    """
    >>> ago(4_200), ago(200_000), ago(90_000_000)
    ('4 s', '3 min', '25 h')
    """
    for limit, unit, name in ((120_000, 1000, "s"), (7_200_000, 60_000, "min"), (172_800_000, 3_600_000, "h")):
        if age_ms < limit:
            return f"{age_ms // unit} {name}"
    return f"{age_ms // 86_400_000:,} days"


def _models(reader: Reader) -> list[tuple[str, str]]:
    """Per model, when its newest query was: the staleness of each tap."""
    found = []
    for m in reader.models():
        newest = day_and_minute(m.last_seen_ms) if m.last_seen_ms else "never"
        lacks = "" if m.has_baseline else " – no baseline here"
        found.append((m.model_id, f"{_plural(m.clients, 'client')}, newest query {newest}{lacks}"))
    return found


def _plural(n: int | None, noun: str) -> str:
    return f"{n or 0:,} {noun}{'' if n == 1 else 's'}"


def _fact(name: str, value: str, unit: str = "", look: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "unit": unit, "look": look}


def _warning(look: str, title: str, text: str) -> dict[str, str]:
    return {"look": look, "title": title, "text": text}
