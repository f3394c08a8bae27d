"""Alerts as Kafka messages.

Rules: the key of an alert is its id (``uid`` without the update), so that all updates of an alert are one ordered sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consumers.alerts.envelope import kafka_message
from consumers.alerts.finding import finding
from consumers.errors import Undeliverable
from consumers.log.topic_producer import TIMEOUT_S, Message, TopicProducer
from consumers.store import OutboxAlert


class KafkaSink(TopicProducer):
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
