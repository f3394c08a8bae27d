"""The connection of an HTTP request: limits that uvicorn does not set.

Rules:
* A request's head must be complete `HEAD_TIMEOUT_S` after the connection opened or its first byte came, and may hold `MOST_HEAD_BYTES`.
  Slower callers are cut off.
* If a caller is refused while it still sends, its bytes are read on, to a bound, before the connection closes. Closing at once would reset
  the connection, and a gateway that sees a reset instead of the refusal may let the request pass.
* The names of a client certificate that TLS has verified go into the connection's state with their types, as ``certificate_names``.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_TIMEOUT_S = 5.0
MOST_HEAD_BYTES = 65_536
LINGER_S = 2.0
LINGER_BYTES = 2 << 20
_NAMES = ("DNS", "URI", "email")
_SLOW = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_BAD = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with a time limit and a size limit on heads."""

    _waiting: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True
    _left_bytes: int | None = None
    """While a refused connection is read on: how much more."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self.app_state = {**self.app_state, "certificate_names": certificate_names(tls.getpeercert() or {})}
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._left_bytes is not None:
            self._left_bytes -= len(data)
            if self._left_bytes <= 0:
                self.transport.close()
            return
        if self._in_head:
            if self._waiting is None:
                self._await_head()
            self._head_bytes += len(data)
        super().data_received(data)
        # A body that came with its head has ended the counting by now.
        if self._in_head and self._head_bytes > MOST_HEAD_BYTES:
            self._cut(_LARGE)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._forget()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._head_bytes = True, 0

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        text = msg.encode("ascii")
        self._cut(_BAD % (len(text), text))

    def _await_head(self) -> None:
        self._waiting = self.loop.call_later(HEAD_TIMEOUT_S, self._cut, _SLOW)

    def _forget(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _cut(self, words: bytes) -> None:
        self._forget()
        if not self.transport.is_closing() and self._left_bytes is None:
            self._left_bytes = LINGER_BYTES
            self.transport.write(words)
            self.flow.resume_reading()
            self._waiting = self.loop.call_later(LINGER_S, self.transport.close)
            if self.transport.can_write_eof():
                self.transport.write_eof()


def certificate_names(certificate: Any) -> tuple[str, ...]:
    """Alternative names of a certificate's subject, as `ssl` shows it, each with its type: ``DNS:…``, ``URI:…``, ``email:…``."""
    return tuple(f"{kind}:{name}" for kind, name in certificate.get("subjectAltName", ()) if kind in _NAMES)
