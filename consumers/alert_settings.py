"""The settings of alerts: one section per sink, and of what is asked about evidence. `config` has the whole tree and its rules.

Rules: a sink is on when its address is filled in; a new sink is one section here and one row in `wiring/sinks.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SinkSettings(Part):
    """Settings that every sink has; a sink is on when its address is set."""

    min_severity: Literal["medium", "high", "critical"] = Field(
        "medium",
        description="send only findings of this severity or above: uncalibrated is medium, throttle is high, block is critical",
    )
    kinds: Literal["all", "client", "campaign"] = Field("all", description="send only findings of this kind")
    per_day: int = Field(0, ge=0, description="alerts per day (UTC); further alerts go into a digest; 0: no limit")
    digest_minutes: float = Field(60.0, gt=0, description="a digest is sent after this many minutes")


class WebhookSettings(SinkSettings):
    url: SecretStr = Field(
        SecretStr(""), description="https address; each alert is signed and posted to it; empty: off"
    )
    keys: SecretStr = Field(
        SecretStr(""),
        description="signing key, whsec_<base64 of 24 to 64 bytes>; during a rotation two keys, separated by a space",
    )
    format: Literal["native", "ocsf"] = Field("native", description="format of the alert in `data` of the body")
    allow: str = Field(
        "",
        description="private networks and hosts that the sink may connect to, also by plain http; separated by spaces; empty: none",
    )


class AlertmanagerSettings(SinkSettings):
    url: SecretStr = Field(
        SecretStr(""), description="address of Alertmanager, without the path of its API; empty: off"
    )
    token: SecretStr = Field(SecretStr(""), description="bearer token; empty: none")
    firing_hours: float = Field(
        24.0, gt=0, description="an alert fires for this long after the last change of its finding"
    )
    resend_s: float = Field(60.0, gt=0, description="time between two sends of the open findings")


class PagerDutySettings(SinkSettings):
    routing_key: SecretStr = Field(
        SecretStr(""), description="integration key of the PagerDuty service (Events API v2); empty: off"
    )
    url: str = Field(
        "https://events.pagerduty.com/v2/enqueue",
        description="address of the Events API; the EU region has another one",
    )
    allow: str = Field("", description="same as alerts.webhook.allow")
    per_day: int = Field(50, ge=0, description="incidents per day (UTC); further alerts go into a digest; 0: no limit")


class NotifySettings(SinkSettings):
    urls: SecretStr = Field(
        SecretStr(""),
        description="Apprise URLs for Slack, Teams, e-mail and others, separated by spaces; needs the extra [notify]; empty: off",
    )
    per_day: int = Field(100, ge=0, description="messages per day (UTC); further alerts go into a digest; 0: no limit")


class SplunkSettings(SinkSettings):
    url: SecretStr = Field(SecretStr(""), description="address of the HTTP Event Collector, without a path; empty: off")
    token: SecretStr = Field(SecretStr(""), description="token of the HTTP Event Collector")
    index: str = Field("", description="index that events go to; empty: the default index of the token")
    format: Literal["native", "ocsf"] = Field("native", description="format of the event")


class SyslogSettings(SinkSettings):
    url: str = Field(
        "", description="udp://, tcp:// or tls://host:port; messages are RFC 5424 with a CEF text; empty: off"
    )
    ca_file: str = Field(
        "", description="authorities of the receiver's certificate (PEM), for tls://; empty: the system's"
    )
    certfile: str = Field(
        "", description="own certificate (PEM) for a receiver that asks for one (mutual TLS); empty: none"
    )
    keyfile: str = Field("", description="file with the key of that certificate")


class EcsSettings(SinkSettings):
    url: SecretStr = Field(SecretStr(""), description="address of an Elasticsearch index or data stream; empty: off")
    api_key: SecretStr = Field(SecretStr(""), description="API key in Elasticsearch's encoded form; empty: none")
    file: str = Field("", description="append ECS documents to this JSON lines file instead of sending them")


class AlertSettings(Part):
    kafka_format: Literal["native", "ocsf"] = Field(
        "native", description="format of the alerts on Kafka; ocsf: OCSF Detection Finding 1.8.0 as a CloudEvent"
    )
    kafka: bool = Field(True, description="send alerts to kafka.alerts_topic when the log is on Kafka")
    file: str = Field("", description="append alerts to this JSON lines file as well; empty: off")
    dashboard_url: str = Field("", description="address of the dashboard; alerts for people link to it")
    webhook: WebhookSettings = WebhookSettings()
    alertmanager: AlertmanagerSettings = AlertmanagerSettings()
    pagerduty: PagerDutySettings = PagerDutySettings()
    notify: NotifySettings = NotifySettings()
    splunk: SplunkSettings = SplunkSettings()
    syslog: SyslogSettings = SyslogSettings()
    ecs: EcsSettings = EcsSettings()


class EvidenceSettings(Part):
    timestamp_url: str = Field(
        "", description="time stamp service (RFC 3161) that is asked for each evidence bundle; empty: none is asked"
    )
    timestamp_allow: str = Field("", description="same as alerts.webhook.allow")
