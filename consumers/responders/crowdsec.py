"""Push decisions to a CrowdSec local API as a watcher; CrowdSec's bouncers enforce them.

Rules:
* Our decisions are those with our scope and origin. Other decisions are neither read nor changed.
* CrowdSec ends decisions by itself. A decision whose end moved is written again. It is dropped before it is written, so that each client
  has one.
* Reading the present decisions needs the key of a bouncer. Without one, pushes cannot be verified, and everything is dropped and written
  again at the start.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from consumers.enforcement.restrictions import BLOCK, THROTTLE, Standing
from consumers.errors import Unavailable, WrongUse
from consumers.times import second

SCOPE = "ApiKey"
ORIGIN = "querywarden"
SCENARIO = "querywarden/model-extraction"
_STRICTNESS = {"ban": BLOCK, "throttle": THROTTLE}
_TYPES = {strictness: name for name, strictness in _STRICTNESS.items()}
_FOR_EVER_S = 365 * 86_400
_TOLERANCE_S = 60
_A_CALL = 100
_ANSWER_BYTES = 64 << 20

T = TypeVar("T")


class CrowdsecApi:
    """The target. url: of the local API; raises WrongUse for one that is none.

    machine, password  a watcher's credentials (cscli machines add)
    bouncer_key        to read what is there (cscli bouncers add); empty: not verified
    """

    name = "crowdsec"

    def __init__(
        self,
        url: str,
        machine: str,
        password: str,
        bouncer_key: str = "",
        timeout_s: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise WrongUse("responders.crowdsec_url: it must be an http or https address")
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._address, self._timeout_s = (parts.hostname, parts.port), timeout_s
        self._prefix = parts.path.rstrip("/")
        self._machine, self._password, self._key, self._clock = machine, password, bouncer_key, clock
        self._token = ""

    def held(self) -> dict[str, Standing]:
        if not self._key:
            self._call("DELETE", f"/v1/decisions?scopes={SCOPE}&origin={ORIGIN}")
            return {}
        path = f"/v1/decisions/stream?startup=true&scopes={SCOPE}"
        found = self._call("GET", path, headers={"X-Api-Key": self._key})
        held = {}
        for item in found.get("new") or []:
            if item.get("scope") == SCOPE and item.get("origin") == ORIGIN:
                until_s = round(self._clock() + _seconds(item["duration"]))
                held[item["value"]] = Standing(_STRICTNESS.get(item["type"], -1), until_s)
        return held

    def same(self, wanted: Standing, held: Standing) -> bool:
        if wanted.strictness != held.strictness:
            return False
        if not wanted.until_s:  # ours have no end, theirs must: fresh enough until tomorrow
            return held.until_s > self._clock() + 86_400
        return abs(wanted.until_s - held.until_s) <= _TOLERANCE_S

    def change(self, put: Mapping[str, Standing], drop: list[str]) -> None:
        for client in [*drop, *put]:
            self._call("DELETE", f"/v1/decisions?scopes={SCOPE}&value={quote(client, safe='')}")
        for some in _in_parts(list(put.items()), _A_CALL):
            self._call("POST", "/v1/alerts", [self._alert(client, standing) for client, standing in some])

    def close(self) -> None:
        self._token = ""

    def _alert(self, client: str, standing: Standing) -> dict[str, Any]:
        now = second(self._clock())
        left_s = max(1, round(standing.until_s - self._clock())) if standing.until_s else _FOR_EVER_S
        decision = {
            "origin": ORIGIN,
            "type": _TYPES[standing.strictness],
            "scope": SCOPE,
            "value": client,
            "duration": f"{left_s}s",
            "scenario": SCENARIO,
        }
        return {
            "scenario": SCENARIO,
            "scenario_hash": "",
            "scenario_version": "",
            "message": "restricted by QueryWarden",
            "events_count": 0,
            "start_at": now,
            "stop_at": now,
            "capacity": 0,
            "leakspeed": "0s",
            "simulated": False,
            "events": [],
            "source": {"scope": SCOPE, "value": client},
            "decisions": [decision],
        }

    def _call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        if headers is not None:
            status, answer = self._send(method, path, body, headers)
        else:
            if not self._token:
                self._log_in()
            status, answer = self._send(method, path, body, {"Authorization": f"Bearer {self._token}"})
            if status == 401:  # tokens last an hour
                self._log_in()
                status, answer = self._send(method, path, body, {"Authorization": f"Bearer {self._token}"})
        if status >= 300:
            raise Unavailable(f"crowdsec: {method} {path.partition('?')[0]} answered {status}")
        return answer

    def _log_in(self) -> None:
        credentials = {"machine_id": self._machine, "password": self._password, "scenarios": [SCENARIO]}
        status, answer = self._send("POST", "/v1/watchers/login", credentials, {})
        if status != 200:
            raise Unavailable(f"crowdsec: login answered {status}")
        self._token = answer["token"]

    def _send(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> tuple[int, Any]:
        connection = self._kind(*self._address, timeout=self._timeout_s)
        try:
            content = None if body is None else json.dumps(body).encode()
            sent = {"User-Agent": "querywarden/1.0", "Content-Type": "application/json", **headers}
            connection.request(method, self._prefix + path, content, sent)
            response = connection.getresponse()
            text = response.read(_ANSWER_BYTES)
        except HTTPException as error:
            raise Unavailable(f"crowdsec: {type(error).__name__}") from error
        finally:
            connection.close()
        try:
            return response.status, json.loads(text) if text else {}
        except ValueError:
            return response.status, {}


def _in_parts(items: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def _seconds(duration: str) -> float:
    """Seconds of a duration as Go writes it; 0 for one that can't be read."""
    total, number = 0.0, ""
    sign = -1 if duration.startswith("-") else 1
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}
    unit = ""
    for char in duration.lstrip("-") + "0":
        if char.isdecimal() or char == ".":
            if unit:
                total += float(number) * units.get(unit, 0.0)
                number, unit = "", ""
            number += char
        else:
            unit += char
    return sign * total
