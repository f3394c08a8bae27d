"""Serve: the process that answers gateways, dashboards and people over HTTP.

Rules:
* There are three threads. One answers (the loop of uvicorn, with a pool for calls that wait for the store). One keeps the credentials in
  memory (`CredentialRefresher`: keys, sign-outs, the provider's public keys, the copy of the audit log). One keeps the restrictions
  (`refresher`).
* Keys and sign-outs are read again when the operator cell has a new revision. The revision is read every `LOOK_EVERY_S`.
* The process is ready once keys and restrictions were read. If the store stops answering later, gateways notice nothing, so the process
  stays ready.
* On `stop` no new connection is accepted, connections that follow events are closed, open requests get `DRAIN_S`, then the process ends.
"""

from __future__ import annotations

import http.client
import json
import logging
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from consumers import paths
from consumers.errors import ConfigError, CorruptState, InvalidInput, Refused, Unavailable, WrongUse
from consumers.http.auth import KeyRing, Tokens
from consumers.http.middleware.stack import MiddlewareStack
from consumers.http.protocol import Connection
from consumers.operators import audit
from consumers.periodic import Periodic
from consumers.secrets import Secrets
from consumers.store import ServiceStore
from consumers.telemetry.alarms import Alarms

log = logging.getLogger("querywarden.serve")

DRAIN_S = 10
LOOK_EVERY_S = 0.25
KEYS_EVERY_S = 5.0
"""Whatever the revision says."""
JWKS_EVERY_S = 600.0
JWKS_RETRY_S = 30.0
ANCHOR_EVERY_S = 300.0
ANCHOR_EVERY_ROWS = 1000
MOST_CONNECTIONS = 4096
_JWKS_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of the server's certificate; client_ca: who signs clients' certificates, None: none are asked for."""

    certfile: str
    keyfile: str
    client_ca: str | None = None


@dataclass(slots=True)
class CredentialRefresher:
    """Keeps in memory what answers need, and the audit log's copy complete.

    jwks     file or URL of the identity provider's public keys, for `tokens`
    mirror   the copy of the audit log; None: none is kept here
    follow   reads what else follows the operator cell
    alarms   says when keys were lost
    changed  called when other keys are known than before
    """

    store: ServiceStore
    secrets: Secrets
    keys: KeyRing
    tokens: Tokens | None = None
    jwks: str = ""
    mirror: audit.Mirror | None = None
    follow: Callable[[ServiceStore], None] = lambda store: None
    alarms: Alarms | None = None
    changed: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    _due_s: float = 0.0
    _read: int = -1
    _periodic: Periodic = field(init=False)
    _jwks_due_s: float = 0.0
    _anchored: tuple[float, int] = (-ANCHOR_EVERY_S, 0)
    _revision: int = -1
    _failures: int = 0

    def __post_init__(self) -> None:
        self._periodic = Periodic("credentials", self.turn, LOOK_EVERY_S, spread=0.1, at_once=False)

    def start(self) -> None:
        """Read once, then go on in a thread. What cannot be read now is tried again."""
        self.turn()
        self._periodic.start()

    def stop(self) -> None:
        """End the thread after its turn."""
        self._periodic.stop()

    def turn(self) -> None:
        """One round. Never raises for what others do."""
        try:
            revision, head = audit.stored_head(self.store)
            if revision != self._read or self.clock() >= self._due_s:
                self._learn_keys()
                self._read, self._due_s = revision, self.clock() + KEYS_EVERY_S
            self._copy(revision, head)
            self._failures = 0
        except (Unavailable, CorruptState, Refused) as error:
            if not self._failures:
                log.warning("keys and audit log not refreshed", extra={"why": str(error)})
            self._failures += 1
        if self.tokens is not None and self.clock() >= self._jwks_due_s:
            self._learn(self.tokens)

    def _learn_keys(self) -> None:
        before = self.keys.fingerprint
        self.keys.refresh(self.store)
        self.follow(self.store)
        if self.alarms is not None:
            lost = self.keys.lost()
            self.alarms.show(
                "keys_lost", bool(lost), keys=sorted(f"{k.prefix} {k.role} {k.name}" for k in lost.values())
            )
            self.alarms.metrics.set("querywarden_keys_lost", float(len(lost)))
        if self.keys.fingerprint != before:
            self.changed()

    def _copy(self, revision: int, head: audit.Head | None) -> None:
        """Complete the copy and, now and then, log the signed head: an anchor outside of both."""
        if head is None:
            return
        if self.mirror is not None and revision != self._revision:
            self.mirror.catch_up(self.store, audit.Seal(self.secrets))
            self._revision = revision
        at, n = self._anchored
        if head.n > n and (self.clock() - at >= ANCHOR_EVERY_S or head.n - n >= ANCHOR_EVERY_ROWS):
            log.info("audit head", extra={"n": head.n, "hash": head.hash, "signature": head.signature, "ts": head.ts})
            self._anchored = (self.clock(), head.n)

    def _learn(self, tokens: Tokens) -> None:
        try:
            tokens.learn(read_jwks(self.jwks))
            self._jwks_due_s = self.clock() + JWKS_EVERY_S
        except (Refused, OSError, ValueError, http.client.HTTPException) as error:
            log.error("public keys of the identity provider not read", extra={"why": str(error)})
            self._jwks_due_s = self.clock() + JWKS_RETRY_S


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def read_jwks(where: str) -> Mapping[str, Any]:
    """The JWKS document of a file, of an https address, or of an http address on loopback; redirects are not followed.

    Raises ConfigError, OSError, ValueError.
    """
    parts = urlsplit(where)
    if parts.scheme in ("http", "https"):
        if "@" in parts.netloc:
            raise ConfigError("http.oidc_jwks: the address must not contain credentials")
        if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigError("http.oidc_jwks: plain http is allowed only on loopback")
        opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))
        with opener.open(where, timeout=5) as answer:
            raw = answer.read(_JWKS_BYTES)
    else:
        raw = paths.read(where, "http.oidc_jwks", _JWKS_BYTES)
    found = json.loads(raw)
    if not isinstance(found, dict):
        raise InvalidInput("identity provider: its answer is not a JWKS document")
    return found


def is_loopback(bind: str) -> bool:
    return bind.rpartition(":")[0].strip("[]") in ("127.0.0.1", "localhost", "::1")


def listen(bind: str) -> socket.socket:
    """A listening socket on ``host:port``; port 0 picks one. Raises WrongUse, ConfigError."""
    host, _, port = bind.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise WrongUse(f"http.bind: {bind!r} is not host:port")
    host = host.strip("[]")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(f"http.bind: {bind}: {error.strerror or error}") from error
    return listener


def server(application: MiddlewareStack, tls: Tls | None = None) -> uvicorn.Server:
    """The HTTP server around the application. Raises ConfigError for certificates that can't be used."""
    config = uvicorn.Config(
        application,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_S,
        limit_concurrency=MOST_CONNECTIONS,
        ssl_certfile=tls.certfile if tls else None,
        ssl_keyfile=tls.keyfile if tls else None,
        ssl_ca_certs=tls.client_ca if tls else None,
        ssl_cert_reqs=ssl.CERT_OPTIONAL if tls and tls.client_ca else ssl.CERT_NONE,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"http.tls: {error}") from error
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return uvicorn.Server(config)


def run(
    application: MiddlewareStack, listener: socket.socket, stop: Callable[[], bool], tls: Tls | None = None
) -> None:
    """Answer until `stop`, then drain. Whatever ends the server before is raised."""
    answering = server(application, tls)
    failed: list[BaseException] = []

    def answer() -> None:
        try:
            answering.run(sockets=[listener])
        except BaseException as error:  # noqa: BLE001 — raised again below, in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=answer, name="http", daemon=True)
    thread.start()
    try:
        while thread.is_alive() and not stop():
            time.sleep(0.05)
    finally:
        answering.should_exit = True
        application.end()
        thread.join(DRAIN_S + 5)
        listener.close()
    if failed:
        raise failed[0]
