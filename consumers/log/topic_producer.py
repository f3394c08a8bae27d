"""A producer for one topic, of which every message is acknowledged or known to be lost. Alerts and dead letters use it.

Rules:
* The producer is idempotent, with ``acks=all``: an acknowledged message survives the loss of a broker, once and in order.
* If a broker is away, `produce` answers False and does not raise; it waits about `timeout_s`. The producer is then replaced, because after
  an expired batch the idempotent producer of kafka-python never sends again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import kafka.errors as errors
from kafka import KafkaProducer

from consumers.errors import ConfigError, Unavailable

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


class TopicProducer:
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
