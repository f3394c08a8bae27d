"""The middlewares in their order around the API.

Rules: the order is that of the table in this folder's `__init__`; each middleware is told what it needs and knows no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from consumers.http.auth import Authenticator
from consumers.http.middleware.headers import ResponseHeaders
from consumers.http.middleware.lifetime import Lifetime
from consumers.http.middleware.limits import RequestLimits
from consumers.http.middleware.observation import RequestMetrics, UnforeseenFailures
from consumers.http.middleware.probes import Probes
from consumers.http.middleware.routing import GatewayRouting
from consumers.http.token_buckets import TokenBuckets
from consumers.telemetry.metrics import Metrics


@dataclass(slots=True)
class MiddlewareStack:
    """The service as an ASGI application: each request passes the middlewares in the order of this folder's table.

    app      everything but gateways' questions and probes
    gateway  answers gateways, None without; is_gateway: whether a path is its own
    ready    whether the service may get traffic; None: it may, else why not
    known, unknown, holder  see `RequestLimits`
    ends     what to call when the service ends
    """

    app: ASGIApp
    auth: Authenticator
    metrics: Metrics
    ready: Callable[[], str | None]
    gateway: ASGIApp | None = None
    is_gateway: Callable[[str], bool] = lambda path: False
    show_metrics: bool = True
    known: TokenBuckets[str] = field(default_factory=lambda: TokenBuckets(50, 200))
    unknown: TokenBuckets[str] = field(default_factory=lambda: TokenBuckets(10, 60))
    holder: Callable[[Scope], str | None] = lambda scope: None
    ends: Sequence[Callable[[], None]] = ()
    limits: RequestLimits = field(init=False)
    routing: GatewayRouting = field(init=False)
    outermost: Lifetime = field(init=False)

    def __post_init__(self) -> None:
        self.limits = RequestLimits(self.app, self.auth, self.known, self.unknown, self.holder)
        observed = RequestMetrics(UnforeseenFailures(self.limits), self.metrics)
        answered = ResponseHeaders(Probes(observed, self.metrics, self.ready, self.show_metrics))
        self.routing = GatewayRouting(answered, self.gateway, self.is_gateway)
        self.outermost = Lifetime(self.routing, self.ends)

    def end(self) -> None:
        """Let go of who follows events: the service ends. Thread-safe."""
        self.outermost.end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.outermost(scope, receive, send)
