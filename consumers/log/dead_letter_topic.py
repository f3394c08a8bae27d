"""The topic of refused records.

Rules: the key of a dead letter is its position, so that a repeated one is in the same partition.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from consumers.log.topic_producer import TIMEOUT_S, TopicProducer
from consumers.store import DeadLetter


class DeadLetterTopic(TopicProducer):
    """Refused records for people and for a later replay: place, offset, reason, detail, sha256, head (base64)."""

    def __init__(self, brokers: Mapping[str, Any], topic: str = "prediction-queries.dead-letter") -> None:
        super().__init__(brokers, topic, TIMEOUT_S)

    def ship(self, letters: Sequence[DeadLetter]) -> list[bool]:
        """Return for each dead letter whether the topic has acknowledged it."""
        return self.produce([(letter.place.encode("utf-8", "replace"), letter_body(letter), []) for letter in letters])


def letter_body(letter: DeadLetter) -> bytes:
    """The message of a dead letter, JSON."""
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
