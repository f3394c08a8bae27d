"""The checks of `doctor`: one function per check. Each returns a state and a sentence.

Rules:
* ``ok`` means tried and found good. ``look`` is a finding. ``not checked`` means that it cannot be tried from here, with the reason.
* A setting is never called good because of its spelling alone.
* A check changes nothing, with one exception: an empty Redis is marked with the id of our secrets.
* A server that does not answer is a finding, not an error. A secret is never printed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import ipaddress
import itertools
import ssl
import stat
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import typer

from consumers import config, paths, terminal
from consumers.baselines import load_baselines
from consumers.commands import connections
from consumers.commands.examined import Check, CheckResult, Examined, look, ok, unchecked
from consumers.commands.options import AsJson, ConfigFile
from consumers.errors import QueryWardenError, Unavailable
from consumers.http.server import is_loopback, read_jwks
from consumers.keyring import Keyring
from consumers.log.mappings.mapping import NATIVE, for_topic
from consumers.records.heartbeat import heartbeats, stopped_elsewhere
from consumers.secrets import Secrets
from consumers.store.sealed import counted
from consumers.wiring import adapters
from consumers.wiring.credentials import tls_of, tokens_of
from detector.errors import DetectorError

EXPIRES_SOON_DAYS = 14
EXAMINED_RECORDS = 20_000
"""Records of the store that are looked at for the key that sealed them."""


def doctor(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Check servers, files and settings, and report what is insecure or does not answer. The exit status is 1 on findings."""
    found = list(examine(config.load(config_file), config_file))
    rows = [
        {"check": name, "ok": {"ok": True, "look": False}.get(one.state), "state": one.state, "finding": one.words}
        for name, one in found
    ]

    def table(_: Any) -> None:
        terminal.print_table(
            ("check", "", "what was seen"),
            [(name, "LOOK" if one.state == "look" else one.state, one.words) for name, one in found],
        )

    terminal.show(rows, as_json, table)
    if any(one.state == "look" for _, one in found):
        raise typer.Exit(1)


def examine(settings: config.Settings, file: Path | None = None) -> Iterator[tuple[str, CheckResult]]:
    """(check, finding) of each check. file: the settings file, where one was given."""
    examined = Examined(settings, file)
    for name, check in CHECKS.items():
        try:
            yield name, check(examined)
        except Unavailable as error:
            yield name, look(str(error)) if name == "store answers" else unchecked(f"no answer: {error}")
        except (QueryWardenError, DetectorError, OSError) as error:
            yield name, look(" ".join(str(error).split()))


# -------------------------------------------------------------------------------------------------------- store


def _no_store_yet(examined: Examined) -> CheckResult | None:
    """Return a finding if the store is a file that does not exist yet; a check must not create it."""
    file = _sqlite_file(examined)
    if file is None or file.exists():
        return None
    return unchecked(f"{file} does not exist yet; the first process creates it")


def _store_answers(examined: Examined) -> CheckResult:
    settings = examined.settings
    if (absent := _no_store_yet(examined)) is not None:
        return absent
    with adapters.open_store(settings) as store:
        if settings.secrets_path.exists():
            adapters.secrets_of(settings, store)
        return ok(f"{len(store.cells())} log cells")


def _log_cells(examined: Examined) -> CheckResult:
    settings = examined.settings
    if (absent := _no_store_yet(examined)) is not None:
        return absent
    with adapters.open_store(settings) as store:
        stopped = stopped_elsewhere(store)
        lives = any(beat.role == "ingest" for beat in heartbeats(store))
    if stopped:
        return look("; ".join(f"{cell} is stopped ({words})" for cell, words in stopped.items()))
    return ok("no log cell is stopped") if lives else unchecked("no ingest process is running")


def _store_encryption(examined: Examined) -> CheckResult:
    if not examined.on_redis:
        return unchecked("SQLite is a file; whether its disk is encrypted cannot be seen from here")
    parts = urlsplit(examined.settings.store_url)
    host = parts.hostname or ""
    if not parts.scheme.startswith("rediss"):
        if _is_local(host):
            return unchecked("not encrypted; the server is on this machine")
        return look("store.url is not encrypted and the server is not on this machine: use rediss://")
    asked = parse_qs(parts.query)
    weak = [
        f"{name}={asked[name][-1]}"
        for name, strict in (("ssl_cert_reqs", ("required",)), ("ssl_check_hostname", ("true", "yes", "1")))
        if name in asked and asked[name][-1].lower() not in strict
    ]
    if weak:
        return look(
            f"the server's certificate is not verified ({', '.join(weak)}): an attacker on the network can pose as the server"
        )
    try:
        version = connections.handshake(host, parts.port or 6379, {k: v[-1] for k, v in asked.items()})
    except ssl.SSLError as error:
        return look(f"the encryption cannot be verified: {error.reason or error}")
    except OSError as error:
        return unchecked(f"no answer: {error}")
    return ok(f"{version}, the server's certificate was verified")


def _store_password(examined: Examined) -> CheckResult:
    file = _sqlite_file(examined)
    if file is not None:
        return _private(file, "the first process creates it")
    parts = urlsplit(examined.settings.store_url)
    given = bool(parts.password)
    try:
        stranger = adapters.lets_strangers_in(examined.settings)
    except Unavailable as error:
        return unchecked(f"no answer: {error}") if given else look(f"store.url has no password; no answer: {error}")
    if stranger:
        return look(
            "the server accepts connections without a password: everybody who can reach it can read and write everything"
        )
    return ok("the server refuses connections without a password")


def _store_eviction(examined: Examined) -> CheckResult:
    if not examined.on_redis:
        return unchecked("SQLite drops nothing to make room")
    settings = examined.settings
    if not settings.secrets_path.exists():
        return unchecked("there is no secrets file; with other secrets the store cannot be opened")
    # A store refuses to open with another policy than noeviction; a warning means that it was not allowed to look.
    with adapters.open_store(settings) as store:
        adapters.secrets_of(settings, store)
        warnings = list(adapters.warnings_of(store))
    return unchecked("; ".join(warnings)) if warnings else ok("version and maxmemory-policy are as required")


def _replicas(examined: Examined) -> CheckResult:
    if not examined.on_redis:
        return unchecked("SQLite has none: take snapshots")
    wanted = examined.settings.store.min_replicas
    if wanted < 1:
        return look(
            "store.min_replicas is 0: a failover may lose operators' decisions, and they cannot be rebuilt from the log"
        )
    with adapters.open_store(examined.settings) as store:
        found = adapters.replicas_of(store)
    if found is None:
        return unchecked("the command INFO is not permitted, so the replicas cannot be counted")
    if found < wanted:
        return look(f"{found} replicas are connected, store.min_replicas is {wanted}: operators' writes will fail")
    return ok(f"{found} replicas are connected, {wanted} must confirm")


def _sqlite_file(examined: Examined) -> Path | None:
    url = examined.settings.store_url
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


# -------------------------------------------------------------------------------------------------------- kafka


def _log_answers(examined: Examined) -> CheckResult:
    settings = examined.settings
    if not examined.on_kafka:
        file = Path(settings.log.url.removeprefix("file://"))
        if not file.exists():
            return unchecked(f"{file} does not exist yet")
        with paths.opened(file, "log.url"):
            return ok(f"{file} can be read")
    topics = examined.topics
    if isinstance(topics, str):
        return look(f"no answer from {settings.kafka.bootstrap_servers}: {topics}")
    if absent := [topic for topic in settings.kafka.query_topics if topic not in topics]:
        return look(f"the brokers have no topic {', '.join(absent)}: create it, or ingest will not start")
    return ok(f"the brokers have the topic {', '.join(settings.kafka.query_topics)}")


def _mapping(examined: Examined) -> CheckResult:
    settings = examined.settings
    topics = settings.kafka.query_topics if examined.on_kafka else (settings.kafka.topic,)
    formats = {topic: for_topic(settings.log.mapping, topic) for topic in topics}
    if isinstance(settings.log.mapping, dict) and (unread := sorted(set(settings.log.mapping) - set(topics))):
        return look(f"log.mapping names topics that are not read: {', '.join(unread)}")
    names = ", ".join(f"{topic}: {one.name if one else NATIVE}" for topic, one in formats.items())
    return ok(names if examined.on_kafka else names.partition(": ")[2])


def _kafka_encryption(examined: Examined) -> CheckResult:
    if not examined.on_kafka:
        return unchecked("the log is a file")
    if examined.protocol.endswith("PLAINTEXT"):
        if examined.brokers_away:
            return look(f"kafka.security_protocol is {examined.protocol} for brokers that are not on this machine")
        return unchecked("not encrypted; the brokers are on this machine")
    if isinstance(examined.topics, str):
        return unchecked("no answer from the brokers")
    return ok(f"{examined.protocol}, the brokers' certificate was verified")


def _kafka_access(examined: Examined) -> CheckResult:
    if not examined.on_kafka:
        return unchecked("the log is a file")
    named = "SASL" in examined.protocol or examined.settings.kafka.ssl_certfile
    if not named:
        if examined.brokers_away:
            return look("the brokers are used without authentication: neither SASL nor a client certificate is set")
        return unchecked("no authentication; the brokers are on this machine")
    if isinstance(examined.topics, str):
        return unchecked("no answer from the brokers")
    stranger = adapters.kafka_connection(examined.settings) | {
        "security_protocol": examined.protocol.removeprefix("SASL_")
    }
    for name in ("sasl_mechanism", "sasl_plain_username", "sasl_plain_password", "ssl_certfile", "ssl_keyfile"):
        stranger.pop(name, None)
    with contextlib.suppress(QueryWardenError, OSError):
        connections.topics(stranger, 2_000)
        return look("the brokers also answer a client without credentials at the same address")
    try:
        connections.topics(adapters.kafka_connection(examined.settings), 2_000)
    except (QueryWardenError, OSError):
        return unchecked("the brokers stopped answering while they were asked")
    return ok("the brokers answer us, and do not answer a client without credentials")


# -------------------------------------------------------------------------------------------------------- files


def _secrets_file(examined: Examined) -> CheckResult:
    path = examined.settings.secrets_path
    private = _private(path, "querywarden secrets create creates it, or else the first process")
    if private.state != "ok":
        return private
    folder = stat.S_IMODE(path.parent.stat().st_mode)
    if folder & 0o022 and not folder & stat.S_ISVTX:
        return look(f"{path.parent} has mode {folder:04o}: other users of this machine can replace the secrets file")
    return ok(f"{path}: secrets {Secrets.load(path).key_id}, readable by its owner only")


def _record_encryption(examined: Examined) -> CheckResult:
    settings = examined.settings
    if settings.store.sealing == "off":
        return look("store.sealing is off: profiles, decisions and alerts are stored in clear")
    if not settings.secrets_path.exists():
        return unchecked(f"{settings.secrets_path} does not exist yet; the first process creates it with a key")
    ring = Keyring(settings.secrets_path).ring()
    key = ring.current(settings.tenant, time.time())
    if key is None:
        return look(
            f"tenant {settings.tenant} has no key: its records are stored in clear (querywarden secrets rotate gives it one)"
        )
    file = _sqlite_file(examined)
    found = Counter[str]()
    if file is None or file.exists():
        with adapters.open_store(settings) as store:
            found = counted(itertools.islice(store.export(), EXAMINED_RECORDS), ring).get(settings.tenant, found)
    unknown = [name for name in found if name and bytes.fromhex(name) not in {*ring.by_id, *ring.destroyed}]
    if unknown:
        return look(f"records are sealed with the key {unknown[0]}, which {settings.secrets_path} does not hold")
    left = found.total() - found[key.id.hex()]
    words = f"new records are sealed with key {key.id.hex()}"
    return ok(f"{words}; {left} of the first {found.total():,} are in clear or under an older key" if left else words)


def _settings_file(examined: Examined) -> CheckResult:
    if examined.file is None:
        return unchecked("no settings file was given (--config)")
    held = config.secrets_in(tomllib.loads(paths.read_text(examined.file)))
    if not held:
        return ok(f"{examined.file} holds no secret")
    mode = stat.S_IMODE(examined.file.stat().st_mode)
    if mode & 0o077:
        return look(
            f"{examined.file} has mode {mode:04o} and holds {', '.join(held)}: other users of this machine can read it"
        )
    return ok(f"{examined.file} holds {', '.join(held)}; only its owner can read it")


def _private(path: Path, otherwise: str) -> CheckResult:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return unchecked(f"{path} does not exist yet; {otherwise}")
    if mode & 0o077:
        return look(f"{path} has mode {mode:04o}: other users of this machine can read it")
    return ok(f"{path} is readable by its owner only")


# --------------------------------------------------------------------------------------------------------- http


def _bind(examined: Examined) -> CheckResult:
    http_settings, metrics = examined.settings.http, examined.settings.metrics.bind
    if not is_loopback(http_settings.bind) and not http_settings.tls_certfile:
        return look(
            f"http.bind {http_settings.bind} is not loopback and there is no TLS: keys would cross the network in clear text"
        )
    if metrics and not is_loopback(metrics):
        return look(f"metrics.bind {metrics} answers everybody who can reach it")
    tls = tls_of(examined.settings)
    if tls is not None:
        return _certificate(Path(tls.certfile), Path(tls.keyfile))
    return _serves(http_settings.bind)


def _certificate(certificate: Path, key: Path) -> CheckResult:
    from cryptography import x509

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        ends = x509.load_pem_x509_certificate(paths.read(certificate)).not_valid_after_utc
    except (ssl.SSLError, ValueError) as error:
        return look(f"{certificate} and {key} cannot be used: {getattr(error, 'reason', None) or error}")
    left = ends - dt.datetime.now(dt.UTC)
    if left < dt.timedelta(days=EXPIRES_SOON_DAYS):
        return look(f"the certificate {certificate} expires {ends:%Y-%m-%d %H:%M} UTC")
    return ok(f"TLS; the certificate is valid until {ends:%Y-%m-%d}")


def _gateway_bind(examined: Examined) -> CheckResult:
    g = examined.settings.gateway
    if not g.grpc_bind:
        return unchecked("gateway.grpc_bind is empty: gateways ask over HTTP only")
    if g.grpc_certfile and g.grpc_keyfile:
        return _certificate(Path(g.grpc_certfile), Path(g.grpc_keyfile))
    if not is_loopback(g.grpc_bind):
        return look(
            f"gateway.grpc_bind {g.grpc_bind} is not loopback and there is no TLS: gateways' keys would cross the network in clear text"
        )
    return ok(f"{g.grpc_bind} is loopback")


def _serves(bind: str) -> CheckResult:
    host, _, port = bind.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port) if port.isdecimal() else 0, timeout=2)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return unchecked(f"{bind} is loopback; nothing answers there now")
    finally:
        connection.close()
    return ok(f"{bind} is loopback, and serve answers") if status == 200 else look(f"{bind} answers {status}")


def _authentication(examined: Examined) -> CheckResult:
    settings = examined.settings
    http_settings = settings.http
    if http_settings.oidc_issuer:
        tokens_of(settings)
        try:
            known = read_jwks(http_settings.oidc_jwks)
        except (ValueError, http.client.HTTPException) as error:
            return look(f"http.oidc_jwks cannot be read: {type(error).__name__}")
        return ok(f"tokens of the identity provider; {len(known.get('keys', ()))} public keys")
    if http_settings.certificate_roles and http_settings.tls_client_ca:
        ssl.create_default_context(cafile=http_settings.tls_client_ca)
        return ok("client certificates; the file with their authority can be read")
    file = _sqlite_file(examined)
    keys: list[Any] = []
    if file is None or file.exists():
        with adapters.open_store(settings) as store:
            keys = store.operator_entries("key", settings.tenant)[1]
    if keys:
        return ok(f"{len(keys)} API keys are valid")
    none = "no API key, token or certificate is configured:"
    if is_loopback(http_settings.bind) and http_settings.open_on_loopback:
        return look(f"{none} every user of this machine can read (querywarden keys create --role admin)")
    return look(f"{none} nobody can use the API (querywarden keys create --role admin)")


def _calibration(examined: Examined) -> CheckResult:
    settings = examined.settings
    if not settings.baselines:
        return look("no baselines are configured")
    found = load_baselines(settings.baselines)
    guessed = [model for model, baseline in found.items() if not baseline.calibration.calibrated]
    weak = [
        model
        for model, b in found.items()
        if b.calibration.calibrated and not b.calibration.supports(settings.false_alarm_budget)
    ]
    words = [f"not calibrated on real clients: {', '.join(guessed)}"] if guessed else []
    words += [f"too few clients for the false-alarm budget: {', '.join(weak)}"] if weak else []
    if not found:
        return look("the folders of the setting `baselines` hold no *.baseline file")
    return look("; ".join(words)) if words else ok(f"calibrated: {', '.join(found)}")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


CHECKS: Mapping[str, Check] = {
    "store answers": _store_answers,
    "store encryption": _store_encryption,
    "store password": _store_password,
    "store eviction": _store_eviction,
    "store replicas": _replicas,
    "log answers": _log_answers,
    "log cells": _log_cells,
    "log format": _mapping,
    "kafka encryption": _kafka_encryption,
    "kafka access": _kafka_access,
    "secrets file": _secrets_file,
    "record encryption": _record_encryption,
    "settings file": _settings_file,
    "http address": _bind,
    "gateway address": _gateway_bind,
    "authentication": _authentication,
    "baselines": _calibration,
}
"""Name → check, in the order in which they are shown."""
