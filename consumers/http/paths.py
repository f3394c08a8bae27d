r"""Whether a path is closed to clients that cannot be known.

Rules:

* The longest configured prefix decides. A path is closed if any reading of it is: gateways and model servers differ in what they decode,
  and whoever cannot be known chooses how a path is written.
* Readings: the path as it came and after each further percent-decoding; each as written, and as lenient servers see it (``\`` is ``/``, no
  ``;parameter``, no control characters, no dots or blanks at the end of a segment); ``.``, ``..`` and empty segments resolved.
* A closed prefix is matched loosely: in any case, up to any character that is no letter, digit, ``-`` or ``_`` (``/v1/models/m:predict``,
  ``m;v=1``, ``m.json``). An open prefix is matched strictly: as it is written, whole segments only.
* A path that is too long, or still encoded after `MOST_DECODINGS`, is closed wherever anything is.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from urllib.parse import unquote

LONGEST = 4096
MOST_DECODINGS = 6
_REMEMBERED = 4096
_ORIGIN = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//[^/]*")
_UNSEEN = re.compile(r"[\x00-\x1f\x7f]")


class Routes:
    """Prefix of a path → open | closed."""

    def __init__(self, routes: Mapping[str, str]) -> None:
        longest_first = sorted(routes.items(), key=lambda route: -len(route[0]))
        self._routes = [(prefix.rstrip("/"), rule == "closed") for prefix, rule in longest_first]
        self._any_closed = any(closed for _, closed in self._routes)
        self._judged = lru_cache(_REMEMBERED)(self._judge)

    def closed(self, path: str) -> bool:
        """Whether a path, percent-encoded or not and without its query, is closed to clients that cannot be known."""
        if not self._any_closed:
            return False
        return len(path) > LONGEST or self._judged(path)

    def _judge(self, path: str) -> bool:
        for _ in range(MOST_DECODINGS):
            if any(self._closed(reading) for reading in _readings(path)):
                return True
            decoded = unquote(path)
            if decoded == path:
                return False
            path = decoded
        return True

    def _closed(self, path: str) -> bool:
        folded = path.casefold()
        for prefix, closed in self._routes:
            if closed:
                start = prefix.casefold()
                following = folded[len(start) : len(start) + 1]
                if folded.startswith(start) and not (following.isalnum() or following in ("-", "_")):
                    return True
            elif path == prefix or path.startswith(prefix + "/"):
                return False
        return False


def _readings(path: str) -> Iterator[str]:
    origin = _ORIGIN.match(path)
    for one in (path, path[origin.end() :]) if origin else (path,):
        yield _resolved(one)
        lenient = _UNSEEN.sub("", one.replace("\\", "/"))
        yield _resolved(lenient)
        segments = [segment.partition(";")[0].rstrip(" ") for segment in lenient.split("/")]
        yield _resolved("/".join(segments))
        yield _resolved("/".join(s if s in (".", "..") else s.rstrip(" .") for s in segments))


def _resolved(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))
