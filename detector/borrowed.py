"""Arrays that compiled code borrows: the same memory without a count of references.

A compiled function that is given an array, takes one out of a group or makes a view of it counts a reference up and down again, with a
locked instruction each time. In the walk over the rows of a poll this was a third of what the fold cost.

Rules:

* Whoever lends holds the array itself until the call that borrows has returned. So one function is called with what it owns, and the first
  thing that it does is to call another one with what it lends.
* What is borrowed is never returned, stored or given to Python.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils, types
from numba.extending import intrinsic

_build: Any = cgutils
_kinds: Any = types


def _lend(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, _kinds.Array):
        array = _build.create_struct_proxy(kind)(context, builder, value=value)
        array.meminfo = _build.get_null_value(array.meminfo.type)
        array.parent = _build.get_null_value(array.parent.type)
        return array._getvalue()
    if isinstance(kind, _kinds.BaseTuple):
        parts = zip(kind.types, _build.unpack_tuple(builder, value), strict=True)
        return context.make_tuple(builder, kind, [_lend(context, builder, each, part) for each, part in parts])
    return value


def _borrow(typing_context: Any, value: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _lend(context, builder, signature.args[0], arguments[0])

    return value(value), build


lent: Any = intrinsic(_borrow)
"""An array, or a group of arrays and of groups, as it may be borrowed; anything else as it is. For compiled code only."""
