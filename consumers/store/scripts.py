"""The Lua scripts of the Redis store: how they are sent, and the meaning of their failures.

Rules:

* A script is called by its SHA. ``NOSCRIPT`` means that nothing ran; then the text is sent, once.
* Nothing else is ever sent twice: after a timeout or a broken connection the outcome is unknown (`Unavailable`).
* A reply starts with a word: ``OK``, or the reason why nothing was written (``FENCED``, ``CAS``, ``HELD``).
* States of the server that pass (out of memory, loading, read-only, resharding) are `Unavailable`. A refused login or permission is
  `NotPermitted`: it does not pass. A key of another type is `CorruptState`. Anything else is a bug and is not caught.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from redis import exceptions as failures

from consumers.errors import ConfigError, CorruptState, Fenced, NotPermitted, Rewound, Unavailable

NAMES = (
    "profile_claim",
    "profile_load",
    "profile_commit",
    "profile_touched",
    "profile_shards",
    "profile_erase",
    "profile_reset",
    "profile_swap",
    "profile_export",
    "profile_page",
    "join_hand_in",
    "join_arrivals",
    "decision_claim",
    "decision_load",
    "decision_record",
    "decision_release",
    "decision_erase",
    "decision_swap",
    "decision_export",
    "decision_page",
    "decision_upgrade",
    "attend",
    "operate",
    "operator_changes",
    "outbox_pending",
    "outbox_sent",
    "layout",
)

TEMPORARY = (
    "OOM",
    "MISCONF",
    "READONLY",
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK",
    "NOREPLICAS",
    "UNBLOCKED",
    "max number of clients",
)
"""How an error reply starts whose cause passes by itself."""

FORBIDDEN = ("NOPERM", "NOAUTH", "WRONGPASS", "DENIED")
NO_DATABASE = ("DB index is out of range", "invalid DB index", "SELECT is not allowed")
"""What a server answers that has no database of the number that ``store.url`` ends with."""

_WAIT_MS = 1000

_BY_TYPE: tuple[tuple[type[Exception] | tuple[type[Exception], ...], Callable[[str], Exception]], ...] = (
    ((failures.AuthenticationError, failures.AuthorizationError, failures.NoPermissionError), NotPermitted),
    ((failures.ConnectionError, failures.TimeoutError, failures.OutOfMemoryError, failures.ReadOnlyError), Unavailable),
    ((failures.ClusterError, failures.AskError, failures.TryAgainError, failures.RedisClusterException), Unavailable),
    ((failures.InvalidResponse, OSError), Unavailable),
)


def read_scripts() -> dict[str, str]:
    """Name → text of every script, as shipped beside this module."""
    folder = files("consumers.store")
    return {name: (folder / f"{name}.lua").read_text(encoding="utf-8") for name in NAMES}


@contextmanager
def translated() -> Iterator[None]:
    """Turn the client library's errors into ours."""
    try:
        yield
    except (failures.RedisError, failures.RedisClusterException, OSError) as error:
        meaning = _meaning(error)
        if meaning is None:
            raise
        raise meaning from error


def _meaning(error: Exception) -> Exception | None:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    for kind, ours in _BY_TYPE:
        if isinstance(error, kind):
            return ours(f"redis: {text}")
    if isinstance(error, failures.ResponseError):
        if text.startswith(FORBIDDEN):
            return NotPermitted(f"redis: {text}")
        if any(words in text for words in NO_DATABASE):
            return ConfigError(f"redis: {text}: store.url names a database that the server does not have")
        if text.startswith(TEMPORARY):
            return Unavailable(f"redis: {text}")
        # Redis prefixes what a script raised ("ERR ... WRONGTYPE ...") differently in 7.0 and later.
        if "WRONGTYPE" in text:
            return CorruptState(f"redis: {text}")
    return None


def _sha(text: str) -> str:
    """The server's name for a script; nothing is protected by it."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Scripts:
    """Runs the scripts on one client.

    client  a `redis.Redis` or `redis.RedisCluster` that retries nothing by itself
    texts   name → Lua text; each takes exactly one key, which names the cell
    """

    def __init__(self, client: Any, texts: dict[str, str]) -> None:
        self._client = client
        self._texts = texts
        self._sha = {name: _sha(text) for name, text in texts.items()}

    def run(self, name: str, key: str, arguments: Sequence[str | bytes | int], cell: str = "") -> list[Any]:
        """The reply without its first word; `cell` names the cell in errors.

        Raises Fenced, Rewound (with the position that the store has), Unavailable, CorruptState, Refused.
        A reply that starts with HELD is returned whole.
        """
        with translated():
            try:
                reply = self._client.evalsha(self._sha[name], 1, key, *arguments)
            except failures.NoScriptError:
                reply = self._client.eval(self._texts[name], 1, key, *arguments)
        return _meant(name, reply, cell)

    def run_replicated(
        self, name: str, key: str, arguments: Sequence[str | bytes | int], replicas: int, cell: str = ""
    ) -> list[Any]:
        """As `run`, and wait for that many replicas, on the same connection, as `WAIT` demands.

        Raises Unavailable, too, when they do not confirm within a second; the server itself has the write then.
        """
        if replicas < 1:
            return self.run(name, key, arguments, cell)
        with translated():
            reply, confirmed = self._with_wait(key, replicas, "EVALSHA", self._sha[name], arguments)
            if isinstance(reply, failures.NoScriptError):
                reply, confirmed = self._with_wait(key, replicas, "EVAL", self._texts[name], arguments)
            for answer in (reply, confirmed):
                if isinstance(answer, Exception):
                    raise answer
        found = _meant(name, reply, cell)
        if confirmed < replicas:
            raise Unavailable(f"redis: {confirmed} replicas confirmed the write, store.min_replicas is {replicas}")
        return found

    def _with_wait(
        self, key: str, replicas: int, command: str, script: str, arguments: Sequence[str | bytes | int]
    ) -> list[Any]:
        server = self._client
        if hasattr(server, "get_node_from_key"):  # a cluster: the node that has the key
            server = server.get_redis_connection(server.get_node_from_key(key))
        with server.pipeline(transaction=False) as pipe:
            pipe.execute_command(command, script, 1, key, *arguments)
            pipe.execute_command("WAIT", replicas, _WAIT_MS)
            return list(pipe.execute(raise_on_error=False))


def _meant(name: str, reply: list[Any], cell: str) -> list[Any]:
    match reply[0]:
        case b"OK":
            return list(reply[1:])
        case b"HELD":
            return list(reply)
        case b"FENCED":
            raise Fenced(f"{cell}: another process owns this cell")
        case b"CAS":
            stored = reply[1] if len(reply) > 1 else None
            raise Rewound(cell, None if stored is None else int(stored))
        case word:
            raise RuntimeError(f"script {name}: unknown reply {word!r}")
