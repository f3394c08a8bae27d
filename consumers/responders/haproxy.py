"""Write a map of HAProxy over its runtime socket: client hash → throttle or block.

Rules:
* HAProxy never calls us, so an entry of the map is all that it knows. A map does not end entries by itself, so the responder drops those
  that ended.
* Many changes at once go into a new version of the map that is committed as a whole, so that no request sees half of it.
* Keys and values are our own words. They are checked all the same before they become part of a command.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Mapping
from contextlib import closing

from consumers.enforcement.restrictions import Standing
from consumers.errors import Unavailable, WrongUse
from consumers.store import ENFORCED

_WORD = re.compile(r"[0-9a-f]{32}")
_MAP = re.compile(r"[\w./@#-]+")
_COMPLAINTS = ("unknown", "not found", "denied", "can't", "cannot", "error")
_NOT_THERE = "not found"
_A_COMMAND = 200
"""Entries of one command: a payload must fit into HAProxy's buffer (16 KB)."""
_WHOLE_FROM = 50
"""From so many changes on the map is replaced as a whole."""


class HaproxyMap:
    """The target. where: path of the socket or host:port; raises WrongUse for a map's name that is none."""

    name = "haproxy"

    def __init__(self, where: str, map_name: str, timeout_s: float = 2.0) -> None:
        if not _MAP.fullmatch(map_name):
            raise WrongUse(f"responders.haproxy_map: {map_name!r} is not the name of a map")
        self._where, self._map, self._timeout_s = where, map_name, timeout_s

    def held(self) -> dict[str, Standing]:
        found = {}
        for line in self._ask(f"show map {self._map}").splitlines():
            _, _, entry = line.partition(" ")
            client, _, state = entry.partition(" ")
            if client:
                found[client] = Standing(ENFORCED.index(state)) if state in ENFORCED else Standing(-1)
        return found

    def same(self, wanted: Standing, held: Standing) -> bool:
        return wanted.strictness == held.strictness

    def change(self, put: Mapping[str, Standing], drop: list[str]) -> None:
        if len(put) + len(drop) >= _WHOLE_FROM:
            kept = {
                c: s for c, s in self.held().items() if _WORD.fullmatch(c) and s.strictness >= 0 and c not in set(drop)
            }
            self._replace({**kept, **put})
            return
        for client in filter(_WORD.fullmatch, drop):
            self._ask(f"del map {self._map} {client}", fine=_NOT_THERE)
        for client, standing in put.items():
            if _WORD.fullmatch(client):
                entry = f"map {self._map} {client} {ENFORCED[standing.strictness]}"
                if _NOT_THERE in self._ask(f"set {entry}", fine=_NOT_THERE).lower():
                    self._tell(f"add {entry}")

    def close(self) -> None:
        pass

    def _replace(self, wanted: Mapping[str, Standing]) -> None:
        version = re.search(r"New version created: (\d+)", self._ask(f"prepare map {self._map}"))
        if version is None:
            raise Unavailable("haproxy: it opened no new version of the map")
        for lines in _batches(wanted):
            self._tell(f"add map @{version[1]} {self._map} <<\n{lines}")
        self._tell(f"commit map @{version[1]} {self._map}")

    def _tell(self, command: str) -> None:
        if answer := self._ask(command).strip():
            raise Unavailable(f"haproxy: {answer}")

    def _ask(self, command: str, fine: str = "\0") -> str:
        host, _, port = self._where.rpartition(":")
        if port.isdecimal():
            connection = socket.create_connection((host, int(port)), self._timeout_s)
        else:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(self._timeout_s)
        with closing(connection):
            if not port.isdecimal():
                connection.connect(self._where)
            connection.sendall(command.encode() + b"\n")
            parts = []
            while part := connection.recv(1 << 16):
                parts.append(part)
        answer = b"".join(parts).decode(errors="replace")
        said = answer.lower()
        if any(complaint in said for complaint in _COMPLAINTS) and fine not in said:
            raise Unavailable(f"haproxy: {' '.join(answer.split())[:200]}")
        return answer


def _batches(entries: Mapping[str, Standing]) -> Iterable[str]:
    lines = [f"{client} {ENFORCED[s.strictness]}" for client, s in entries.items() if _WORD.fullmatch(client)]
    for first in range(0, len(lines), _A_COMMAND):
        yield "\n".join(lines[first : first + _A_COMMAND]) + "\n"
