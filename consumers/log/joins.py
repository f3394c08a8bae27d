"""Keeps kafka-python from throwing away, or forgetting, a join that finished between two polls.

kafka-python 3.0.12 starts a join in its own thread and looks at it only from `poll`.

* Thrown away: a join that finished while nobody was polling is discarded and started anew, which makes every other
  member join anew as well. Members that work between their polls, as ours do, can chase each other that way for ever:
  no assignment is ever completed and nothing is read. Here the finished join is completed instead, exactly as the
  library completes one it waited for.
* Forgotten: a leader joins again when the topic's partitions changed, and the join itself takes note of the new ones.
  From then on nothing tells `poll` that a join is under way; if it did not finish within the poll that started it,
  nobody ever completes it: the member reads nothing, sends no heartbeats and is thrown out. Here a member that is
  joining needs to join until it has.
* Refused, and nobody hears: a join that the group refused for good between two polls is begun again like one that was
  never tried. Here its error is raised by the next poll.
"""

from __future__ import annotations

from typing import Any

import kafka
from kafka.coordinator.base import MemberState

from consumers.log.inside import check_inside
from consumers.log.refusals import GROUP


def complete_joins(consumer: kafka.KafkaConsumer) -> None:
    """Change one consumer, by an explicit call. Raises Refused with a kafka-python whose inside we don't know."""
    coordinator: Any = getattr(consumer, "_coordinator", None)
    check_inside(coordinator, "_join_task")
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
