"""Keeps kafka-python from forgetting a partition that was paused while its records were being handed out.

kafka-python 3.0.12 parks the records of a paused partition and asks for no others of it while they are parked. It takes
parked records up again only when nothing else is in line, and something is in line for good as soon as another
partition has delivered once (`Fetcher.fetched_records` tests for None, a drained line is not None). So a partition that
is paused and then resumed beside a busy one is never read again, and nothing says so. We resume by `seek`, after
which parked records are of no use: they are dropped.
"""

from __future__ import annotations

import kafka
from kafka import TopicPartition

from consumers.log.inside import check_inside

PARKED = ("_paused_completed_fetches", "_paused_partition_records")


def check_parked(consumer: kafka.KafkaConsumer) -> None:
    """Raises Refused with a kafka-python whose inside we don't know."""
    check_inside(getattr(consumer, "_fetcher", None), *PARKED)


def drop_parked(consumer: kafka.KafkaConsumer, tp: TopicPartition) -> None:
    """Forget what was parked of one partition; call it between `seek` and `resume`."""
    for name in PARKED:
        getattr(consumer._fetcher, name).pop(tp, None)
