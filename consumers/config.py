"""Settings: one frozen tree, read from a TOML file and the environment. docs/settings.md is generated from this file.

Rules:
* The environment (``QUERYWARDEN_…``, ``__`` between levels) overrides the file. Unknown keys are refused. Names contain the unit.
* Secrets are shown masked, and so are the parts of an address that may hold one (user, password, query).
* Detection thresholds are not settings: they belong to the baseline.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, TypeAdapter, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from consumers import paths
from consumers.alert_settings import AlertSettings, EvidenceSettings, Part
from consumers.enforcement_settings import ExposureSettings, GatewaySettings, RespondersSettings
from consumers.errors import Refused, WrongUse
from consumers.log_settings import KafkaSettings, LinkSettings, LogSettings
from consumers.records.operator_entries import Role
from consumers.store import DECISION_CELLS, MOST_DECISION_CELLS

PREFIX = "QUERYWARDEN_"


def user_state_dir() -> Path:
    """The platform's folder for a user's state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "querywarden"


class StoreSettings(Part):
    url: SecretStr = Field(
        SecretStr(""), description="sqlite:///path, redis://, rediss:// or redis+cluster://; empty: SQLite in state_dir"
    )
    min_replicas: int = Field(
        0, ge=0, description="number of replicas that must confirm an operator's write (Redis WAIT); 0: none"
    )
    timeout_s: float = Field(2.0, gt=0, description="timeout of one call to the store, in seconds")
    decision_cells: int = Field(DECISION_CELLS, ge=1, le=MOST_DECISION_CELLS, description=(
        "parts in which detect processes share the decisions; a store refuses another number than it was made with (docs/upkeep.md)"
    ))  # fmt: skip
    sealing: Literal["off", "auto", "on"] = Field(
        "auto",
        description="encryption of stored profiles, decisions and alerts. auto: if the tenant has a key in the secrets file; "
        "on: required, and unsealed records are refused; off: new records are stored in clear",
    )


class MetricsSettings(Part):
    bind: str = Field(
        "", description="host:port for /metrics, /healthz and /readyz; port 0 picks a free port and logs it; empty: off"
    )


class SecretsSettings(Part):
    file: str = Field(
        "",
        description="file with the sampling key, the pepper and the sealing key; all processes share it; empty: secrets.json in state_dir",
    )


class AdmissionSettings(Part):
    new_clients_an_hour: int = Field(
        5_000,
        ge=1,
        description="new clients per log cell and hour of event time that get statistics of their own at once",
    )
    clients: int = Field(
        100_000, ge=1, description="new clients per log cell and horizon that get statistics of their own"
    )


class BreakerSettings(Part):
    most: int = Field(
        20,
        ge=1,
        description="a tenant's breaker opens when more of its clients than this are newly restricted within 10 minutes",
    )
    share: float = Field(
        0.01,
        gt=0,
        le=1,
        description="the breaker also opens when a larger share of the active clients than this is newly restricted within 10 minutes",
    )
    least: int = Field(
        5, ge=1, description="breaker.share is ignored while no more clients than this are newly restricted"
    )


class HttpSettings(Part):
    bind: str = Field(
        "127.0.0.1:8080", description="host:port of the HTTP service; port 0 picks a free port and logs it"
    )
    open_on_loopback: bool = Field(
        True,
        description="a service bound to loopback lets everybody on this machine read until a key, token or certificate is configured",
    )
    metrics: bool = Field(True, description="serve /metrics on the HTTP service too")
    bridge: bool = Field(True, description="accept queries at POST /v1/queries and write them to the log")
    rate_per_s: float = Field(50.0, ge=0, description="requests per second that one credential may send; 0: no limit")
    burst: int = Field(200, ge=1, description="requests that one credential may send in one burst")
    longest_decision_s: int = Field(
        30 * 86_400, ge=60, description="longest duration of an operator's decision, in seconds"
    )
    confirm_campaigns_above: int = Field(
        0,
        ge=0,
        description="a restriction of a campaign with more accounts than this waits until a second person confirms it; advised: 100;"
        " 0: no second person",
    )
    key_env: str = Field(
        "live",
        pattern=r"^[a-z0-9]{1,16}$",
        description="name of the environment, the second part of an API key: qw_<env>_…",
    )
    tls_certfile: str = Field(
        "", description="file with the certificate of the service (PEM, with its chain); empty: plain HTTP"
    )
    tls_keyfile: str = Field("", description="file with the key of the certificate")
    tls_client_ca: str = Field(
        "",
        description="file with the certificate authority that signs client certificates; empty: clients are not asked for one",
    )
    certificate_roles: dict[str, Role] = Field(
        {},
        description="role for each name in a client certificate; a name starts with its type: DNS:gw.internal, URI:spiffe://…, email:…",
    )
    oidc_issuer: str = Field("", description="issuer of bearer tokens; empty: tokens are not accepted")
    oidc_audience: str = Field("querywarden", description="audience that a token must name")
    oidc_jwks: str = Field("", description="public keys of the issuer: a file or an https address")
    oidc_algorithms: tuple[str, ...] = Field(
        ("RS256", "ES256", "EdDSA"), description="signature algorithms that are accepted"
    )
    oidc_role_claim: str = Field("roles", description="dotted path of the claim that lists the roles")
    oidc_roles: dict[str, Role] = Field({}, description="QueryWarden role for each role or group of the issuer")
    oidc_tenant_claim: str = Field("", description="dotted path of the claim that names the tenant; empty: `tenant`")
    oidc_longest_s: int = Field(
        3600, ge=60, description="longest validity of a token, in seconds; tokens valid for longer are refused"
    )


class WatermarkSettings(Part):
    key_file: str = Field(
        "", description="the watermark key that model servers have too; empty: watermark.json in state_dir"
    )
    registry: str = Field(
        "",
        description="registry of canaries that the model servers write, as this machine sees it; empty: no registry is recorded",
    )
    audit_every_s: float = Field(
        300.0,
        ge=1,
        description="seconds between two records of new canaries in the audit log; one row for each batch of them",
    )


class Settings(BaseSettings):
    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=PREFIX, env_nested_delimiter="__")

    baselines: tuple[str, ...] = Field(
        (), description="baseline files, or folders with *.baseline files (in the environment: separated by colons)"
    )
    personas: str = Field(
        "",
        description="JSON file with the declared use of client ids; such a client is compared with the null distributions of that persona",
    )
    tenant: str = Field(
        "default",
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="name of the tenant, the owner of the clients; hashes and keys of one tenant mean nothing for another",
    )
    mode: Literal["observe", "alert", "throttle", "block"] = Field(
        "observe", description="the strongest decision that gateways enforce"
    )
    modes: dict[str, Literal["observe", "alert", "throttle", "block"]] = Field(
        {}, description='mode per model, where it differs: {"fraud-v3": "block"}'
    )
    false_alarm_budget: float = Field(
        0.01, gt=0, lt=0.5, description="share of honest clients that may be flagged, each over its whole lifetime"
    )
    horizon_days: float = Field(
        30.0,
        ge=1,
        le=3650,
        description="how far back detection looks: a query counts in full for at least half of this time and for at most all of it",
    )
    memory_days: float = Field(
        365.0,
        ge=0,
        le=3650,
        description="older than the horizon, an odd query keeps a weight that halves with each quarter of this time; a client is "
        "forgotten this long after its last query; 0: nothing older than the horizon counts",
    )
    unknown_models: Literal["reject", "ignore"] = Field(
        "reject",
        description="what happens to events of a model without a baseline: reject writes a dead letter, ignore only counts them",
    )
    state_dir: str = Field(
        "",
        description="folder of the files whose place no other setting names, such as the SQLite store and the secrets; empty: the user's"
        " state folder of the platform",
    )
    store: StoreSettings = StoreSettings()
    log: LogSettings = LogSettings()
    kafka: KafkaSettings = KafkaSettings()
    metrics: MetricsSettings = MetricsSettings()
    secrets: SecretsSettings = SecretsSettings()
    alerts: AlertSettings = AlertSettings()
    admission: AdmissionSettings = AdmissionSettings()
    links: LinkSettings = LinkSettings()
    breaker: BreakerSettings = BreakerSettings()
    exposure: ExposureSettings = ExposureSettings()
    http: HttpSettings = HttpSettings()
    gateway: GatewaySettings = GatewaySettings()
    responders: RespondersSettings = RespondersSettings()
    watermark: WatermarkSettings = WatermarkSettings()
    evidence: EvidenceSettings = EvidenceSettings()

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
    def watermark_key_path(self) -> Path:
        return Path(self.watermark.key_file) if self.watermark.key_file else self.state_path / "watermark.json"

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
    except SettingsError as error:  # a value of the environment that is no JSON where JSON is wanted
        raise WrongUse(f"environment: {error}") from error


def with_mapping(settings: Settings, name: str | None) -> Settings:
    """The settings with another format of the log, if one is given."""
    if name is None:
        return settings
    return settings.model_copy(update={"log": settings.log.model_copy(update={"mapping": name})})


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
            raise WrongUse(f"environment: {variable} is not a setting (querywarden config schema lists them)")
