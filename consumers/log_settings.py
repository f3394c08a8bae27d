"""The settings of the query log: where it is read, in which format, and what of its metadata links accounts.

Rules: as in `config`, which has the whole tree.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from consumers.alert_settings import Part


def _separated(value: Any) -> Any:
    """A text with commas as its parts; anything else as it is."""
    return tuple(t.strip() for t in value.split(",") if t.strip()) if isinstance(value, str) else value


class KafkaSettings(Part):
    bootstrap_servers: str = Field("127.0.0.1:9092", description="Kafka brokers, separated by commas")
    topic: str = Field("prediction-queries", description="topic of the query log; it must exist")
    topics: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="several topics of query logs, read by one process instead of kafka.topic (in the environment: separated by commas);"
        " log.mapping says the format of each",
    )
    wait_for_topic: bool = Field(
        False, description="if the query topic does not exist yet, wait for it instead of refusing to start"
    )
    dead_letter_topic: str = Field(
        "prediction-queries.dead-letter", description="topic for refused records; created if missing"
    )
    alerts_topic: str = Field("extraction-alerts", description="topic for alerts; created if missing")
    group_id: str = Field("querywarden", description="consumer group of the ingest processes")
    group_instance_id: str | None = Field(
        None, description="static membership in the consumer group: a stable name for this process"
    )
    start: str = Field(
        "earliest",
        description="where to start reading a partition for which the store has no position: earliest, latest or an RFC 3339 time",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] | None = Field(
        None, description="required for brokers that are not on loopback"
    )
    sasl_mechanism: str = Field("SCRAM-SHA-512", description="SASL mechanism")
    sasl_username: str | None = Field(None, description="SASL user name")
    sasl_password: SecretStr | None = Field(None, description="SASL password")
    ssl_cafile: str | None = Field(
        None, description="file with the certificate authority that signed the brokers' certificates"
    )
    ssl_certfile: str | None = Field(None, description="file with the client certificate")
    ssl_keyfile: str | None = Field(None, description="file with the key of the client certificate")
    max_poll_records: int = Field(
        10_000,
        ge=1,
        le=100_000,
        description="maximum number of records in one poll, which is also one commit; large events: as many as fit in 16 MiB",
    )
    session_timeout_ms: int = Field(
        10_000, ge=1000, description="the group removes a member that sends no heartbeat for this long"
    )
    heartbeat_interval_ms: int = Field(3_000, ge=100, description="time between two heartbeats to the group")
    max_poll_interval_ms: int = Field(
        60_000, ge=1000, description="the group removes a member that does not poll for this long"
    )

    @field_validator("topics", mode="before")
    @classmethod
    def _split_topics(cls, value: Any) -> Any:
        return _separated(value)

    @property
    def query_topics(self) -> tuple[str, ...]:
        """The topics that are read: `topics`, or else `topic` alone."""
        return tuple(dict.fromkeys(self.topics)) or (self.topic,)


class LogSettings(Part):
    url: str = Field("kafka:", description="kafka: or file:///path.jsonl (a file is followed as it grows)")
    mapping: str | dict[str, str] = Field(
        "native",
        description="format of the log: native, a preset (kserve, litellm, csv, …) or a mapping file; for some topics: {topic = NAME}",
    )


LinkKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")]
LinkKeys = Annotated[tuple[LinkKey, ...], NoDecode]


class LinkSettings(Part):
    """Keys of metadata that link accounts, beside those that docs/formats.md lists."""

    who: LinkKeys = Field(
        (),
        max_length=8,
        description="more keys of metadata that say who an account belongs to, such as a reseller (environment: separated by commas)",
    )
    where: LinkKeys = Field(
        (),
        max_length=8,
        description="more keys of metadata that say where an account comes from, which strangers may share, such as an application",
    )

    sharing_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        max_length=3,
        description="files of sharing keys, under which indicators are exchanged with peers; the first one signs what is exported "
        "(environment: separated by commas)",
    )

    @field_validator("who", "where", "sharing_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        return _separated(value)
