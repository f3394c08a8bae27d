"""Times in words: every form of a time that a program or a person reads, in one place.

Rules:

* Stored times are numbers: seconds (``_s``) or milliseconds (``_ms``) since the epoch. They become text here, always in UTC.
* 0 means never. `short` writes a dash for it; the other functions are not asked about it.
"""

from __future__ import annotations

import datetime as dt


def rfc3339(time_ms: int) -> str:
    """Return ``2026-03-02T09:14:05.250Z``: what alerts, the audit log and the API carry.

    >>> rfc3339(1772442845250)
    '2026-03-02T09:14:05.250Z'
    """
    return _utc(time_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def second(time_s: float) -> str:
    """Return ``2026-03-02T09:14:05Z``: RFC 3339 in whole seconds, as CrowdSec writes times.

    >>> second(1772442845.25)
    '2026-03-02T09:14:05Z'
    """
    return f"{_utc(int(time_s) * 1000):%Y-%m-%dT%H:%M:%SZ}"


def milliseconds(text: str) -> int:
    """Return the milliseconds since the epoch of an RFC 3339 text. Raises ValueError.

    >>> milliseconds("2026-03-02T09:14:05.250Z")
    1772442845250
    """
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)


def minute(time_ms: int) -> str:
    """Return ``2026-03-02 09:14 UTC``: a time inside a sentence."""
    return f"{_utc(time_ms):%Y-%m-%d %H:%M} UTC"


def day_and_minute(time_ms: int) -> str:
    """Return ``2 Mar 2026 09:14``: a time on a page that says once that its times are UTC."""
    return f"{_utc(time_ms).day} {_utc(time_ms):%b %Y %H:%M}"


def short(time_ms: int) -> str:
    """Return ``2 Mar 09:14``: a time in a narrow column, a dash for never."""
    return f"{_utc(time_ms).day} {_utc(time_ms):%b %H:%M}" if time_ms else "–"


def _utc(time_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC)
