"""The restrictions in force for bouncers: a list, a stream of changes, and server-sent events, in CrowdSec's format.

Rules:
* The caller holds the cursor; nothing is stored for it. A cursor from before a restart, or one too far back, is answered with
  ``gone`` (stream) or a fresh start (events): begin again. The text of a cursor means nothing to the caller.
* `new` and `deleted` give the state of each client after the last change. A change and its reversal may both be left out.
* Simulated decisions, and decisions that the mode does not enforce, are not listed: a bouncer would enforce them.
* Nothing about detection is shown: no score, no reason. A client is its hash, unless the credential may see ids.
* The number of followers is bounded, and they cost no memory: a follower that is too slow begins again. Half of the places are reserved for
  gateways, and no credential takes them all: a gateway gets at most three quarters, another credential an eighth.
* Followers are closed when the service ends (`end`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NamedTuple, Protocol

from consumers.enforcement.restrictions import BLOCK, Change, Restrictions, Standing
from consumers.records.operator_entries import EVERY_MODEL
from consumers.times import second
from detector.query import ClientKey

SCOPE = "ApiKey"
SCENARIO = "querywarden/model-extraction"
TYPES = {BLOCK: "ban"}
"""Level → type of a CrowdSec decision; others by their own name."""

_ORIGINS = {"detected": "querywarden", "operator": "querywarden-operator"}
_FOR_EVER_S = 365 * 86_400
_LOOK_EVERY_S = 0.25
_KEEP_ALIVE_S = 15.0

Names = Callable[[ClientKey], str | None]


class StreamPage(NamedTuple):
    """An answer of the stream. status: 200, 410 for a cursor that can't be continued from, 503 before the first sync."""

    status: int
    body: dict[str, Any]
    cursor: str


class TooManyFollowers(Exception):
    pass


class Follower(Protocol):
    """Whoever follows: `Credential`."""

    @property
    def id(self) -> str: ...
    @property
    def role(self) -> str: ...


class Places:
    """How many followers there may be: in all, of each credential, and of all that are no gateways."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()
        self._others = 0

    def take(self, who: Follower) -> None:
        """Raises TooManyFollowers."""
        gateway = who.role == "gateway"
        share = max(1, self._most * 3 // 4 if gateway else self._most // 8)
        full = self._taken.total() >= self._most or (not gateway and self._others >= self._most // 2)
        if full or self._taken[who.id] >= share:
            raise TooManyFollowers
        self._taken[who.id] += 1
        self._others += not gateway

    def leave(self, who: Follower) -> None:
        self._taken[who.id] -= 1
        if not self._taken[who.id]:
            del self._taken[who.id]
        self._others -= who.role != "gateway"


class DecisionFeed:
    """What bouncers read.

    names      client → its id in the log, for credentials that may see it
    followers  how many may follow the events at once
    """

    def __init__(
        self,
        view: Restrictions,
        names: Names | None = None,
        followers: int = 64,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._view = view
        self._names = names
        self._places = Places(followers)
        self._ended = False
        self._clock = clock

    @property
    def cursor(self) -> str:
        """Where a reader is who knows everything."""
        return _cursor(self._view.epoch, self._view.number)

    def listing(
        self,
        tenant: str,
        *,
        named: bool = False,
        model: str | None = None,
        value: str | None = None,
        scopes: str | None = None,
    ) -> list[dict[str, Any]]:
        """Every restriction in force, or those of a model or a client (by hash, or by id if `named`)."""
        if not _in_scope(scopes):
            return []
        now_s = self._clock()
        items = [
            self._item(ClientKey(tenant, m, key[1]), standing, now_s, named)
            for key, m, standing in self._view.enforced(now_s)
            if key[0] == tenant and (model is None or m in (model, EVERY_MODEL))
        ]
        return items if value is None else [i for i in items if value in (i["value"], i["client"])]

    def page(
        self,
        tenant: str,
        *,
        startup: bool = False,
        since: str | None = None,
        named: bool = False,
        scopes: str | None = None,
    ) -> StreamPage:
        """What changed since a cursor; everything at the start-up or without a cursor."""
        cursor = self.cursor  # before reading: what changes meanwhile is said twice, never missed
        if not self._view.synced:
            return StreamPage(503, {}, cursor)
        if startup or not since:
            return StreamPage(
                200, {"new": self.listing(tenant, named=named, scopes=scopes) or None, "deleted": None}, cursor
            )
        epoch, number = _position(since)
        changes = self._view.since(number, epoch)
        if changes is None:
            return StreamPage(410, {}, cursor)
        mine = [c for c in changes if c.tenant == tenant and _in_scope(scopes)]
        if changes:
            cursor = _cursor(epoch, changes[-1].number)
        return StreamPage(200, self._pair(mine, named), cursor)

    def end(self) -> None:
        """Let go of all followers, now and from now on."""
        self._ended = True

    async def events(
        self, tenant: str, last_event_id: str | None = None, named: bool = False, *, follower: Follower
    ) -> AsyncIterator[bytes]:
        """Server-sent events: *startup* or *reset* with everything, then *decisions* with what changed.

        Raises TooManyFollowers, before the first event.
        """
        self._places.take(follower)
        try:
            yield b"retry: 1000\n\n"
            since, kind = last_event_id, "reset"
            if not last_event_id:
                kind = "startup"
            quiet_since_s = time.monotonic()
            while not self._ended:
                page = self.page(tenant, since=since, named=named)
                if page.status == 410:
                    since = None
                    continue
                if page.status == 200:
                    if since is None or not since or page.body["new"] or page.body["deleted"]:
                        event = "decisions" if since else kind
                        yield _event(event, page.cursor, page.body)
                        quiet_since_s = time.monotonic()
                    since, kind = page.cursor, "reset"
                if time.monotonic() - quiet_since_s >= _KEEP_ALIVE_S:
                    yield b": still here\n\n"
                    quiet_since_s = time.monotonic()
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            self._places.leave(follower)

    def _pair(self, changes: Iterable[Change], named: bool) -> dict[str, Any]:
        now_s = self._clock()
        last = {(c.model, c.client): c for c in changes}
        found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for c in last.values():
            item = self._item(ClientKey(c.tenant, c.model, c.client), c.standing, now_s, named, c.lifted)
            found[c.lifted].append(item)
        return {"new": found[False] or None, "deleted": found[True] or None}

    def _item(
        self, client: ClientKey, standing: Standing, now_s: float, named: bool, lifted: bool = False
    ) -> dict[str, Any]:
        left_s = -1 if lifted else max(0, round(standing.until_s - now_s)) if standing.until_s else _FOR_EVER_S
        name = self._names(client) if named and self._names else None
        digest = hashlib.blake2b("\x00".join(client).encode(), digest_size=6).digest()
        item = {
            "id": int.from_bytes(digest, "big"),
            "origin": _ORIGINS[standing.origin],
            "type": type_of(standing.strictness),
            "scope": SCOPE,
            "value": name or client.client,
            "duration": duration(left_s),
            "scenario": SCENARIO,
            "model": client.model,
            "client": client.client,
        }
        if standing.until_s:
            item["until"] = second(standing.until_s)
        return item


def type_of(strictness: int) -> str:
    return TYPES.get(strictness, "throttle")


def duration(seconds: int) -> str:
    """As Go writes it: 3h59m59s, -1s."""
    hours, rest = divmod(abs(seconds), 3600)
    minutes, left = divmod(rest, 60)
    text = f"{hours}h{minutes}m{left}s" if hours else f"{minutes}m{left}s" if minutes else f"{left}s"
    return f"-{text}" if seconds < 0 else text


def _in_scope(scopes: str | None) -> bool:
    return scopes is None or SCOPE.lower() in scopes.lower().split(",")


def _cursor(epoch: str, number: int) -> str:
    return base64.urlsafe_b64encode(f"{epoch}.{number}".encode()).decode().rstrip("=")


def _position(cursor: str) -> tuple[str, int]:
    """Epoch and number; an epoch that never was for a cursor that is none."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
        epoch, _, number = text.partition(".")
        return epoch, int(number) if number.isdecimal() and len(number) < 19 else -1
    except (ValueError, binascii.Error):
        return "", 0


def _event(event: str, cursor: str, body: dict[str, Any]) -> bytes:
    return f"event: {event}\nid: {cursor}\ndata: {json.dumps(body, separators=(',', ':'))}\n\n".encode()
