"""Build the alert sinks from the settings: the table of the sinks that exist.

Rules:
* A new sink is one file in `consumers/alerts`, one section of settings and one row here.
* An adapter is imported when its section is filled in.
* Every sink except the plain log of alerts (file, Kafka) stands behind its filter and its daily limit.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from consumers import alert_settings, config, paths
from consumers.alerts.capped import CappedSink
from consumers.alerts.outbound import AllowedHosts
from consumers.errors import ConfigError, CorruptState, Refused, WrongUse
from consumers.records.alert import stored_alert
from consumers.store import OutboxAlert
from consumers.wiring import adapters

if TYPE_CHECKING:
    from consumers.alerts import AlertSink
    from consumers.telemetry.metrics import Metrics

Stored = Callable[[], Iterable[OutboxAlert]]
INSIDE = "0.0.0.0/0 ::/0"
"""Allowlist of receivers that an operator names and that live inside: any address, still pinned, still without redirects."""


class SinkKind(NamedTuple):
    """section: of the settings under ``alerts``; filled: whether it names a receiver; make: the adapter."""

    section: str
    filled: Callable[[alert_settings.AlertSettings], bool]
    make: Callable[[alert_settings.AlertSettings, Stored], AlertSink]


def _webhook(a: alert_settings.AlertSettings, stored: Stored) -> AlertSink:
    from consumers.alerts.webhook import WebhookSink

    s = a.webhook
    allow = AllowedHosts.of(s.allow)
    return WebhookSink(s.url.get_secret_value(), s.keys.get_secret_value(), allow=allow, form=s.format)


def _alertmanager(a: alert_settings.AlertSettings, stored: Stored) -> AlertSink:
    from consumers.alerts.alertmanager import AlertmanagerSink

    s = a.alertmanager
    return AlertmanagerSink(
        s.url.get_secret_value(),
        allow=AllowedHosts.of(INSIDE),
        firing_s=s.firing_hours * 3600,
        dashboard_url=a.dashboard_url,
        headers=_bearer(s.token.get_secret_value()),
        stored=stored,
    )


def _pagerduty(a: alert_settings.AlertSettings, stored: Stored) -> AlertSink:
    from consumers.alerts.pagerduty import PagerDutySink

    s = a.pagerduty
    return PagerDutySink(
        s.routing_key.get_secret_value(), url=s.url, allow=AllowedHosts.of(s.allow), dashboard_url=a.dashboard_url
    )


def _notify(a: alert_settings.AlertSettings, stored: Stored) -> AlertSink:
    from consumers.alerts.notify import NotifySink

    return NotifySink(a.notify.urls.get_secret_value(), dashboard_url=a.dashboard_url)


def _splunk(a: alert_settings.AlertSettings, stored: Stored) -> AlertSink:
    from consumers.alerts.splunk import SplunkSink

    s = a.splunk
    return SplunkSink(
        s.url.get_secret_value(),
        s.token.get_secret_value(),
        index=s.index,
        form=s.format,
        allow=AllowedHosts.of(INSIDE),
    )


def _syslog(a: alert_settings.AlertSettings, stored: Stored) -> AlertSink:
    from consumers.alerts.syslog import SyslogSink

    return SyslogSink(a.syslog.url, context=_syslog_tls(a.syslog))


def _syslog_tls(s: alert_settings.SyslogSettings) -> ssl.SSLContext | None:
    """TLS with the files of the settings; None without any. Raises WrongUse, ConfigError."""
    if not (s.ca_file or s.certfile or s.keyfile):
        return None
    if not s.url.startswith("tls://"):
        raise WrongUse("alerts.syslog: ca_file, certfile and keyfile need a tls:// address")
    if bool(s.certfile) != bool(s.keyfile):
        raise WrongUse("alerts.syslog.certfile and alerts.syslog.keyfile go together")
    for name in ("ca_file", "certfile", "keyfile"):
        if file := getattr(s, name):
            paths.check_regular(file, f"alerts.syslog.{name}")
    try:
        context = ssl.create_default_context(cafile=s.ca_file or None)
        if s.certfile:
            context.load_cert_chain(s.certfile, s.keyfile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"alerts.syslog: the certificate files cannot be used: {error}") from error
    return context


def _ecs(a: alert_settings.AlertSettings, stored: Stored) -> AlertSink:
    from consumers.alerts.ecs import EcsFileSink, EcsSink

    s = a.ecs
    if s.file:
        return EcsFileSink(s.file)
    return EcsSink(s.url.get_secret_value(), api_key=s.api_key.get_secret_value(), allow=AllowedHosts.of(INSIDE))


SINKS: tuple[SinkKind, ...] = (
    SinkKind("webhook", lambda a: bool(a.webhook.url.get_secret_value()), _webhook),
    SinkKind("alertmanager", lambda a: bool(a.alertmanager.url.get_secret_value()), _alertmanager),
    SinkKind("pagerduty", lambda a: bool(a.pagerduty.routing_key.get_secret_value()), _pagerduty),
    SinkKind("notify", lambda a: bool(a.notify.urls.get_secret_value()), _notify),
    SinkKind("splunk", lambda a: bool(a.splunk.url.get_secret_value()), _splunk),
    SinkKind("syslog", lambda a: bool(a.syslog.url), _syslog),
    SinkKind("ecs", lambda a: bool(a.ecs.url.get_secret_value() or a.ecs.file), _ecs),
)


def open_sinks(settings: config.Settings, metrics: Metrics | None = None) -> list[AlertSink]:
    """All sinks of the settings: those of the table, and the plain logs of alerts, a topic and a file."""
    sinks = configured(settings.alerts, metrics, lambda: stored_alerts(settings))
    if adapters.on_kafka(settings) and settings.alerts.kafka:
        from consumers.alerts.kafka import KafkaSink
        from consumers.log.topics import ensure_topics

        brokers = adapters.kafka_connection(settings)
        ensure_topics(brokers, [settings.kafka.alerts_topic])
        sinks.append(KafkaSink(brokers, settings.kafka.alerts_topic, form=settings.alerts.kafka_format))
    if settings.alerts.file:
        from consumers.alerts.jsonl import JsonLinesSink

        sinks.append(JsonLinesSink(settings.alerts.file))
    return sinks


def stored_alerts(settings: config.Settings) -> list[OutboxAlert]:
    """Alerts stored in the last 30 days as their receivers see them, oldest first; what can't be read is left out."""
    alerts = []
    with adapters.open_store(settings) as store:
        secrets = adapters.secrets_of(settings, store)
        for alert in store.alerts():
            with contextlib.suppress(CorruptState):
                body = msgspec.json.encode(stored_alert(alert, secrets))
                alerts.append(OutboxAlert(alert.uid, alert.time_ms, body))
    return alerts


def configured(alerts: alert_settings.AlertSettings, metrics: Metrics | None, stored: Stored) -> list[AlertSink]:
    """The sinks whose sections are filled in, each behind its filter and cap. Raises ConfigError in one line."""
    sinks: list[AlertSink] = []
    for row in SINKS:
        if not row.filled(alerts):
            continue
        section: alert_settings.SinkSettings = getattr(alerts, row.section)
        try:
            sink = row.make(alerts, stored)
        except Refused as error:
            raise ConfigError(f"alerts.{row.section}: {error}") from error
        sinks.append(
            CappedSink(
                sink,
                min_severity=section.min_severity,
                kinds=("client", "campaign") if section.kinds == "all" else (section.kinds,),
                per_day=section.per_day,
                digest_s=section.digest_minutes * 60,
                on_capped=_counter(metrics, row.section),
            )
        )
    return sinks


def _counter(metrics: Metrics | None, section: str) -> Callable[[], None]:
    if metrics is None:
        return lambda: None
    return lambda: metrics.add("querywarden_alerts_capped_total", sink=section)


def _bearer(token: str) -> dict[str, str]:
    if not token.isascii() or not (token or "-").isprintable():
        raise ConfigError("token: it must be printable text")
    return {"Authorization": f"Bearer {token}"} if token else {}
