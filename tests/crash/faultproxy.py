"""A TCP proxy that misbehaves on request: what a network does between a worker and its servers.

One thread with an event loop of its own; connections are copied byte by byte through whatever fault is in force. Everything random comes
from one seeded generator. `set` puts a fault in force for old and new connections, `heal` ends it, `point_at` moves to another server.

    latency     each chunk waits `seconds`, give or take half of it
    bandwidth   at most `bytes_s`
    slicer      chunks of at most `size` bytes, each by itself
    limit_data  a connection breaks after `size` more bytes: in the middle of a request or of an answer
    reset_peer  every connection is reset (RST), new ones too, once they send
    black_hole  what is sent disappears, no connection closes
    slow_close  an end of one side reaches the other only after `seconds`
    down        nobody listens

Bytes are never reordered, changed or invented. What a black hole swallowed is gone, so its connections are reset when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from support.servers import free_port

KINDS = ("latency", "bandwidth", "slicer", "limit_data", "reset_peer", "black_hole", "slow_close", "down")
CHUNK = 64 << 10
RESET = struct.pack("ii", 1, 0)
T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """One way to misbehave; see the head of the module for what the numbers mean."""

    kind: str
    seconds: float = 0.2
    bytes_s: int = 200_000
    size: int = 1000

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no such fault: {self.kind}")


@dataclass(eq=False)
class _Link:
    """One connection through the proxy."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    left: int | None = None
    swallowed: bool = False

    def reset(self) -> None:
        for side in (self.client, self.server):
            raw = side.get_extra_info("socket")
            if raw is not None:
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            side.transport.abort()


@dataclass
class FaultProxy:
    """Listens on ``127.0.0.1:port`` and forwards to ``127.0.0.1:upstream``.

    counts  how often each fault was put in force; `moved`: bytes that were forwarded
    """

    upstream: int
    seed: int = 0
    port: int = field(default_factory=free_port)
    fault: Fault | None = None
    moved: int = 0
    connections: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._links: set[_Link] = set()
        self._listening: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        self._run(self._listen())

    # ------------------------------------------------------------------ from any thread

    def set(self, fault: Fault) -> None:
        self._run(self._set(fault))

    def heal(self) -> None:
        self._run(self._set(None))

    def point_at(self, upstream: int) -> None:
        """New connections go there; the old ones are left to their fate."""
        self.upstream = upstream

    def cut(self) -> None:
        """Reset all present connections, once."""
        self._run(self._cut())

    def close(self) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(20)

    # ------------------------------------------------------------------ in the loop

    async def _listen(self) -> None:
        if self._listening is None:
            self._listening = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=CHUNK)

    async def _cut(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _unlisten(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    async def _set(self, fault: Fault | None) -> None:
        self.fault = fault
        kind = fault.kind if fault else ""
        for link in list(self._links):
            link.left = self._limit() if kind == "limit_data" else None
            if kind in ("reset_peer", "down") or (link.swallowed and kind != "black_hole"):
                link.reset()
        if kind == "down":
            await self._unlisten()
        else:
            await self._listen()

    async def _close(self) -> None:
        await self._unlisten()
        await self._cut()
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _limit(self) -> int:
        return self._rng.randint(1, self.fault.size) if self.fault else 0

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self.upstream, limit=CHUNK)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, forth)
        kind = self.fault.kind if self.fault else ""
        if kind == "down":  # set while we were connecting
            link.reset()
            return
        if kind == "limit_data":
            link.left = self._limit()
        self.connections += 1
        self._links.add(link)
        try:
            await asyncio.gather(self._copy(reader, forth, link), self._copy(back, writer, link))
        except asyncio.CancelledError:
            pass  # the proxy is closing; the streams' own callback would call it an error
        finally:
            self._links.discard(link)
            for side in (writer, forth):
                side.transport.abort()

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, link: _Link) -> None:
        """One direction, until its end."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while chunk := await source.read(CHUNK):
                if not await self._pass(chunk, sink, link):
                    return
            if self.fault and self.fault.kind == "slow_close":
                await asyncio.sleep(self.fault.seconds)
            if sink.can_write_eof():
                sink.write_eof()

    async def _pass(self, chunk: bytes, sink: asyncio.StreamWriter, link: _Link) -> bool:
        """Forward a chunk as the fault in force allows; False when the link is broken."""
        fault = self.fault
        kind = fault.kind if fault else ""
        if fault and kind == "latency":
            await asyncio.sleep(fault.seconds * self._rng.uniform(0.5, 1.5))
        elif fault and kind == "bandwidth":
            await asyncio.sleep(len(chunk) / fault.bytes_s)
        elif kind == "reset_peer":
            link.reset()
            return False
        elif kind == "black_hole":
            link.swallowed = True
            return True
        if link.left is not None and len(chunk) >= link.left:
            sink.write(chunk[: link.left])
            self.moved += link.left
            await sink.drain()
            sink.transport.write(b"")
            await asyncio.sleep(0)
            link.reset()
            return False
        if link.left is not None:
            link.left -= len(chunk)
        pieces = [chunk]
        if fault and kind == "slicer":
            pieces, at = [], 0
            while at < len(chunk):
                size = self._rng.randint(1, fault.size)
                pieces.append(chunk[at : at + size])
                at += size
        for piece in pieces:
            sink.write(piece)
            await sink.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0)
        self.moved += len(chunk)
        return True
