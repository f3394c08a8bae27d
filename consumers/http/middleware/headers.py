"""A request gets an id, an answer the security headers that it does not bring itself.

Rules: the caller's request id is taken only when it is short and harmless. An answer over TLS also asks for TLS from then on.
"""

from __future__ import annotations

import re
import secrets as entropy
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")


@dataclass(slots=True)
class ResponseHeaders:
    """Put ``request_id`` into the scope's state; add the id and the security headers to the answer."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _request_id(scope)
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        tls = scope.get("scheme") == "https"
        usual = {**SECURITY_HEADERS, **(TLS_HEADERS if tls else {}), b"x-request-id": request_id.encode()}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                own = {name.lower() for name, _ in headers}
                headers += [(name, value) for name, value in usual.items() if name not in own]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _request_id(scope: Scope) -> str:
    """The caller's own, when it is harmless, or a fresh one."""
    given = next((v for n, v in scope["headers"] if n == b"x-request-id"), b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else entropy.token_hex(8)
