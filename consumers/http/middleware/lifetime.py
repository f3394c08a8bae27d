"""The outermost middleware: what is no request, what outlives the service, and bodies that nobody reads.

Rules: a request that outlives the service is cut off and leaves no error in the log. A body is read in bounded memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from consumers.http.middleware.unread_bodies import Bounded, announced


@dataclass(slots=True)
class Lifetime:
    """Let go of followers when the service ends; a request that outlives its end is cut off without a word.

    ends  what to call when the service ends, so that nobody follows any longer
    """

    app: ASGIApp
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
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._ending:
                raise


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
