"""Kafka topics: find out which exist, and create the ones that we write to.

Rules: a topic that is only read is never created.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import kafka.errors as errors
from kafka import KafkaAdminClient

from consumers.errors import ConfigError
from consumers.log.refusals import translated

log = logging.getLogger("querywarden.log")


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


def missing(brokers: Mapping[str, Any], topics: Iterable[str]) -> list[str]:
    """Ask the brokers which of the topics do not exist; nothing is created."""
    with _admin(brokers) as admin:
        there = set(admin.list_topics())
    return [topic for topic in topics if topic not in there]


def require_topics(brokers: Mapping[str, Any], topics: Iterable[str], setting: str, *, wait: bool) -> None:
    """Check that the topics exist that are to be read. `wait`: one that is missing is logged and may come later.

    Raises ConfigError, which names the setting, unless `wait`.
    """
    for topic in missing(brokers, topics):
        if not wait:
            raise ConfigError(
                f"{setting}: there is no topic {topic!r} at {','.join(brokers['bootstrap_servers'])}, or this account may not see it; "
                "it is never created by reading (kafka.wait_for_topic = true waits for it)"
            )
        log.warning("the query topic does not exist yet", extra={"topic": topic})


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
