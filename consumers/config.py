"""Settings: one frozen tree, from a TOML file and the environment.

Rules: the environment (``QUERYWARDEN_…``, ``__`` between levels) wins over the file; unknown keys are refused; units are in the
names; secrets are shown masked, and of any address whatever may be one (user, password, query). Detection thresholds are no settings:
they belong to the baseline. docs/settings.md is generated from this file.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from consumers import paths
from consumers.errors import Refused, WrongUse

PREFIX = "QUERYWARDEN_"


def user_state_dir() -> Path:
    """The platform's folder for a user's state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "querywarden"


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreSettings(Part):
    url: SecretStr = Field(
        SecretStr(""), description="sqlite:///path, redis://, rediss:// or redis+cluster://; empty: SQLite in state_dir"
    )
    min_replicas: int = Field(0, ge=0, description="replicas that must hold an operator's write (WAIT); 0: none")
    timeout_s: float = Field(2.0, gt=0, description="how long one call to the store may take")


class KafkaSettings(Part):
    bootstrap_servers: str = Field("127.0.0.1:9092", description="brokers, separated by commas")
    topic: str = Field("prediction-queries", description="the query log; must exist")
    wait_for_topic: bool = Field(
        False, description="wait for a query topic that does not exist yet, instead of refusing it"
    )
    dead_letter_topic: str = Field("prediction-queries.dead-letter", description="refused records; created if missing")
    alerts_topic: str = Field("extraction-alerts", description="alerts; created if missing")
    group_id: str = Field("querywarden", description="consumer group of the ingest processes")
    group_instance_id: str | None = Field(None, description="static membership: a stable name of this process")
    start: str = Field(
        "earliest",
        description="where a partition begins that the store does not know: earliest, latest or an RFC 3339 time",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] | None = Field(
        None, description="must be stated for brokers that are not on loopback"
    )
    sasl_mechanism: str = Field("SCRAM-SHA-512", description="for SASL protocols")
    sasl_username: str | None = Field(None, description="for SASL protocols")
    sasl_password: SecretStr | None = Field(None, description="for SASL protocols")
    ssl_cafile: str | None = Field(None, description="certificate authority of the brokers")
    ssl_certfile: str | None = Field(None, description="client certificate")
    ssl_keyfile: str | None = Field(None, description="key of the client certificate")
    max_poll_records: int = Field(2000, ge=1, le=100_000, description="records in one poll, and so in one commit")
    session_timeout_ms: int = Field(10_000, ge=1000, description="a member silent for so long is out of the group")
    heartbeat_interval_ms: int = Field(3_000, ge=100, description="how often a member says that it lives")
    max_poll_interval_ms: int = Field(60_000, ge=1000, description="longest time between two polls of a live member")


class LogSettings(Part):
    url: str = Field("kafka:", description="kafka: or file:///path.jsonl (followed as it grows)")


class MetricsSettings(Part):
    bind: str = Field(
        "", description="host:port for /metrics, /healthz and /readyz; empty: off; port 0 picks one and logs it"
    )


class SecretsSettings(Part):
    file: str = Field(
        "",
        description="sampling key, pepper and sealing key, shared by all processes; empty: secrets.json in state_dir",
    )


class SinkSettings(Part):
    """What every sink can be told; a sink is on when its address is filled in."""

    min_severity: Literal["medium", "high", "critical"] = Field(
        "medium", description="only findings at least so severe: uncalibrated medium, throttle high, block critical"
    )
    kinds: Literal["all", "client", "campaign"] = Field("all", description="only findings of this kind")
    per_day: int = Field(0, ge=0, description="alerts a day (UTC); what is over goes into a digest; 0: no limit")
    digest_minutes: float = Field(60.0, gt=0, description="how long alerts over the limit are gathered")


class WebhookSettings(SinkSettings):
    url: SecretStr = Field(SecretStr(""), description="https address that alerts are posted to, signed; empty: off")
    keys: SecretStr = Field(
        SecretStr(""), description="whsec_<base64 of 24 to 64 bytes>; two, separated by a space, while they are rotated"
    )
    format: Literal["native", "ocsf"] = Field("native", description="shape of the alert in the body's `data`")
    allow: str = Field(
        "", description="networks and hosts inside that may be reached, and by http; separated by spaces; empty: none"
    )


class AlertmanagerSettings(SinkSettings):
    url: SecretStr = Field(SecretStr(""), description="address of the Alertmanager, without the API's path; empty: off")
    token: SecretStr = Field(SecretStr(""), description="bearer token; empty: none")
    firing_hours: float = Field(24.0, gt=0, description="how long after its last news a finding fires")
    resend_s: float = Field(60.0, gt=0, description="how often open findings are sent again")


class PagerDutySettings(SinkSettings):
    routing_key: SecretStr = Field(
        SecretStr(""), description="integration key of the service, Events API v2; empty: off"
    )
    url: str = Field("https://events.pagerduty.com/v2/enqueue", description="the Events API; another for the EU region")
    allow: str = Field("", description="as alerts.webhook.allow")
    per_day: int = Field(50, ge=0, description="incidents a day (UTC); what is over goes into a digest; 0: no limit")


class NotifySettings(SinkSettings):
    urls: SecretStr = Field(
        SecretStr(""),
        description="Slack, Teams, e-mail, …: Apprise URLs, separated by spaces; extra [notify]; empty: off",
    )
    per_day: int = Field(100, ge=0, description="messages a day (UTC); what is over goes into a digest; 0: no limit")


class SplunkSettings(SinkSettings):
    url: SecretStr = Field(SecretStr(""), description="HTTP Event Collector, without a path; empty: off")
    token: SecretStr = Field(SecretStr(""), description="token of the collector")
    index: str = Field("", description="index; empty: the token's default")
    format: Literal["native", "ocsf"] = Field("native", description="shape of the event")


class SyslogSettings(SinkSettings):
    url: str = Field("", description="udp://, tcp:// or tls://host:port; RFC 5424 with a CEF text; empty: off")


class EcsSettings(SinkSettings):
    url: SecretStr = Field(SecretStr(""), description="index or data stream of Elasticsearch; empty: off")
    api_key: SecretStr = Field(SecretStr(""), description="API key, as Elasticsearch encodes it; empty: none")
    file: str = Field("", description="instead: append ECS documents to this JSON lines file")


class AlertSettings(Part):
    kafka_format: Literal["native", "ocsf"] = Field(
        "native", description="shape of the alerts on Kafka; ocsf: Detection Finding 1.8.0 as a CloudEvent"
    )
    kafka: bool = Field(True, description="send alerts to kafka.alerts_topic when the log is on Kafka")
    file: str = Field("", description="also append alerts to this JSON lines file; empty: don't")
    dashboard_url: str = Field("", description="where people find the dashboard; goes with what is sent to them")
    webhook: WebhookSettings = WebhookSettings()
    alertmanager: AlertmanagerSettings = AlertmanagerSettings()
    pagerduty: PagerDutySettings = PagerDutySettings()
    notify: NotifySettings = NotifySettings()
    splunk: SplunkSettings = SplunkSettings()
    syslog: SyslogSettings = SyslogSettings()
    ecs: EcsSettings = EcsSettings()


Role = Literal["gateway", "viewer", "analyst", "operator", "admin", "ingest"]


class AdmissionSettings(Part):
    new_clients_an_hour: int = Field(
        5_000, ge=1, description="new clients that get state at once, in one log cell and hour of event time"
    )
    clients: int = Field(100_000, ge=1, description="new clients that get state within a horizon, in one log cell")


class BreakerSettings(Part):
    most: int = Field(
        20, ge=1, description="newly restricted clients within 10 minutes that open the breaker if exceeded"
    )
    share: float = Field(0.01, gt=0, le=1, description="the same as a share of the active clients")
    least: int = Field(5, ge=1, description="the share alone never opens the breaker for up to this many clients")


class HttpSettings(Part):
    bind: str = Field("127.0.0.1:8080", description="host:port of the HTTP service; port 0 picks one and logs it")
    open_on_loopback: bool = Field(
        True,
        description="until a key, token or certificate is configured, everybody on this machine may look at a service bound to loopback",
    )
    metrics: bool = Field(True, description="answer /metrics here too")
    bridge: bool = Field(True, description="take queries at POST /v1/queries and write them to the log")
    rate_per_s: float = Field(50.0, ge=0, description="requests a second of one credential; 0: no limit")
    burst: int = Field(200, ge=1, description="requests of one credential at once")
    longest_decision_s: int = Field(
        30 * 86_400, ge=60, description="how long an operator's decision may last, in seconds"
    )
    key_env: str = Field("live", pattern=r"^[a-z0-9]{1,16}$", description="second part of API keys: qw_<env>_…")
    tls_certfile: str = Field("", description="certificate of the service (PEM, with its chain); empty: plain HTTP")
    tls_keyfile: str = Field("", description="key of the certificate")
    tls_client_ca: str = Field("", description="who signs client certificates; empty: none are asked for")
    certificate_roles: dict[str, Role] = Field(
        {}, description="name in a client certificate, with its type, to role: DNS:gw.internal, URI:spiffe://…, email:…"
    )
    oidc_issuer: str = Field("", description="issuer of bearer tokens; empty: none are taken")
    oidc_audience: str = Field("querywarden", description="audience that a token must be for")
    oidc_jwks: str = Field("", description="the issuer's public keys: a file, or an https address")
    oidc_algorithms: tuple[str, ...] = Field(("RS256", "ES256", "EdDSA"), description="signatures that are taken")
    oidc_role_claim: str = Field("roles", description="dotted path of the claim that holds roles")
    oidc_roles: dict[str, Role] = Field({}, description="the issuer's role or group to ours")
    oidc_tenant_claim: str = Field("", description="dotted path of the claim that holds the tenant; empty: `tenant`")
    oidc_longest_s: int = Field(3600, ge=60, description="how long a token may be good for")


class GatewaySettings(Part):
    identity_headers: tuple[str, ...] = Field(
        ("x-api-key", "x-consumer-id", "authorization"),
        description="headers whose value is what the query log calls a client (authorization: a bearer token); all present ones count;"
        " the one to trust most comes first",
    )
    client_map: str = Field(
        "", description="JSON file: hash of a header's value (querywarden gateway hash) to client id; empty: none"
    )
    model_header: str = Field(
        "x-querywarden-model", description="names the model that is asked; the gateway must set it"
    )
    default_model: str = Field(
        "*", description="the model where the header is absent; *: the most severe over all models"
    )
    routes: dict[str, Literal["open", "closed"]] = Field(
        {"/": "open"},
        description="path prefix: whether clients that cannot be known pass (the longest prefix decides); advised: / closed,"
        " exceptions open",
    )
    degrade: dict[Literal["clear", "watch", "throttle"], str] = Field(
        {}, description='what X-QueryWarden-Degrade asks of the model server, by decision: {"watch": "round=2"}'
    )
    throttle_per_s: float = Field(0.0, ge=0, description="requests a second that a throttled client gets through")
    refresh_s: float = Field(0.25, gt=0, le=0.5, description="how often changes are read from the store")
    full_sync_s: float = Field(300.0, ge=1, description="how often everything is read from the store")
    event_followers: int = Field(
        64,
        ge=1,
        le=10_000,
        description="how many may follow /v1/decisions/events at once; half the places are kept for gateways",
    )
    grpc_bind: str = Field("", description="host:port of the gRPC ext_authz service (extra grpc); empty: off")
    grpc_certfile: str = Field("", description="certificate of the gRPC service (PEM, with its chain); empty: no TLS")
    grpc_keyfile: str = Field("", description="key of that certificate")
    grpc_plaintext: bool = Field(
        False, description="take gRPC without TLS beyond loopback too: gateways' keys cross the network in clear"
    )


class RespondersSettings(Part):
    every_s: float = Field(0.5, gt=0, le=1, description="how often what changed is pushed")
    verify_s: float = Field(60.0, ge=1, description="how often the targets are compared with what they should hold")
    haproxy_socket: str = Field(
        "", description="HAProxy's runtime socket (path or host:port); empty: nothing is pushed"
    )
    haproxy_map: str = Field("", description="the map as HAProxy's configuration names it")
    crowdsec_url: str = Field("", description="CrowdSec's local API; empty: nothing is pushed")
    crowdsec_machine: str = Field("querywarden", description="machine id of the watcher")
    crowdsec_password: SecretStr = Field(SecretStr(""), description="password of the watcher")
    crowdsec_bouncer_key: SecretStr = Field(SecretStr(""), description="key of a bouncer, to verify what was pushed")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=PREFIX, env_nested_delimiter="__")

    baselines: tuple[str, ...] = Field(
        (), description="baseline files or folders of *.baseline (environment: separated by colons)"
    )
    personas: str = Field(
        "", description="JSON file, client id to declared use: such a client is judged by the null of that persona"
    )
    tenant: str = Field(
        "default", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$", description="whose clients these are"
    )
    mode: Literal["observe", "alert", "throttle", "block"] = Field(
        "observe", description="the strongest decision that gateways enforce"
    )
    modes: dict[str, Literal["observe", "alert", "throttle", "block"]] = Field(
        {}, description='another mode for some models: {"fraud-v3": "block"}'
    )
    false_alarm_budget: float = Field(
        0.01, gt=0, lt=0.5, description="share of honest clients that may be flagged, over their whole life"
    )
    horizon_days: float = Field(
        30.0, ge=1, le=3650, description="a query counts in full for at least half of this, and at most for all of it"
    )
    memory_days: float = Field(
        365.0,
        ge=0,
        le=3650,
        description="beyond the horizon an odd query's weight halves each quarter of this, and a client is forgotten this long after "
        "its last query; 0: nothing counts beyond the horizon",
    )
    unknown_models: Literal["reject", "ignore"] = Field(
        "reject", description="events of a model without a baseline: dead letter, or only counted"
    )
    state_dir: str = Field(
        "", description="where state is kept that has no other place; empty: the platform's user state folder"
    )
    store: StoreSettings = StoreSettings()
    log: LogSettings = LogSettings()
    kafka: KafkaSettings = KafkaSettings()
    metrics: MetricsSettings = MetricsSettings()
    secrets: SecretsSettings = SecretsSettings()
    alerts: AlertSettings = AlertSettings()
    admission: AdmissionSettings = AdmissionSettings()
    breaker: BreakerSettings = BreakerSettings()
    http: HttpSettings = HttpSettings()
    gateway: GatewaySettings = GatewaySettings()
    responders: RespondersSettings = RespondersSettings()

    @field_validator("baselines", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(p for p in value.split(":") if p) if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return _Environment(settings_cls), init_settings

    @property
    def state_path(self) -> Path:
        return Path(self.state_dir) if self.state_dir else user_state_dir()

    @property
    def store_url(self) -> str:
        return self.store.url.get_secret_value() or f"sqlite:///{self.state_path / 'querywarden.sqlite'}"

    @property
    def secrets_path(self) -> Path:
        return Path(self.secrets.file) if self.secrets.file else self.state_path / "secrets.json"


class _Environment(EnvSettingsSource):
    """The environment; a list is separated by colons, as in PATH."""

    def prepare_field_value(self, field_name: str, field: Any, value: Any, value_is_complex: bool) -> Any:
        if field_name == "baselines" and isinstance(value, str):
            return value
        return super().prepare_field_value(field_name, field, value, value_is_complex)


def load(path: Path | None = None, **overrides: Any) -> Settings:
    """Settings of a TOML file and the environment; `overrides` (from the command line) win over both.

    Raises WrongUse in one line for an unknown key, a wrong value, or a variable of the environment that names no setting.
    """
    content: dict[str, Any] = {}
    if path is not None:
        try:
            content = tomllib.loads(paths.read_text(path))
        except Refused as error:
            raise WrongUse(str(error)) from error
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise WrongUse(f"{path}: {error}") from error
    _refuse_unknown_variables()
    try:
        settings = Settings(**content)
        changed = {k: _checked(k, v) for k, v in overrides.items() if v is not None}
        settings = settings.model_copy(update=changed) if changed else settings
        _check_texts(settings)
        return settings
    except ValidationError as error:
        raise _wrong(error) from error
    except Exception as error:  # pydantic-settings wraps what it can't parse in an error of its own
        if type(error).__name__ != "SettingsError":
            raise
        raise WrongUse(f"environment: {error}") from error


def _checked(name: str, value: Any) -> Any:
    """The value of one setting by the rules of its field."""
    field = Settings.model_fields[name]
    try:
        return TypeAdapter(Annotated[field.annotation, field]).validate_python(value)  # type: ignore[arg-type]
    except ValidationError as error:
        raise _wrong(error, name) from error


def shown(settings: Settings) -> dict[str, Any]:
    """The settings as `config show` prints them, without a secret."""
    found: dict[str, Any] = _masked(settings.model_dump(mode="json"))
    return found


def masked(text: str) -> str:
    """An address without user, password, query and fragment; other text as it is.

    >>> masked("https://user:pw@idp.example/jwks?token=x")
    'https://***@idp.example/jwks?***'
    """
    found = _ADDRESS.fullmatch(text)
    if not found:
        return _CREDENTIAL.sub("***@", text)
    *user, rest = found["rest"].rsplit("@", 1)  # a password may hold whatever it likes
    path = re.sub(r"([?#]).*", r"\1***", rest, flags=re.DOTALL)
    return f"{found['scheme']}{'***@' if user else ''}{path}"


_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*:/+)(?P<rest>.*)", re.DOTALL)
_CREDENTIAL = re.compile(r"[^\s,/]*:[^\s,/]*@")


def secrets_in(content: dict[str, Any], model: type[BaseModel] = Settings, above: str = "") -> list[str]:
    """TOML names of the secrets that the content of a settings file holds."""
    found = []
    for name, value in content.items():
        field = model.model_fields.get(name)
        kind = field.annotation if field else None
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            found += secrets_in(value, kind, f"{above}{name}.")
        elif value and (kind is SecretStr or SecretStr in get_args(kind) or _masked(value) != value):
            found.append(f"{above}{name}")
    return found


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value) if "/" in value or "@" in value else value
    if isinstance(value, dict):
        return {key: _masked(one) for key, one in value.items()}
    return [_masked(one) for one in value] if isinstance(value, list) else value


def _check_texts(settings: Settings) -> None:
    """Refuse an address that is none, before anybody trips over it. Raises WrongUse; the value is not repeated."""
    for name, text in _texts(settings):
        if "\0" in text:
            raise WrongUse(f"setting {name}: it holds a NUL character")
        if "://" not in text or name == "alerts.notify.urls":  # its own reader knows its many forms
            continue
        try:
            _ = urlsplit(text).port
        except ValueError as error:
            raise WrongUse(f"setting {name}: not an address (host or port is wrong)") from error


def _texts(part: BaseModel, above: str = "") -> Iterator[tuple[str, str]]:
    """Every text among the settings, secret or not, by its TOML name."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield from _texts(value, f"{above}{name}.")
        elif isinstance(value, SecretStr):
            yield f"{above}{name}", value.get_secret_value()
        elif isinstance(value, str):
            yield f"{above}{name}", value
        elif isinstance(value, (tuple, dict)):
            yield from ((f"{above}{name}", one) for one in value if isinstance(one, str))


def _wrong(error: ValidationError, *above: str) -> WrongUse:
    first = error.errors(include_input=False)[0]
    where = ".".join(str(p) for p in (*above, *first["loc"]))
    return WrongUse(f"setting {where}: {first['msg']}")


def rows(model: type[BaseModel] = Settings, above: str = "") -> list[tuple[str, str, str, str]]:
    """All settings: (TOML name, environment variable, default, description)."""
    found = []
    for name, field in model.model_fields.items():
        full = f"{above}{name}"
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Part):
            found += rows(kind, f"{full}.")
        else:
            default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
            shown = "" if default in ("", None, ()) else str(default)
            found.append((full, PREFIX + full.replace(".", "__").upper(), shown, field.description or ""))
    return found


def _refuse_unknown_variables() -> None:
    known = {variable for _, variable, _, _ in rows()}
    for variable in os.environ:
        ours = (
            variable.startswith(PREFIX) and not variable.startswith(f"{PREFIX}TEST_") and variable != f"{PREFIX}CACHE"
        )
        if ours and variable.upper() not in known:
            raise WrongUse(f"environment: {variable} names no setting (querywarden config schema lists them)")
