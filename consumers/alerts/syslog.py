r"""Alerts as syslog messages (RFC 5424) over UDP, TCP or TLS, with ArcSight CEF as text.

Rules:
* A message is one line, whatever a client id contains: control, bidi and invisible characters are written out (⟨U+202E⟩), then
  ``\``, ``|`` (header) and ``=`` (extension) are escaped as CEF demands.
* TCP and TLS frame by octet count (RFC 6587, RFC 5425). UDP does not report arrival: a message sent counts as taken.
* A broken connection is noticed at the next message at the latest. It is opened once more before `Unavailable` is raised.
* Facility 13 (log audit). MSGID is the kind of message; the structured data carries the uid.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from consumers.alerts import one_by_one, taxonomy
from consumers.alerts.finding import Finding, finding, visible
from consumers.alerts.ocsf import product_version
from consumers.errors import ConfigError, Unavailable
from consumers.store import OutboxAlert
from consumers.times import rfc3339

FACILITY = 13
LEVELS = {"medium": 4, "high": 3, "critical": 2}
CEF_SEVERITIES = {"medium": 5, "high": 8, "critical": 10}
PORTS = {"udp": 514, "tcp": 601, "tls": 6514}
UDP_BYTES = 8192
TIMEOUT_S = 5.0


class SyslogSink:
    """Sink ``syslog:<host>``. `url`: ``udp://host:514``, ``tcp://host:601`` or ``tls://host:6514``."""

    def __init__(self, url: str, *, context: ssl.SSLContext | None = None) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError("syslog: not a URL") from error
        if parts.scheme not in PORTS or not parts.hostname or parts.path not in ("", "/") or parts.username:
            raise ConfigError("syslog: the URL must be udp://host:port, tcp://host:port or tls://host:port")
        self._scheme, self._host, self._port = parts.scheme, parts.hostname, port or PORTS[parts.scheme]
        self._context = context or ssl.create_default_context()
        self._hostname = re.sub(r"[^\x21-\x7e]", "-", socket.gethostname())[:255] or "-"
        self._socket: socket.socket | None = None

    @property
    def name(self) -> str:
        return f"syslog:{self._host}"

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        return one_by_one(alerts, self._send)

    def summary(self, title: str, text: str) -> None:
        """One message about many alerts. Raises Unavailable."""
        now = rfc3339(time.time_ns() // 1_000_000)
        said = visible(f"{title}: {text}".replace("\n", "; "), UDP_BYTES // 8)
        self._deliver(
            f"<{FACILITY * 8 + 5}>1 {now} {self._hostname} querywarden {os.getpid()} digest - {said}".encode()
        )

    def close(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def _send(self, alert: OutboxAlert) -> None:
        self._deliver(message(finding(alert), self._hostname).encode())

    def _deliver(self, text: bytes) -> None:
        try:
            if self._socket is not None and self._gone(self._socket):
                self.close()
            fresh = self._socket is None
            try:
                self._write(text)
            except OSError:
                self.close()
                if fresh:
                    raise
                self._write(text)
        except OSError as error:
            self.close()
            raise Unavailable(f"syslog: {self._host}: {type(error).__name__}") from None

    def _write(self, text: bytes) -> None:
        if self._socket is None:
            self._socket = self._connected()
        if self._scheme == "udp":
            self._socket.send(text[:UDP_BYTES])
        else:
            self._socket.sendall(b"%d %s" % (len(text), text))

    def _connected(self) -> socket.socket:
        if self._scheme == "udp":
            family, kind, proto, _, where = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)[0]
            sock = socket.socket(family, kind, proto)
            sock.settimeout(TIMEOUT_S)
            sock.connect(where)
            return sock
        sock = socket.create_connection((self._host, self._port), timeout=TIMEOUT_S)
        if self._scheme == "tls":
            try:
                return self._context.wrap_socket(sock, server_hostname=self._host)
            except BaseException:
                sock.close()
                raise
        return sock

    def _gone(self, sock: socket.socket) -> bool:
        """Whether the other side closed. Something to read need not be the end: TLS 1.3 sends its tickets after the handshake."""
        if self._scheme == "udp":
            return False
        sock.setblocking(False)
        try:
            return not sock.recv(4096)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:  # reset
            return True
        finally:
            sock.settimeout(TIMEOUT_S)


def message(found: Finding, hostname: str) -> str:
    """The finding as one RFC 5424 message."""
    level = 6 if found.resolved else LEVELS[found.severity]
    stamp = re.sub(r"(\.\d{1,6})\d*", r"\1", found.time)
    structured = f'[querywarden@32473 uid="{_parameter(found.uid)}" model="{_parameter(found.model_id)}"]'
    return f"<{FACILITY * 8 + level}>1 {stamp} {hostname} querywarden {os.getpid()} {found.activity} {structured} {cef(found)}"


def cef(found: Finding) -> str:
    """The finding as one CEF line."""
    severity = 1 if found.resolved else CEF_SEVERITIES[found.severity]
    head = ("QueryWarden", "QueryWarden", product_version(), taxonomy.EXTRACTION.sub_uid, found.title)
    extension: dict[str, Any] = {
        "externalId": found.uid,
        "rt": found.time_ms,
        "cat": "Model Extraction",
        "act": found.enforced,
        "outcome": found.state,
        "suid": found.subject,
        "cnt": found.queries_seen,
        "msg": found.text,
        "cs1Label": "model",
        "cs1": found.model_id,
        "cs2Label": "tenant",
        "cs2": found.tenant,
        "cs3Label": "activity",
        "cs3": found.activity,
        "cs4Label": "techniques",
        "cs4": " ".join(row.id for row in taxonomy.techniques(found)),
        "cfp1Label": "suspicion",
        "cfp1": found.suspicion,
    }
    if found.sources:
        extension["src"] = found.sources[0]
    fields = " ".join(f"{key}={_extension(str(value))}" for key, value in extension.items())
    return f"CEF:0|{'|'.join(_header(part) for part in head)}|{severity}|{fields}"


def _header(text: str) -> str:
    return visible(text).replace("\\", "\\\\").replace("|", "\\|")


def _extension(text: str) -> str:
    return visible(text, 1023).replace("\\", "\\\\").replace("=", "\\=")


def _parameter(text: str) -> str:
    """PARAM-VALUE of RFC 5424."""
    return visible(text).replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")
