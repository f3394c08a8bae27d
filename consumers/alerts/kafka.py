"""Alerts and dead letters as Kafka messages.

Rules:
* The producer is idempotent, with ``acks=all``: an acknowledged message survives the loss of a broker, once and in order.
* The key of an alert is its id (``uid`` without the update), so that all updates of an alert are one ordered sequence.
* The key of a dead letter is its position, so that a repeated one is in the same partition.
* If a broker is away, `send` and `ship` answer False and do not raise; they wait about `timeout_s`. The producer is then replaced, because
  after an expired batch the idempotent producer of kafka-python never sends again.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from typing import Any

import kafka.errors as errors
import msgspec
from kafka import KafkaProducer

from consumers.alerts.envelope import kafka_message
from consumers.alerts.finding import finding
from consumers.errors import ConfigError, Unavailable, Undeliverable
from consumers.store import DeadLetter, OutboxAlert

Message = tuple[bytes, bytes, list[tuple[str, bytes]]]
CLOSE_S = 1.0
TIMEOUT_S = 10.0
"""How long a send waits for the broker."""
PRODUCER = {
    "acks": "all",
    "enable_idempotence": True,
    "compression_type": "gzip",
    "linger_ms": 5,
    "max_request_size": 2 << 20,
    "allow_auto_create_topics": False,
    "metrics_enabled": False,
}


class _Topic:
    """Messages to one topic. `brokers`: arguments for the client, as the query log's `connection` returns them."""

    def __init__(self, brokers: Mapping[str, Any], topic: str, timeout_s: float) -> None:
        self.topic = topic
        self.failures = 0
        self._timeout_s = timeout_s
        timeout_ms = int(timeout_s * 1000)
        self._settings: dict[str, Any] = {
            **PRODUCER,
            **brokers,
            "max_block_ms": timeout_ms,
            "request_timeout_ms": timeout_ms,
            "delivery_timeout_ms": timeout_ms + 100,
        }
        try:
            self._producer: KafkaProducer | None = KafkaProducer(**self._settings)
        except (errors.KafkaConfigurationError, errors.SaslAuthenticationFailedError) as error:
            raise ConfigError(f"Kafka topic {topic}: {error}") from error
        except errors.KafkaError as error:
            raise Unavailable(f"Kafka topic {topic}: {error}") from error

    def produce(self, messages: Sequence[Message]) -> list[bool]:
        """(key, value, headers) of each; for each whether it was acknowledged."""
        deadline_s = time.monotonic() + self._timeout_s
        sent: list[Any] = []
        try:
            self._producer = self._producer or KafkaProducer(
                **self._settings | {"bootstrap_timeout_ms": self._settings["max_block_ms"]}
            )
            for key, value, headers in messages:
                sent.append(self._producer.send(self.topic, value, key=key, headers=headers))
        except errors.KafkaError:
            pass  # no metadata: the others would only wait as long again
        acknowledged = [_acknowledged(future, deadline_s) for future in sent]
        acknowledged += [False] * (len(messages) - len(sent))
        if not all(acknowledged):
            self.failures += acknowledged.count(False)
            self.close()
        return acknowledged

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            producer.close(timeout=CLOSE_S)  # what was not acknowledged has expired by then, and is sent again later
        except errors.KafkaTimeoutError:
            producer._sender.force_close()


def _acknowledged(future: Any, deadline_s: float) -> bool:
    try:
        future.get(timeout=max(0.0, deadline_s - time.monotonic()))
    except errors.KafkaError:
        return False
    return True


class KafkaSink(_Topic):
    """Sink ``kafka:<topic>``, one JSON object a message. `form`: native, or ocsf in a CloudEvents envelope (binary mode)."""

    def __init__(
        self,
        brokers: Mapping[str, Any],
        topic: str = "extraction-alerts",
        timeout_s: float = TIMEOUT_S,
        form: str = "native",
    ) -> None:
        self._form = form
        super().__init__(brokers, topic, timeout_s)

    @property
    def name(self) -> str:
        return f"kafka:{self.topic}"

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        messages: list[Message] = []
        for alert in alerts:
            try:
                messages.append(self._message(alert))
            except Undeliverable:
                if not messages:
                    raise
                break
        return self.produce(messages) + [False] * (len(alerts) - len(messages))

    def _message(self, alert: OutboxAlert) -> Message:
        if self._form == "native":
            return alert.uid.rpartition("/")[0].encode(), alert.body, []
        return kafka_message(finding(alert), self._form)


class DeadLetterTopic(_Topic):
    """Refused records for people and for a later replay: place, offset, reason, detail, sha256, head (base64)."""

    def __init__(self, brokers: Mapping[str, Any], topic: str = "prediction-queries.dead-letter") -> None:
        super().__init__(brokers, topic, TIMEOUT_S)

    def ship(self, letters: Sequence[DeadLetter]) -> list[bool]:
        """For each letter whether the topic has it for good."""
        return self.produce([(letter.place.encode("utf-8", "replace"), _letter(letter), []) for letter in letters])


def _letter(letter: DeadLetter) -> bytes:
    return msgspec.json.encode(
        {
            "place": letter.place,
            "offset": letter.offset,
            "reason": letter.reason,
            "detail": letter.detail,
            "sha256": letter.sha256,
            "head": base64.b64encode(letter.head).decode(),
        }
    )
