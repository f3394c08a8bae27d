"""Gateways' questions go straight to their own application.

Rules: nothing that people do can hold a gateway's question up, so it passes no middleware of theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send


@dataclass(slots=True)
class GatewayRouting:
    """Send a gateway's question to `gateway`, anything else to `app`. is_gateway: whether a path is the gateways'."""

    app: ASGIApp
    gateway: ASGIApp | None = None
    is_gateway: Callable[[str], bool] = lambda path: False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.gateway is not None and self.is_gateway(scope["path"]):
            await self.gateway(scope, receive, send)
        else:
            await self.app(scope, receive, send)
