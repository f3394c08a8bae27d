"""Limits: who asks, how often, with how long an address and how large a body.

Rules:

* A body is read here, whole, before anything is done: at most 64 KiB for a known caller (1 MiB where the table of access says so: queries)
  and 16 KiB for an unknown one, within `BODY_TIMEOUT_S`. Who sends more, or more slowly, costs one buffer and no thread. Where the answer
  does not need the body, `unread_bodies` bounds what is left of it. A body in another coding than its own (gzip) is refused.
* A token bucket for each credential, and one for each address that has none; a browser's session takes from its key's. Empty: 429 with
  Retry-After.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consumers.http.access import LARGE_BODIES, MOST_BYTES, MOST_QUERY_BYTES
from consumers.http.auth import Authenticator, Credential
from consumers.http.problems import problem
from consumers.http.token_buckets import TokenBuckets

MOST_BODY_BYTES = MOST_QUERY_BYTES
MOST_UNKNOWN_BODY_BYTES = 1 << 14
MOST_PARAMETERS = 100
"""Of an address: to take many more apart would hold up everybody else."""
BODY_TIMEOUT_S = 10.0


class _TooLarge(Exception):
    """The body is larger than this caller may send."""


@dataclass(slots=True)
class RequestLimits:
    """Put the caller's ``credential`` into the scope's state; hand on what is within the limits, with its whole body.

    known    buckets of callers with a credential or a session
    unknown  buckets of addresses without one
    holder   id of the credential whose session a request carries, None without a good one
    """

    app: ASGIApp
    auth: Authenticator
    known: TokenBuckets[str] = field(default_factory=lambda: TokenBuckets(50, 200))
    unknown: TokenBuckets[str] = field(default_factory=lambda: TokenBuckets(10, 60))
    holder: Callable[[Scope], str | None] = lambda scope: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]
        request_id = state["request_id"]
        who = state["credential"] = self.auth.credential(scope)
        wait_s = self._wait_s(scope, who)
        if wait_s > 0:
            headers = {"Retry-After": str(math.ceil(wait_s))}
            await problem(429, "too many requests", request_id=request_id, headers=headers)(scope, receive, send)
            return
        if scope["query_string"].count(b"&") >= MOST_PARAMETERS:
            await problem(400, f"at most {MOST_PARAMETERS} parameters", request_id=request_id)(scope, receive, send)
            return
        if _coded(scope):
            headers = {"Accept-Encoding": "identity"}
            await problem(415, "bodies are taken as they are", request_id=request_id, headers=headers)(
                scope, receive, send
            )
            return
        limit = LARGE_BODIES.get(scope["path"], MOST_BYTES) if who else MOST_UNKNOWN_BODY_BYTES
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await _body(scope, receive, limit)
        except _TooLarge:
            headers = {"Connection": "close"}
            await problem(413, f"at most {limit} bytes", request_id=request_id, headers=headers)(scope, receive, send)
            return
        except TimeoutError:
            headers = {"Connection": "close"}
            await problem(408, "the body came too slowly", request_id=request_id, headers=headers)(scope, receive, send)
            return
        if body is not None:
            await self.app(scope, _given(body, receive), send)

    def _wait_s(self, scope: Scope, who: Credential | None) -> float:
        """Take a token of the caller's bucket; how long to wait when there is none."""
        name = who.id if who else self.holder(scope)
        return self.known.take(name) if name else self.unknown.take((scope.get("client") or ("", 0))[0])


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
