"""Settings → the HTTP service: its parts, built and started.

Rules: nothing is decided here; a part that fails to start stops the start with one line; `stack` ends what was begun, in reverse order.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from consumers import config, paths
from consumers import serve as service
from consumers.alarms import Alarms
from consumers.enforcement.refresher import Refresher
from consumers.enforcement.restrictions import Restrictions
from consumers.enforcement.storm import GatewayBreaker
from consumers.errors import WrongUse
from consumers.fit import load_baselines
from consumers.http.api import Api, build
from consumers.http.auth import Authenticator, Certificates, KeyRing, TokenRules, Tokens
from consumers.http.bridge import Bridge
from consumers.http.dashboard import actions, pages
from consumers.http.dashboard.health import Pulse
from consumers.http.dashboard.session import Sessions
from consumers.http.front import Buckets, Front
from consumers.http.gateway import Gateway, Rules
from consumers.http.identities import Identities
from consumers.http.keymemory import MemoryFile
from consumers.http.restriction_feed import DecisionFeed
from consumers.log.formats import InputReader, NativeFormat
from consumers.metrics import Metrics
from consumers.readers.queries import Reader
from consumers.responders import Responder, Target
from consumers.secrets import Secrets
from consumers.serve import CredentialRefresher, Tls, is_loopback
from consumers.store import Store
from consumers.wiring.adapters import open_store, open_writer, secrets_of
from consumers.wiring.operators import mirror_of, modes_of, operations_of
from consumers.wiring.telemetry import start_heartbeat
from detector.baseline import Baseline
from detector.query import ClientKey

log = logging.getLogger("querywarden.serve")


def run_serve(
    settings: config.Settings, stack: contextlib.ExitStack, stop: Callable[[], bool], metrics: Metrics
) -> None:
    """Start everything, answer until `stop`, drain."""
    tls = tls_of(settings)
    grpc_tls_of(settings)
    listener = service.listen(settings.http.bind)
    stack.callback(listener.close)
    front = build_front(settings, stack, metrics)
    log.info("serve started", extra={"bind": bound(listener), "open": front.auth.is_open()})
    service.run(front, listener, stop, tls)
    log.info("serve stopped")


def bound(listener: socket.socket) -> str:
    """Host and port that a socket listens on."""
    host, port = listener.getsockname()[:2]
    return f"{host}:{port}"


def tls_of(settings: config.Settings) -> Tls | None:
    """Files of the server's certificate; None without TLS. Raises WrongUse, Refused."""
    http = settings.http
    if bool(http.tls_certfile) != bool(http.tls_keyfile):
        raise WrongUse("http.tls_certfile and http.tls_keyfile go together")
    if (http.tls_client_ca or http.certificate_roles) and not http.tls_certfile:
        raise WrongUse("http.tls_client_ca and http.certificate_roles need http.tls_certfile")
    for name in ("tls_certfile", "tls_keyfile", "tls_client_ca"):
        if file := getattr(http, name):
            paths.check_regular(file, f"http.{name}")
    return Tls(http.tls_certfile, http.tls_keyfile, http.tls_client_ca or None) if http.tls_certfile else None


def grpc_tls_of(settings: config.Settings) -> tuple[str, str] | None:
    """Files of the gRPC service's certificate and key; None without TLS. Raises WrongUse where keys would travel in clear."""
    g = settings.gateway
    if bool(g.grpc_certfile) != bool(g.grpc_keyfile):
        raise WrongUse("gateway.grpc_certfile and gateway.grpc_keyfile go together")
    if g.grpc_bind and not is_loopback(g.grpc_bind) and not g.grpc_certfile and not g.grpc_plaintext:
        raise WrongUse(
            f"gateway.grpc_bind {g.grpc_bind} is not loopback and there is no TLS: set gateway.grpc_certfile and "
            "gateway.grpc_keyfile, or gateway.grpc_plaintext = true if gateways' keys may cross the network in clear text"
        )
    return (g.grpc_certfile, g.grpc_keyfile) if g.grpc_certfile else None


def build_front(settings: config.Settings, stack: contextlib.ExitStack, metrics: Metrics) -> Front:
    """Build the whole application and start its threads."""
    store = stack.enter_context(open_store(settings))
    secrets = secrets_of(settings, store)
    baselines = load_baselines(settings.baselines) if settings.baselines else {}
    reader = Reader(store, secrets, settings.tenant, baselines=baselines, modes=modes_of(settings))
    operations = operations_of(settings, store, secrets)
    keys = KeyRing(secrets, file=memory_of(settings, secrets))
    sessions = Sessions(secrets.derived("dashboard"))
    tokens = tokens_of(settings)
    auth = authenticator(settings, keys, tokens)
    view = Restrictions(settings.mode, dict(settings.modes))
    gateway = gateway_of(settings, view, secrets, auth, metrics)
    feed = feed_of(settings, view, reader)
    alarms = Alarms(metrics)
    heartbeat = start_heartbeat(stack, store, "serve", lambda: (None, alarms, ()), lambda: keys.fingerprint)
    credentials = CredentialRefresher(
        store,
        secrets,
        keys,
        tokens,
        settings.http.oidc_jwks,
        mirror_of(settings),
        follow=lambda store: sessions.refresh(store, time.time()),
        alarms=alarms,
        changed=heartbeat.nudge,
    )
    credentials.start()
    stack.callback(credentials.stop)
    _start_enforcement(settings, stack, store, view, gateway, metrics)
    dashboard = pages.Dashboard(
        reader=reader,
        auth=auth,
        sessions=sessions,
        baselines=baselines,
        budget=settings.false_alarm_budget,
        pulse=_pulse_of(view),
    )
    api = Api(reader, operations, keys, feed, bridge_of(settings, stack, baselines))
    app = build(api, [*pages.routes(dashboard), *actions.routes(dashboard, operations)])

    def ready() -> str | None:
        if not keys.loaded:
            return "API keys were not read yet"
        return None if view.synced else "restrictions were not read yet"

    http = settings.http
    return Front(
        app,
        auth,
        metrics,
        ready,
        gateway,
        Gateway.matches,
        http.metrics,
        known=Buckets(http.rate_per_s, http.burst),
        holder=dashboard.holder,
        ends=(feed.end,),
    )


def memory_of(settings: config.Settings, secrets: Secrets) -> MemoryFile:
    """Where the keys of this store are remembered: another store has other keys."""
    parts = urlsplit(settings.store_url)
    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    digest = hashlib.blake2b(f"{secrets.key_id} {where}".encode(), digest_size=6).hexdigest()
    return MemoryFile(settings.state_path / f"keys-{digest}.json", secrets)


def tokens_of(settings: config.Settings) -> Tokens | None:
    """What checks the identity provider's tokens; None without a provider. Raises WrongUse."""
    http = settings.http
    if not http.oidc_issuer:
        return None
    if not http.oidc_jwks:
        raise WrongUse("http.oidc_issuer needs http.oidc_jwks, the public keys of the issuer")
    return Tokens(
        TokenRules(
            issuer=http.oidc_issuer,
            audience=http.oidc_audience,
            role_claim=http.oidc_role_claim,
            roles=dict(http.oidc_roles),
            tenant_claim=http.oidc_tenant_claim,
            tenant=settings.tenant,
            longest_s=http.oidc_longest_s,
            algorithms=http.oidc_algorithms,
        )
    )


def authenticator(settings: config.Settings, keys: KeyRing, tokens: Tokens | None) -> Authenticator:
    """What tells who a caller is: keys, tokens, client certificates."""
    http = settings.http
    certificates = Certificates(dict(http.certificate_roles), settings.tenant) if http.certificate_roles else None
    return Authenticator(keys, tokens, certificates, settings.tenant, http.open_on_loopback and is_loopback(http.bind))


def gateway_of(
    settings: config.Settings, view: Restrictions, secrets: Secrets, auth: Authenticator, metrics: Metrics
) -> Gateway:
    """What answers gateways, from the restrictions in memory."""
    g = settings.gateway
    identities = Identities(g.identity_headers, secrets, Path(g.client_map) if g.client_map else None)
    rules = Rules(
        g.model_header,
        g.default_model,
        g.routes,
        {str(state): words for state, words in g.degrade.items()},
        g.throttle_per_s,
    )
    return Gateway(view, identities, auth.gateway, metrics, rules)


def feed_of(settings: config.Settings, view: Restrictions, reader: Reader) -> DecisionFeed:
    """The feed of restrictions, which names clients by their ids."""

    @functools.lru_cache(maxsize=65_536)
    def remembered(key: ClientKey) -> str:
        name = reader.of(key.tenant).named(key.model, key.client)
        if name is None:
            raise KeyError  # not remembered: it may be known later
        return name

    def name_of(key: ClientKey) -> str | None:
        try:
            return remembered(key)
        except KeyError:
            return None

    return DecisionFeed(view, name_of, settings.gateway.event_followers)


def bridge_of(
    settings: config.Settings, stack: contextlib.ExitStack, baselines: Mapping[str, Baseline]
) -> Bridge | None:
    """What takes queries over HTTP and appends them to the log; None where `http.bridge` is off."""
    if not settings.http.bridge:
        return None
    write = open_writer(settings, stack)
    readers = {model: InputReader(baseline.map.schema) for model, baseline in baselines.items()}
    # Without a baseline at hand only the form is checked here; ingest checks the rest.
    admit = not readers or settings.unknown_models == "ignore"
    return Bridge(NativeFormat(readers, admit), write, settings.tenant)


def _start_enforcement(
    settings: config.Settings,
    stack: contextlib.ExitStack,
    store: Store,
    view: Restrictions,
    gateway: Gateway,
    metrics: Metrics,
) -> None:
    """Start what keeps the restrictions, the gRPC service and the responders, as far as the settings ask for them."""
    g = settings.gateway
    refresher = Refresher(
        store,
        view,
        metrics,
        refresh_s=g.refresh_s,
        full_sync_s=g.full_sync_s,
        storm=GatewayBreaker(store, view, settings.tenant, settings.breaker.most),
        each_turn=(gateway.flush,),
    )
    refresher.start()
    stack.callback(refresher.stop)
    if g.grpc_bind:
        from consumers.http.ext_authz import serve_ext_authz

        answering, port = serve_ext_authz(g.grpc_bind, gateway, tls=grpc_tls_of(settings))
        stack.callback(lambda: answering.stop(5).wait())
        log.info("ext_authz", extra={"port": port})
    every_s, verify_s = settings.responders.every_s, settings.responders.verify_s
    for target in _targets(settings):
        responder = Responder(target, view, settings.tenant, metrics, every_s=every_s, verify_s=verify_s)
        responder.start()
        stack.callback(responder.stop)


def _targets(settings: config.Settings) -> Iterator[Target]:
    r = settings.responders
    if r.haproxy_socket:
        from consumers.responders.haproxy import HaproxyMap

        yield HaproxyMap(r.haproxy_socket, r.haproxy_map)
    if r.crowdsec_url:
        from consumers.responders.crowdsec import CrowdsecApi

        yield CrowdsecApi(
            r.crowdsec_url,
            r.crowdsec_machine,
            r.crowdsec_password.get_secret_value(),
            r.crowdsec_bouncer_key.get_secret_value(),
        )


def _pulse_of(view: Restrictions) -> Callable[[], Pulse]:
    def pulse() -> Pulse:
        stale = time.time() - view.stale_since_s if view.stale_since_s else 0.0
        return Pulse(stale_s=stale if view.synced else None, breaker="open" if view.held else "")

    return pulse
