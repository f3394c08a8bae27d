"""The connections that `doctor` tries.

Rules: each function makes one connection, takes at most seconds, and changes nothing on the server.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from typing import Any

from consumers.errors import Unavailable

TIMEOUT_S = 3.0


def topics(brokers: Mapping[str, Any], timeout_ms: int = 5_000) -> frozenset[str]:
    """Topics of the brokers. brokers: what `log.kafka.connection` returned. Raises Unavailable."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    try:
        limits = {"bootstrap_timeout_ms": timeout_ms, "request_timeout_ms": timeout_ms}
        admin = KafkaAdminClient(**{**brokers, **limits})
        try:
            return frozenset(admin.list_topics())
        finally:
            admin.close()
    except (KafkaError, ValueError) as error:
        raise Unavailable(f"Kafka: {str(error) or type(error).__name__}") from error


def handshake(host: str, port: int, options: Mapping[str, str]) -> str:
    """TLS version that a server speaks, its certificate and name verified.

    options: ssl_ca_certs, ssl_certfile, ssl_keyfile as in ``store.url``. Raises OSError, among them ssl.SSLError.
    """
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if certificate := options.get("ssl_certfile"):
        context.load_cert_chain(certificate, options.get("ssl_keyfile"))
    with (
        socket.create_connection((host, port), timeout=TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        return secured.version() or "TLS"
