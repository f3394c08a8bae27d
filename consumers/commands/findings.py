"""What `doctor` looks at: one function a check, which answers with a sentence or, when all is well, with nothing.

Rules: a check reads and changes nothing; a server that does not answer is a finding, never an error; a secret is never printed.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from consumers import config, wiring
from consumers.errors import QueryWardenError
from consumers.serve import is_loopback

Check = Callable[[config.Settings], str]


def examine(settings: config.Settings) -> Iterator[tuple[str, str]]:
    """(check, finding) of each check; an empty finding is a good one."""
    for name, check in CHECKS.items():
        try:
            yield name, check(settings)
        except (QueryWardenError, OSError) as error:
            yield name, str(error)


def _kafka_encryption(settings: config.Settings) -> str:
    k = settings.kafka
    if not settings.log.url.startswith("kafka:"):
        return ""
    away = [one for one in k.bootstrap_servers.split(",") if not is_loopback(one.strip())]
    if away and (k.security_protocol or "").endswith("PLAINTEXT"):
        return f"kafka.security_protocol is {k.security_protocol} for brokers that are not on this machine"
    return ""


def _kafka_access(settings: config.Settings) -> str:
    k = settings.kafka
    away = [one for one in k.bootstrap_servers.split(",") if not is_loopback(one.strip())]
    if (
        settings.log.url.startswith("kafka:")
        and away
        and "SASL" not in (k.security_protocol or "")
        and not k.ssl_certfile
    ):
        return "nobody is asked who they are: neither SASL nor a client certificate for the brokers"
    return ""


def _kafka_answers(settings: config.Settings) -> str:
    if not settings.log.url.startswith("kafka:"):
        return ""
    silent = []
    for one in settings.kafka.bootstrap_servers.split(","):
        host, _, port = one.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except (OSError, ValueError):
            silent.append(one.strip())
    return f"no answer from {', '.join(silent)}" if silent else ""


def _store_answers(settings: config.Settings) -> str:
    with wiring.open_store(settings) as store:
        wiring.secrets_of(settings, store)
        store.cells()
    return ""


def _store_encryption(settings: config.Settings) -> str:
    parts = urlsplit(settings.store_url)
    if parts.scheme.startswith("redis") and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        if not parts.scheme.startswith("rediss"):
            return "store.url is not encrypted and the server is not on this machine: use rediss://"
        if not parts.password:
            return "store.url has no password"
    return ""


def _store_password(settings: config.Settings) -> str:
    parts = urlsplit(settings.store_url)
    if parts.scheme.startswith("redis") and not parts.password:
        return "store.url has no password: whoever reaches the server reads and writes everything"
    return ""


def _replicas(settings: config.Settings) -> str:
    if settings.store_url.startswith("redis") and settings.store.min_replicas < 1:
        return "store.min_replicas is 0: a failover may lose operators' decisions, which the log cannot bring back"
    return ""


def _eviction(settings: config.Settings) -> str:
    if not settings.store_url.startswith("redis"):
        return ""
    # A store refuses to open with another policy than noeviction; a warning means that it was not allowed to look.
    with wiring.open_store(settings) as store:
        wiring.secrets_of(settings, store)
        warnings = list(getattr(store, "warnings", ()))
    return "; ".join(warnings)


def _secrets_file(settings: config.Settings) -> str:
    path = settings.secrets_path
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return ""
    if mode & 0o077:
        return f"{path} has mode {mode:04o}: others on this machine can read it"
    folder = stat.S_IMODE(path.parent.stat().st_mode)
    if folder & 0o022 and not folder & stat.S_ISVTX:
        return f"{path.parent} has mode {folder:04o}: others can put another secrets file there"
    return ""


def _settings_file(settings: config.Settings) -> str:
    """Passwords in the environment are fine; in a file that others read they are not."""
    return (
        ""
        if os.environ.get("QUERYWARDEN_KAFKA__SASL_PASSWORD") or not settings.kafka.sasl_password
        else ("kafka.sasl_password is in the settings file: keep it in the environment or in a secret")
    )


def _bind(settings: config.Settings) -> str:
    http = settings.http
    if not is_loopback(http.bind) and not http.tls_certfile:
        return f"http.bind {http.bind} is not loopback and there is no TLS: keys would travel in clear"
    if settings.metrics.bind and not is_loopback(settings.metrics.bind):
        return f"metrics.bind {settings.metrics.bind} answers everybody who reaches it"
    return ""


def _authentication(settings: config.Settings) -> str:
    http = settings.http
    with wiring.open_store(settings) as store:
        wiring.secrets_of(settings, store)
        keys = store.operator_entries("key", settings.tenant)[1]
    if keys or http.oidc_issuer or http.certificate_roles:
        return ""
    if is_loopback(http.bind) and http.open_on_loopback:
        return "no API key, token or certificate is configured: everybody on this machine may look (querywarden keys create)"
    return (
        "no API key, token or certificate is configured: nobody can use the API (querywarden keys create --role admin)"
    )


def _calibration(settings: config.Settings) -> str:
    from consumers.fit import load_baselines

    if not settings.baselines:
        return "no baselines are configured"
    found = load_baselines(settings.baselines)
    guessed = [model for model, baseline in found.items() if not baseline.nulls.calibrated]
    weak = [
        model for model, b in found.items() if b.nulls.calibrated and not b.nulls.supports(settings.false_alarm_budget)
    ]
    words = [f"not calibrated on real clients: {', '.join(guessed)}"] if guessed else []
    words += [f"too few clients for the false-alarm budget: {', '.join(weak)}"] if weak else []
    return "; ".join(words)


CHECKS: dict[str, Check] = {
    "store answers": _store_answers,
    "store encryption": _store_encryption,
    "store password": _store_password,
    "store eviction": _eviction,
    "store replicas": _replicas,
    "kafka answers": _kafka_answers,
    "kafka encryption": _kafka_encryption,
    "kafka access": _kafka_access,
    "secrets file": _secrets_file,
    "settings file": _settings_file,
    "http address": _bind,
    "authentication": _authentication,
    "baselines": _calibration,
}
"""Name → check, in the order in which they are shown."""
