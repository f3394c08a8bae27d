"""Every answer is counted by route and status, with its time; a failure that nobody foresaw becomes a problem without its cause.

Rules: a route is a pattern of ours, never what the caller wrote. A stream of events lasts as long as its reader: it has no time.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consumers.http.problems import problem
from consumers.telemetry.metrics import OTHER, Metrics

log = logging.getLogger("querywarden.http")

CALLER_GONE = 499
"""Counted where no answer was begun."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_EVENTS = b"text/event-stream"


@dataclass(slots=True)
class RequestMetrics:
    """Count answers and measure how long they took."""

    app: ASGIApp
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun_s = time.perf_counter()
        status, endless = CALLER_GONE, False

        async def send_noting(message: Message) -> None:
            nonlocal status, endless
            if message["type"] == "http.response.start":
                status = message["status"]
                endless = any(n == b"content-type" and v.startswith(_EVENTS) for n, v in message.get("headers", ()))
            await send(message)

        try:
            await self.app(scope, receive, send_noting)
        finally:
            route = _route(scope)
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            self.metrics.add("querywarden_http_requests_total", method=method, route=route, status=str(status))
            if not endless:
                self.metrics.observe("querywarden_http_seconds", time.perf_counter() - begun_s, route=route)


@dataclass(slots=True)
class UnforeseenFailures:
    """Log a failure with the request's id; answer with a problem unless an answer was begun."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_noting(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, send_noting)
        except Exception:
            request_id = scope["state"]["request_id"]
            log.exception("request failed", extra={"request_id": request_id})
            if not begun:
                await problem(500, request_id=request_id)(scope, receive, send)


def _route(scope: Scope) -> str:
    """The pattern of the route that answered; of what was answered before any was chosen, or has none: *other*."""
    pattern = getattr(scope.get("route"), "path", None)
    return pattern if isinstance(pattern, str) and pattern else OTHER
