"""Build the HTTP service from the settings, and start its parts.

Rules:
* Nothing is decided here. If a part fails to start, the service does not start, and says so in one line.
* `stack` ends what was begun, in reverse order.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from consumers import config
from consumers.baselines import load_baselines
from consumers.enforcement.breaker import GatewayBreaker
from consumers.enforcement.refresher import Refresher
from consumers.enforcement.restrictions import Restrictions
from consumers.http import server
from consumers.http.api.application import build
from consumers.http.api.context import Api
from consumers.http.auth import Authenticator, KeyRing
from consumers.http.dashboard import actions, handlers
from consumers.http.dashboard.health_page import Pulse
from consumers.http.dashboard.session import Sessions
from consumers.http.gateway import Gateway, Rules
from consumers.http.identities import Identities
from consumers.http.middleware.stack import MiddlewareStack
from consumers.http.producer import LogProducer
from consumers.http.restriction_feed import DecisionFeed
from consumers.http.server import CredentialRefresher
from consumers.http.token_buckets import TokenBuckets
from consumers.log.formats import InputReader, NativeFormat
from consumers.readers.queries import Reader
from consumers.records.baselines_in_force import BaselinesInForce
from consumers.responders import Responder, Target
from consumers.secrets import Secrets
from consumers.store import Store
from consumers.telemetry.alarms import Alarms
from consumers.telemetry.metrics import Metrics
from consumers.wiring.adapters import open_store, open_writer, secrets_of
from consumers.wiring.credentials import authenticator, grpc_tls_of, memory_of, tls_of, tokens_of
from consumers.wiring.heartbeats import start_heartbeat
from consumers.wiring.operators import mirror_of, modes_of, operations_of
from consumers.wiring.watermark import start_canary_audit
from detector.baseline import Baseline
from detector.query import ClientKey

log = logging.getLogger("querywarden.serve")


def run_http(
    settings: config.Settings, stack: contextlib.ExitStack, stop: Callable[[], bool], metrics: Metrics
) -> None:
    """Start everything, answer until `stop`, drain."""
    tls = tls_of(settings)
    grpc_tls_of(settings)
    listener = server.listen(settings.http.bind)
    stack.callback(listener.close)
    application = build_application(settings, stack, metrics)
    log.info("serve started", extra={"bind": bound(listener), "open": application.auth.is_open()})
    server.run(application, listener, stop, tls)
    log.info("serve stopped")


def bound(listener: socket.socket) -> str:
    """Host and port that a socket listens on."""
    host, port = listener.getsockname()[:2]
    return f"{host}:{port}"


def build_application(settings: config.Settings, stack: contextlib.ExitStack, metrics: Metrics) -> MiddlewareStack:
    """Build the whole application and start its threads."""
    store = stack.enter_context(open_store(settings))
    secrets = secrets_of(settings, store)
    configured = load_baselines(settings.baselines) if settings.baselines else {}
    in_force = BaselinesInForce(configured, dict(configured), secrets, settings.tenant)
    baselines = in_force.live
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
    _start_enforcement(settings, stack, store, view, gateway, metrics, lambda: in_force.follow_for_reading(store))
    start_canary_audit(settings, stack, operations)
    api = Api(reader, operations, keys, feed, producer_of(settings, stack, baselines))
    dashboard = handlers.Dashboard(
        reader=reader,
        auth=auth,
        sessions=sessions,
        baselines=baselines,
        budget=settings.false_alarm_budget,
        pulse=_pulse_of(view),
        views=api.views,
    )
    app = build(api, [*handlers.routes(dashboard), *actions.routes(dashboard, operations)])

    def ready() -> str | None:
        if not keys.loaded:
            return "API keys were not read yet"
        return None if view.synced else "restrictions were not read yet"

    http = settings.http
    return MiddlewareStack(
        app,
        auth,
        metrics,
        ready,
        gateway,
        Gateway.matches,
        http.metrics,
        known=TokenBuckets(http.rate_per_s, http.burst),
        holder=dashboard.holder,
        ends=(feed.end,),
    )


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


def producer_of(
    settings: config.Settings, stack: contextlib.ExitStack, baselines: Mapping[str, Baseline]
) -> LogProducer | None:
    """What takes queries over HTTP and appends them to the log; None where `http.bridge` is off."""
    if not settings.http.bridge:
        return None
    write = open_writer(settings, stack)
    readers = {model: InputReader(baseline.map.schema) for model, baseline in baselines.items()}
    # Without a baseline at hand only the form is checked here; ingest checks the rest.
    admit = not readers or settings.unknown_models == "ignore"
    return LogProducer(NativeFormat(readers, admit), write, settings.tenant)


def _start_enforcement(
    settings: config.Settings,
    stack: contextlib.ExitStack,
    store: Store,
    view: Restrictions,
    gateway: Gateway,
    metrics: Metrics,
    each_turn: Callable[[], None],
) -> None:
    """Start what keeps the restrictions, the gRPC service and the responders, as far as the settings ask for them."""
    g = settings.gateway
    refresher = Refresher(
        store,
        view,
        metrics,
        refresh_s=g.refresh_s,
        full_sync_s=g.full_sync_s,
        breaker=GatewayBreaker(store, view, settings.breaker.most),
        each_turn=(gateway.flush, each_turn),
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


def _pulse_of(view: Restrictions) -> Callable[[str], Pulse]:
    def pulse(tenant: str) -> Pulse:
        stale = time.time() - view.stale_since_s if view.stale_since_s else 0.0
        return Pulse(stale_s=stale if view.synced else None, breaker="open" if view.held_of(tenant) else "")

    return pulse
