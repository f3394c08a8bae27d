"""The settings of enforcement: what gateways ask, and what is pushed to them. `config` has the whole tree and its rules.

Rules: a gateway is pushed to only when its address is filled in. How far a model's decisions are enforced is its mode, in `config`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr

from consumers.alert_settings import Part
from consumers.watermark.degradation import marks_suspects_only


class GatewaySettings(Part):
    identity_headers: tuple[str, ...] = Field(
        ("x-api-key", "x-consumer-id", "authorization"),
        description="headers whose value identifies a client of the query log (authorization: a bearer token); all that are present"
        " are looked up; put the most trustworthy first",
    )
    client_map: str = Field(
        "",
        description="JSON file with the client id for each hash of a header's value (querywarden gateway hash); empty: none",
    )
    model_header: str = Field("x-querywarden-model", description="header that names the model; the gateway must set it")
    default_model: str = Field(
        "*", description="model of a request without that header; *: the most severe decision over all models applies"
    )
    routes: dict[str, Literal["open", "closed"]] = Field(
        {"/": "open"},
        description="per path prefix, whether a request without a usable identity passes (open) or is refused (closed); the longest"
        " prefix decides; advised: / closed, with open exceptions",
    )
    degrade: Annotated[
        dict[Literal["clear", "watch", "degrade", "throttle"], str], AfterValidator(marks_suspects_only)
    ] = Field(
        {},
        description='value of the header X-QueryWarden-Degrade per decision, for the model server: {"watch": "round=2"}; degrade without'
        " a value here means top1; canary=KEYID (marks) goes under degrade and throttle only",
    )
    throttle_per_s: float = Field(0.0, ge=0, description="requests per second that pass for a throttled client")
    refresh_s: float = Field(0.25, gt=0, le=0.5, description="seconds between two reads of the changes in the store")
    full_sync_s: float = Field(300.0, ge=1, description="seconds between two full reads of the store")
    event_followers: int = Field(
        64,
        ge=1,
        le=10_000,
        description="connections that may follow /v1/decisions/events at the same time; half of them are reserved for gateways",
    )
    grpc_bind: str = Field(
        "", description="host:port of the gRPC ext_authz service (needs the extra [grpc]); empty: off"
    )
    grpc_certfile: str = Field(
        "", description="file with the certificate of the gRPC service (PEM, with its chain); empty: no TLS"
    )
    grpc_keyfile: str = Field("", description="file with the key of that certificate")
    grpc_client_ca: str = Field(
        "", description="file with the authorities of client certificates (PEM); set: a gateway must present one"
    )
    grpc_plaintext: bool = Field(
        False,
        description="allow gRPC without TLS outside loopback; the gateways' keys then cross the network in clear text",
    )


class RespondersSettings(Part):
    every_s: float = Field(0.5, gt=0, le=1, description="seconds between two pushes of changed decisions")
    verify_s: float = Field(
        60.0, ge=1, description="seconds between two comparisons of a target with the decisions that it should hold"
    )
    haproxy_socket: str = Field("", description="runtime socket of HAProxy (path or host:port); empty: off")
    haproxy_map: str = Field("", description="name of the map in HAProxy's configuration")
    crowdsec_url: str = Field("", description="address of CrowdSec's local API; empty: off")
    crowdsec_machine: str = Field("querywarden", description="machine id that QueryWarden logs in with")
    crowdsec_password: SecretStr = Field(SecretStr(""), description="password of that machine")
    crowdsec_bouncer_key: SecretStr = Field(
        SecretStr(""), description="key of a bouncer, used to verify what was pushed"
    )


class ExposureLimits(Part):
    alert: float = Field(
        0.0,
        ge=0,
        le=1,
        description="exposure from which an alert is sent, whatever the client's intent; advised: 0.6; 0: never",
    )
    throttle: float = Field(
        0.0,
        ge=0,
        le=1,
        description="exposure from which the client is throttled, unless the estimate is rough, as far as the mode allows; advised: 0.8;"
        " 0: never",
    )
    queries_alert: int = Field(
        0, ge=0, description="distinct queries within horizon_days from which an alert is sent; 0: never"
    )
    queries_throttle: int = Field(
        0,
        ge=0,
        description="distinct queries within horizon_days from which the client is throttled, as far as the mode allows; 0: never",
    )
    queries_total: int = Field(
        0,
        ge=0,
        description="distinct queries of all clients of a model together from which an alarm is raised; 0: never",
    )
    tokens_alert: int = Field(
        0, ge=0, description="tokens of queries and answers within horizon_days from which an alert is sent; 0: never"
    )
    tokens_throttle: int = Field(
        0,
        ge=0,
        description="tokens within horizon_days from which the client is throttled, as far as the mode allows; 0: never",
    )


class ExposureSettings(ExposureLimits):
    plans: str = Field(
        "",
        description="JSON file, client id → distinct queries that it declared; such a client has this number in the place of both limits",
    )
    models: dict[str, ExposureLimits] = Field(
        {}, description='other limits for some models: {"fraud-v3": {"alert": 0.5, "throttle": 0.7}}'
    )
