"""Probes: whether the service runs, whether it may get traffic, and its metrics.

Rules: probes need no credential and take no token, so that a flood of requests cannot make a healthy service look dead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from consumers.http.problems import problem
from consumers.telemetry.metrics import Metrics

PATHS = frozenset({"/healthz", "/readyz", "/metrics"})


@dataclass(slots=True)
class Probes:
    """Answer probes without a credential and without a token.

    ready         None when the service may get traffic, else why not
    show_metrics  whether /metrics is answered here
    """

    app: ASGIApp
    metrics: Metrics
    ready: Callable[[], str | None]
    show_metrics: bool = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path not in PATHS:
            await self.app(scope, receive, send)
        elif method not in ("GET", "HEAD"):
            request_id = scope["state"]["request_id"]
            await problem(405, request_id=request_id, headers={"Allow": "GET, HEAD"})(scope, receive, send)
        elif path == "/healthz":
            await _text(send, 200, b"ok\n", method)
        elif path == "/readyz":
            why = self.ready()
            await _text(send, 503 if why else 200, f"{why or 'ready'}\n".encode(), method)
        elif self.show_metrics:
            await _text(send, 200, self.metrics.text(), method)
        else:
            await problem(404, request_id=scope["state"]["request_id"])(scope, receive, send)


async def _text(send: Send, status: int, body: bytes, method: str) -> None:
    headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
