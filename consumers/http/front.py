"""What every request passes first: its id, its credential, its limits; and what every answer carries.

Rules:

* Gateways' questions go straight to their own application; probes are answered here. Neither waits for anything else.
* A body is read here, whole, before anything is done: at most 64 KiB for a known caller (1 MiB where the table of access says so: queries)
  and 16 KiB for an unknown one, within `BODY_TIMEOUT_S`. Who sends more, or more slowly, costs one buffer and no thread. Where the answer
  does not need the body, `bodies` bounds what is left of it. A body in another coding than its own (gzip) is refused.
* A token bucket for each credential, and one for each address that has none; a browser's session takes from its key's. Empty: 429 with
  Retry-After. Gateways' questions and probes take no tokens.
* Security headers on every answer. No access log here: an address may hold a client's id.
* Every answer is counted by route and status, with its time. A route is a pattern of ours, never what the caller wrote.
* A failure that nobody foresaw is logged with the request's id and answered with a problem, without its cause.
* What follows events ends with the service (`end`); a request that outlives its end is cut off without a word.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import secrets as entropy
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from consumers.http.access import LARGE_BODIES, MOST_BYTES, MOST_QUERY_BYTES
from consumers.http.auth import Authenticator, Credential
from consumers.http.bodies import Bounded, announced
from consumers.http.problems import problem
from consumers.metrics import OTHER, Metrics

log = logging.getLogger("querywarden.http")

MOST_BODY_BYTES = MOST_QUERY_BYTES
MOST_UNKNOWN_BODY_BYTES = 1 << 14
MOST_PARAMETERS = 100
"""Of an address: to take many more apart would hold up everybody else."""
BODY_TIMEOUT_S = 10.0
_KEPT_BUCKETS = 65_536
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_EVENTS = b"text/event-stream"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")

SECURITY_HEADERS: Mapping[bytes, bytes] = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
    b"cross-origin-resource-policy": b"same-origin",
}
"""Unless an answer brings its own."""

TLS_HEADERS: Mapping[bytes, bytes] = {b"strict-transport-security": b"max-age=31536000"}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Buckets:
    """Token buckets by name. rate_per_s: 0 for no limit; burst: how many at once."""

    def __init__(self, rate_per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate_per_s
        self._burst = float(burst)
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> float:
        """Take a token; how long to wait for one, 0 when there was one."""
        if self._rate <= 0:
            return 0.0
        now = self._clock()
        tokens, last = self._kept.pop(name, (self._burst, now))
        tokens = min(self._burst, tokens + (now - last) * self._rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._kept[name] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._kept) > _KEPT_BUCKETS:
            self._kept.popitem(last=False)
        return wait


class _TooLarge(Exception):
    pass


@dataclass(slots=True)
class Front:
    """The outermost application.

    app      everything but gateways' questions and probes
    gateway  answers gateways, None without; is_gateway: whether a path is its own
    ready    whether the service may get traffic; None: it may, else why not
    holder   id of the credential whose session a request carries, None without a good one
    ends     what to call when the service ends, so that nobody follows any longer
    """

    app: Application
    auth: Authenticator
    metrics: Metrics
    ready: Callable[[], str | None]
    gateway: Callable[..., Awaitable[None]] | None = None
    is_gateway: Callable[[str], bool] = lambda path: False
    show_metrics: bool = True
    known: Buckets = field(default_factory=lambda: Buckets(50, 200))
    unknown: Buckets = field(default_factory=lambda: Buckets(10, 60))
    holder: Callable[[Scope], str | None] = lambda scope: None
    ends: Sequence[Callable[[], None]] = ()
    _ending: bool = False

    def end(self) -> None:
        """Let go of who follows events: the service ends. Thread-safe."""
        self._ending = True
        for end in self.ends:
            end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        if announced(scope["headers"]):
            body = Bounded(scope["headers"], receive, send)
            receive, send = body.receive, body.send
        try:
            await self._answer(scope, receive, send)
        except asyncio.CancelledError:
            if not self._ending:
                raise

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if self.is_gateway(path) and self.gateway is not None:
            await self.gateway(scope, receive, send)
            return
        state = scope["state"] = {**scope.get("state", {}), "request_id": _request_id(scope)}
        dressed = _dressed(send, state["request_id"], scope.get("scheme") == "https")
        if path in ("/healthz", "/readyz", "/metrics"):
            await self._probe(path, scope, receive, dressed)
            return
        await self._counted(scope, state, receive, dressed)

    async def _counted(self, scope: Scope, state: dict[str, Any], receive: Receive, send: Send) -> None:
        begun_s = time.perf_counter()
        status, endless = 499, False  # the caller has gone

        async def noting(message: Message) -> None:
            nonlocal status, endless
            if message["type"] == "http.response.start":
                status = message["status"]
                endless = any(n == b"content-type" and v.startswith(_EVENTS) for n, v in message.get("headers", ()))
            await send(message)

        try:
            await self._foreseen_or_not(scope, state, receive, noting)
        finally:
            route = _route(scope)
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            self.metrics.add("querywarden_http_requests_total", method=method, route=route, status=str(status))
            if not endless:  # it lasts as long as its reader
                self.metrics.observe("querywarden_http_seconds", time.perf_counter() - begun_s, route=route)

    async def _foreseen_or_not(self, scope: Scope, state: dict[str, Any], receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._known_or_not(scope, state, receive, watched)
        except Exception:
            log.exception("request failed", extra={"request_id": state["request_id"]})
            if not begun:
                await problem(500, request_id=state["request_id"])(scope, receive, send)

    async def _known_or_not(self, scope: Scope, state: dict[str, Any], receive: Receive, send: Send) -> None:
        request_id = state["request_id"]
        who = state["credential"] = self.auth.credential(scope)
        wait_s = self._wait_s(scope, who)
        if wait_s > 0:
            said = {"Retry-After": str(math.ceil(wait_s))}
            await problem(429, "too many requests", request_id=request_id, headers=said)(scope, receive, send)
            return
        if scope["query_string"].count(b"&") >= MOST_PARAMETERS:
            await problem(400, f"at most {MOST_PARAMETERS} parameters", request_id=request_id)(scope, receive, send)
            return
        if _coded(scope):
            said = {"Accept-Encoding": "identity"}
            await problem(415, "bodies are taken as they are", request_id=request_id, headers=said)(
                scope, receive, send
            )
            return
        limit = LARGE_BODIES.get(scope["path"], MOST_BYTES) if who else MOST_UNKNOWN_BODY_BYTES
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await _body(scope, receive, limit)
        except _TooLarge:
            said = {"Connection": "close"}
            await problem(413, f"at most {limit} bytes", request_id=request_id, headers=said)(scope, receive, send)
            return
        except TimeoutError:
            said = {"Connection": "close"}
            await problem(408, "the body came too slowly", request_id=request_id, headers=said)(scope, receive, send)
            return
        if body is not None:
            await self.app(scope, _given(body, receive), send)

    def _wait_s(self, scope: Scope, who: Credential | None) -> float:
        """Take a token of the caller's bucket; how long to wait when there is none."""
        name = who.id if who else self.holder(scope)
        return self.known.take(name) if name else self.unknown.take((scope.get("client") or ("", 0))[0])

    async def _probe(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            request_id = scope["state"]["request_id"]
            await problem(405, request_id=request_id, headers={"Allow": "GET, HEAD"})(scope, receive, send)
        elif path == "/healthz":
            await _text(send, 200, b"ok\n", scope["method"])
        elif path == "/readyz":
            why = self.ready()
            await _text(send, 503 if why else 200, f"{why or 'ready'}\n".encode(), scope["method"])
        elif self.show_metrics:
            await _text(send, 200, self.metrics.text(), scope["method"])
        else:
            await problem(404, request_id=scope["state"]["request_id"])(scope, receive, send)


def _route(scope: Scope) -> str:
    """The pattern of the route that answered; of what was answered before any was chosen, or has none: *other*."""
    pattern = getattr(scope.get("route"), "path", None)
    return pattern if isinstance(pattern, str) and pattern else OTHER


async def _body(scope: Scope, receive: Receive, limit: int) -> bytes | None:
    """The whole body; None when the caller has gone."""
    length = next((v for n, v in scope["headers"] if n == b"content-length"), b"0")
    if length.isdigit() and int(length[:20]) > limit:
        raise _TooLarge
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _TooLarge
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _coded(scope: Scope) -> bool:
    """Whether the body was compressed, or otherwise coded."""
    codings = (v.strip().lower() for n, v in scope["headers"] if n == b"content-encoding")
    return any(coding not in (b"", b"identity") for coding in codings)


def _given(body: bytes, receive: Receive) -> Receive:
    """The body that was read, then what the connection says."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _dressed(send: Send, request_id: str, tls: bool) -> Send:
    usual = {**SECURITY_HEADERS, **(TLS_HEADERS if tls else {}), b"x-request-id": request_id.encode()}

    async def dressed(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            own = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in usual.items() if name not in own]
            message = {**message, "headers": headers}
        await send(message)

    return dressed


def _request_id(scope: Scope) -> str:
    """The caller's own, when it is harmless, or a fresh one."""
    said = next((v for n, v in scope["headers"] if n == b"x-request-id"), b"").decode("latin-1")
    return said if _REQUEST_ID.fullmatch(said) else entropy.token_hex(8)


async def _text(send: Send, status: int, body: bytes, method: str) -> None:
    headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
