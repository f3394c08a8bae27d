"""Moments: event times of other tools, as the RFC 3339 texts of a native event.

Rules:
* The mapping says the unit of a number; otherwise its size does: seconds up to 1e11, milliseconds up to 1e14, microseconds up to 1e17,
  nanoseconds beyond. These ranges do not overlap between 1973 and 5138.
* A value that is no time is passed on as it is, so that the decoder of events refuses it with its own reason.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from typing import Any

from consumers.log.mappings.mapping import TimeUnit

_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d+)?", re.ASCII)
_NAIVE = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d(?::\d\d(?:\.\d+)?)?)\Z", re.ASCII)
_SPACED = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d+)?) ?(Z|UTC|[+-]\d\d:?\d\d)\Z", re.ASCII)
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_LIMITS = ((1e11, "s"), (1e14, "ms"), (1e17, "us"))
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def moment(value: Any, unit: TimeUnit = "auto", utc: bool = False) -> Any:
    """An event time for a native event.

    Parameters
    ----------
    value
        A number since the epoch, a number written as text, or a text.
    unit
        Of a number; ``auto`` goes by its size.
    utc
        A text without an offset is UTC; otherwise it is given as it is, and refused.

    Examples
    --------
    >>> moment(1774000800.5), moment("1774000800500"), moment("2026-03-20 10:00:00", utc=True)
    ('2026-03-20T10:00:00.500000Z', '2026-03-20T10:00:00.500000Z', '2026-03-20T10:00:00Z')
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _of_number(value, unit)
    if isinstance(value, str):
        if unit != "rfc3339" and _NUMBER.fullmatch(value.strip()):
            return _of_number(float(value) if "." in value else int(value), unit)
        return _of_text(value, utc)
    return value


def _of_number(value: Any, unit: TimeUnit) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return value
    size = abs(value)
    scale = next((name for limit, name in _LIMITS if size < limit), "ns") if unit in ("auto", "rfc3339") else unit
    try:
        # whole numbers are divided exactly: a double cannot tell nanoseconds apart
        microseconds = (
            round(value * 10**6 / _PER_SECOND[scale])
            if isinstance(value, float)
            else value * 10**6 // _PER_SECOND[scale]
        )
        when = _EPOCH + dt.timedelta(microseconds=microseconds)
    except (OverflowError, ValueError):
        return value
    return when.isoformat().replace("+00:00", "Z")


def _of_text(text: str, utc: bool) -> str:
    bare = text.strip()
    spaced = _SPACED.match(bare)
    if spaced is not None:
        day, clock, zone = spaced.groups()
        return f"{day}T{clock}{'Z' if zone in ('Z', 'UTC') else zone if ':' in zone else f'{zone[:3]}:{zone[3:]}'}"
    naive = _NAIVE.match(bare) if utc else None
    if naive is None:
        return text
    day, clock = naive.groups()
    return f"{day}T{clock if clock.count(':') == 2 else f'{clock}:00'}Z"
