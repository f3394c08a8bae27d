"""Write to the operator cell: read it, plan the change, compare and swap; start over if another process wrote in between.

Rules: a plan reads the cell itself, changes nothing, and is made anew for every try. `overrides` follows the cell by itself
and does not use this: it reads again with its next turn, and then writes what is still true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from consumers.errors import Rewound, Unavailable
from consumers.store import Operation, OperatorStore

TRIES = 50

T = TypeVar("T")


def written(
    store: OperatorStore,
    plan: Callable[[], tuple[int, Operation | None, T]],
    tries: int = TRIES,
    pause: Callable[[int], None] = lambda attempt: None,
) -> T:
    """The plan's answer, once what it says is written. Raises Unavailable.

    plan  (revision that it was made on, what to write or None for nothing, answer); asked anew for every try, and reads the cell itself
    pause  told which try failed
    """
    for attempt in range(tries):
        revision, operation, answer = plan()
        if operation is None:
            return answer
        try:
            store.operate(revision, operation)
        except Rewound:
            pause(attempt)
            continue
        return answer
    raise Unavailable("other changes of the operator cell came in between; try again")
