"""Who looked at what is known about a client: rows of the audit log, and how they are found again.

Rules:
* Looking at a client's page, asking the API for a client or its history, explaining it, exporting it and making evidence of it each leave a
  row. Lists, alerts and charts of many clients do not: they are how a suspect is found, and each row would say nothing about one client.
* A person who looks again within `EVERY_S` leaves no further row, so a page that is reloaded does not fill the log. A process remembers
  the last `REMEMBERED` looks; it may write a row too many, never one too few.
* A look that cannot be recorded is still answered, with an error in the log of the process: an outage must not blind those who watch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec

from consumers.errors import CorruptState, Refused, Unavailable
from consumers.operators.audited_write import Actor
from consumers.operators.operate import Operations
from detector.query import ClientKey

log = logging.getLogger("querywarden.views")

How = Literal["page", "api", "explain"]
"""Where a client was looked at."""
ACTION = "client.view"
ACTIONS = (ACTION, "client.export", "evidence.make")
"""Rows that say that somebody saw what is known about a client."""
EVERY_S = 3600.0
REMEMBERED = 4096
MOST_FOUND = 1000


class Views:
    """Records looks at clients."""

    def __init__(self, operations: Operations, clock: Callable[[], float] = time.monotonic) -> None:
        self._operations, self._clock = operations, clock
        self._seen: OrderedDict[tuple[str, str, ClientKey], float] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, actor: Actor, key: ClientKey, how: How) -> None:
        """Record that somebody looks at a client, if they did not just before."""
        look, now = (actor.tenant, actor.name, key), self._clock()
        with self._lock:
            before = self._seen.get(look)
            if before is not None and now - before < EVERY_S:
                return
            self._seen[look] = now
            self._seen.move_to_end(look)
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        try:
            self._operations.record(actor, ACTION, f"client:{key.client} model:{key.model} how:{how}")
        except (Unavailable, Refused, CorruptState) as error:
            with self._lock:
                self._seen.pop(look, None)
            log.error("a look at a client is not in the audit log", extra={"why": str(error)})


def views_of(rows: Iterable[tuple[int, bytes]], tenant: str, client: str) -> list[dict[str, Any]]:
    """The last `MOST_FOUND` looks at a client, oldest first: ``n``, ``ts``, ``actor``, ``role``, ``ip``, ``action``, ``object``.

    rows    numbered rows of the audit log
    client  keyed hash
    """
    found: deque[dict[str, Any]] = deque(maxlen=MOST_FOUND)
    mark = f"client:{client}"
    for _, line in rows:
        if mark.encode() not in line:
            continue
        row: dict[str, Any] = msgspec.json.decode(line)
        if row["tenant"] == tenant and row["action"] in ACTIONS and row["object"].split(" ")[0] == mark:
            found.append({name: row[name] for name in ("n", "ts", "actor", "role", "ip", "action", "object")})
    return list(found)
