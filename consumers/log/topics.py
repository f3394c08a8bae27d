"""Kafka topics: find out which exist, and create the ones that we write to. A topic that is only read is never created."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import kafka.errors as errors
from kafka import KafkaAdminClient

from consumers.log.refusals import translated


def ensure_topics(brokers: Mapping[str, Any], topics: Iterable[str], partitions: int = -1) -> list[str]:
    """Create those topics that are missing (-1 partitions: the broker's default); returns which were created.

    brokers  what `kafka.connection` returned
    """
    created = []
    with _admin(brokers) as admin:
        for topic in sorted(set(topics) - set(admin.list_topics())):
            try:
                admin.create_topics({topic: {"num_partitions": partitions}}, wait_for_metadata=True)
            except errors.TopicAlreadyExistsError:
                continue  # another process was faster
            created.append(topic)
    return created


def has_topic(brokers: Mapping[str, Any], topic: str) -> bool:
    """Ask the brokers whether `topic` exists; nothing is created."""
    with _admin(brokers) as admin:
        return topic in admin.list_topics()


@contextlib.contextmanager
def _admin(brokers: Mapping[str, Any]) -> Iterator[KafkaAdminClient]:
    admin = None
    try:
        admin = KafkaAdminClient(**brokers)
        yield admin
    except errors.KafkaError as error:
        raise translated(error) from error
    finally:
        if admin is not None:
            admin.close()
