"""Patches to kafka-python, one consumer at a time: what the library does wrong, and what is done instead.

Checked against kafka-python 3.0.12 (`CHECKED`). With another 3.0.x the service starts if the attributes that a patch touches are there;
with any other version it refuses to start. A test fails as soon as another version than `CHECKED` is installed: read the three items
below against the new source, run the tests that they name, then change `CHECKED`.

1. `complete_joins`. The library starts a join of the group in its own thread and looks at it only from `poll`.

   * A join that finished while nobody was polling is discarded and started anew, which makes every other member join anew as well.
     Members that work between their polls, as ours do, can chase each other that way for ever: no assignment is ever completed and
     nothing is read. The patch completes the finished join, exactly as the library completes one it waited for.
   * A leader joins again when the topic's partitions changed, and the join itself takes note of the new ones. From then on nothing
     tells `poll` that a join is under way. If it does not finish within the poll that started it, nobody completes it: the member reads
     nothing, sends no heartbeats and is thrown out. With the patch, a member that is joining needs to join until it has.
   * A join that the group refused for good between two polls is begun again like one that was never tried. With the patch, the next poll
     raises its error.

   Source: `ConsumerCoordinator.poll`, `AbstractCoordinator.join_group_async` and `need_rejoin`.
   No longer needed when the case ``control`` of `test_a_join_that_outlasts_its_poll_is_completed` fails (it asserts that the library alone
   never completes the join), and the tests of refused groups pass without the patch.

2. `drop_parked`. The library parks the records of a paused partition and asks for no others of it while they are parked. It takes parked
   records up again only when nothing else is in line, and something is in line for good as soon as another partition has delivered once
   (`Fetcher.fetched_records` tests for None; a drained line is not None). A partition that is paused and then resumed beside a busy one
   is therefore never read again, and nothing says so. We resume by `seek`, after which parked records are of no use: they are dropped.

   Source: `Fetcher.fetched_records`.
   No longer needed when the case ``control`` of `test_a_paused_partition_is_read_again_beside_a_busy_one` fails.

3. `read_bounded` in `batches.py`. The library decompresses a batch without a limit, and raises the same error for ever at a batch that it
   cannot read. The consumer gets a reader of batches of our own.

   Source: `Fetcher.PartitionRecords`.
   No longer needed when the library has a limit of decompression and steps over a batch that it cannot read
   (tests/log/test_batches.py says what is asked of it).

Rules:
* A patch changes one consumer, by an explicit call. Importing changes nothing.
* Whatever reaches into the library calls `check_library` first, with the names that it is about to touch.
"""

from __future__ import annotations

from typing import Any

import kafka
from kafka import TopicPartition
from kafka.coordinator.base import MemberState

from consumers.errors import ConfigError
from consumers.log.refusals import GROUP

CHECKED = "3.0.12"
"""The version that the patches were read and tested against."""
SUPPORTED = "3.0."
"""How the versions begin that the service starts with."""
PARKED = ("_paused_completed_fetches", "_paused_partition_records")
"""Where the library keeps the records of paused partitions."""


def check_library(holder: Any, *names: str) -> None:
    """Raises ConfigError unless the library's version is supported and `holder` has the attributes that a patch is about to touch."""
    if not kafka.__version__.startswith(SUPPORTED) or not all(hasattr(holder, name) for name in names):
        raise ConfigError(f"kafka-python {kafka.__version__} is not supported: needs {SUPPORTED}x")


def complete_joins(consumer: kafka.KafkaConsumer) -> None:
    """Complete each join of the group that finished between two polls. Raises ConfigError with an unknown kafka-python."""
    coordinator: Any = getattr(consumer, "_coordinator", None)
    check_library(coordinator, "_join_task")
    join = coordinator.join_group_async

    async def join_group_async(timeout_ms: float | None = None) -> bool:
        task, generation = coordinator._join_task, coordinator._generation
        if task is not None and task.is_done and type(task.exception) in GROUP:
            coordinator._join_task = None
            raise task.exception
        finished = task is not None and task.is_done and task.exception is None
        if not finished or not coordinator.rejoining or generation.generation_id < 0:
            return bool(await join(timeout_ms=timeout_ms))
        coordinator._join_task = None
        with coordinator._lock:
            coordinator.rejoining = False
            coordinator.rejoin_needed = False
            coordinator.state = MemberState.STABLE
            coordinator._enable_heartbeat()
        await coordinator._on_join_complete_async(
            generation.generation_id, generation.member_id, generation.protocol, task.value
        )
        return True

    needed = coordinator.need_rejoin

    def need_rejoin() -> bool:
        return bool(coordinator.rejoining or needed())

    coordinator.join_group_async = join_group_async
    coordinator.need_rejoin = need_rejoin


def check_parked(consumer: kafka.KafkaConsumer) -> None:
    """Raises ConfigError with an unknown kafka-python."""
    check_library(getattr(consumer, "_fetcher", None), *PARKED)


def drop_parked(consumer: kafka.KafkaConsumer, tp: TopicPartition) -> None:
    """Drop the records that were parked of one partition; call it between `seek` and `resume`."""
    for name in PARKED:
        getattr(consumer._fetcher, name).pop(tp, None)
