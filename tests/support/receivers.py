"""Receivers that record: HTTP and HTTPS servers that answer what a test wants, syslog listeners. Loopback only.

A receiver can go down and come back on the same port: that is what an outage looks like to a sink.
"""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import trustme
from support.servers import free_port

from consumers.store import OutboxAlert

HOSTILE = (
    "acct\r\nSet-Cookie: owned=1\r\n\r\n<14>1 - - - - - -",
    "\x00\x07\x1b[2J\x1b[31mred",
    "c1 \x85 next \x9b31m line\u2028sep\u2029par",
    "\u202egnp.exe\u2066\u200b\ufeff",
    "k" * 256,
    "é" * 128,
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "a|b|c=d\\e\\|f\\=g\"h]i[j' OR '1'='1",
    "*bold* _it_ `code` <!channel> @here [text](http://evil.example) https://evil.example www.evil.example",
    "=cmd|'/C calc'!A1",
    "{{7*7}} ${jndi:ldap://x} %0d%0a %s %n",
    "https://user:pw@evil.example/?q=1#f",
)
"""What a client may call itself."""


def alert(number: int = 0, update: int = 0, **changes: Any) -> OutboxAlert:
    """A native alert as the outbox gives it to a sink."""
    body: dict[str, Any] = {
        "alert_id": f"{number:032x}",
        "time": "2026-03-02T09:00:00.123Z",
        "kind": "client",
        "client_id": f"acct-{number}",
        "campaign_id": None,
        "model_id": "fraud-v3",
        "state": "throttle",
        "suspicion": 0.9993,
        "queries_seen": 412,
        "extraction": {"fidelity": 0.61, "low": 0.5, "high": 0.7},
        "family": "synthesised queries",
        "evidence": [
            {"signal": "part_dense", "statistic": 809.7, "p_value": 3.7e-05, "text": "843 of 843 queries break it"}
        ],
        "update": update,
        "calibrated": True,
        "reason": "suspicious",
        "enforced": "clear",
        "tenant": "default",
        "frameworks": ["OWASP:ML05:2023"],
    } | changes
    return OutboxAlert(f"{body['alert_id']}/{body['update']}", 1_772_442_000_123, json.dumps(body).encode())


def life(number: int = 0, **changes: Any) -> list[OutboxAlert]:
    """A finding's first alert, an update and its end."""
    return [
        alert(number, 0, **changes),
        alert(number, 1, state="block", enforced="block", **changes),
        alert(number, 2, state="clear", was="block", resolved=True, **changes),
    ]


@functools.cache
def trusting(authority: trustme.CA | None) -> ssl.SSLContext:
    """What a client needs to trust a server of this authority, and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority is not None:
        authority.configure_trust(context)
    return context


@functools.cache
def serving(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost", "alerts.example").configure_cert(context)
    return context


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Recorder:
    """An HTTP(S) server. `answers`: statuses of the next requests, 202 after them; `misbehave` writes the answer itself."""

    authority: trustme.CA | None = None
    port: int = field(default_factory=free_port)
    seen: list[Request] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    misbehave: Callable[[BaseHTTPRequestHandler], None] | None = None
    connections: int = 0
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.authority else 'http'}://127.0.0.1:{self.port}"

    @property
    def context(self) -> ssl.SSLContext:
        """What a client needs to trust the server."""
        return trusting(self.authority)

    def up(self) -> None:
        recorder = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                recorder.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if recorder.misbehave is not None:
                    self.close_connection = True
                    recorder.misbehave(self)
                    return
                status = recorder.answers.pop(0) if recorder.answers else 202
                named = {k.lower(): v for k, v in self.headers.items()}
                recorder.seen.append(Request(self.path, named, body))
                self.send_response(status)
                for name, value in recorder.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            do_GET = do_PUT = do_POST

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            open: set[socket.socket]

            def get_request(self) -> tuple[socket.socket, Any]:
                connection, where = super().get_request()
                self.open.add(connection)
                return connection, where

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that leaves is no news here."""

        server = Server(("127.0.0.1", self.port), Answer, bind_and_activate=False)
        server.open = set()
        server.server_bind()
        server.server_activate()
        if self.authority is not None:
            server.socket = serving(self.authority).wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self._server = server

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            for connection in self._server.open:  # type: ignore[attr-defined]
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._server.server_close()
            self._server = None


@contextlib.contextmanager
def recording(authority: trustme.CA | None = None) -> Iterator[Recorder]:
    recorder = Recorder(authority)
    recorder.up()
    try:
        yield recorder
    finally:
        recorder.down()


@dataclass
class Syslog:
    """A listener for syslog: udp, tcp or tls; `lines` are messages without their frame, `connections` how many came."""

    scheme: str
    authority: trustme.CA | None = None
    port: int = field(default_factory=free_port)
    lines: list[bytes] = field(default_factory=list)
    connections: int = 0
    _sockets: list[socket.socket] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def context(self) -> ssl.SSLContext:
        return trusting(self.authority)

    def up(self) -> None:
        kind = socket.SOCK_DGRAM if self.scheme == "udp" else socket.SOCK_STREAM
        sock = socket.socket(socket.AF_INET, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", self.port))
        self._sockets.append(sock)
        if self.scheme != "udp":
            sock.listen()
        threading.Thread(
            target=self._datagrams if self.scheme == "udp" else self._accept, args=(sock,), daemon=True
        ).start()

    def down(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._sockets.clear()

    def _datagrams(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while datagram := sock.recv(65_535):
                self.lines.append(datagram)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                self.connections += 1
                if self.authority is not None:
                    sock = serving(self.authority).wrap_socket(sock, server_side=True)
                self._sockets.append(sock)
                threading.Thread(target=self._frames, args=(sock,), daemon=True).start()

    def _frames(self, sock: socket.socket) -> None:
        """Octet counting, RFC 6587."""
        with contextlib.suppress(OSError, ValueError):
            stream = sock.makefile("rb")
            while True:
                digits = b""
                while (byte := stream.read(1)) not in (b" ", b""):
                    digits += byte
                if not byte:
                    return
                self.lines.append(stream.read(int(digits)))


def eventually(condition: Callable[[], bool], within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
