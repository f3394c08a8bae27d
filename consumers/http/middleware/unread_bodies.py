"""A request's body that is not finished when its answer is given: it may hold the connection for a moment and no longer.

Rules:

* The answer waits for nothing: it leaves whole, with ``Connection: close``, as soon as it is there.
* Then at most `MOST_LEFT_BYTES` of the rest are read and dropped, for at most `LINGER_S`, so that the caller reads its answer before the
  connection closes under what it still sends.
* A body that was there with its head, or that was read whole, costs nothing and keeps the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from starlette.types import Message, Receive, Send

LINGER_S = 1.0
MOST_LEFT_BYTES = 65_536

Headers = Iterable[tuple[bytes, bytes]]


def announced(headers: Headers) -> bool:
    """Whether a request's head says that a body follows."""
    return any(n == b"transfer-encoding" or (n == b"content-length" and v.strip() != b"0") for n, v in headers)


class Bounded:
    """`receive` and `send` of a request with a body, for whoever answers it."""

    def __init__(self, headers: Headers, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._asks_first = any(name == b"expect" for name, _ in headers)
        self._finished = self._closing = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._finished = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self._finished:
            if not self._asks_first:  # who waits to be asked for its body has sent none
                await self._drop(0.0)
            if not self._finished:
                self._closing = True
                headers = [(n, v) for n, v in message.get("headers", ()) if n.lower() != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
        if not self._closing or message["type"] != "http.response.body" or message.get("more_body", False):
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        await self._drop(LINGER_S)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _drop(self, seconds: float) -> None:
        dropped = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._finished and dropped <= MOST_LEFT_BYTES:
                    dropped += len((await self.receive()).get("body", b""))
