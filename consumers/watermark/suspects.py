"""A suspected model: an address that is asked, or a file with its answers.

Rules:

* The suspect sees inputs alone, one in each request, in an order that does not distinguish marked ones from controls.
* No redirects and no proxies; https certificates are checked. A bearer token comes from a file, never from the command line.
* An unusable answer is None and is left out of the test; a suspect that cannot be reached at all is `Unavailable`.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from consumers import paths
from consumers.errors import InvalidInput, Unavailable, WrongUse
from consumers.watermark.answers import Answer, answer_of, inputs_of, places_of

ANSWER_BYTES = 1 << 20
TIMEOUT_S = 10.0
_GIVE_UP_AFTER = 5

Ask = Callable[[Any], Answer | None]
"""Input → the suspect's answer."""


def request_of(asked: Any) -> dict[str, Any]:
    """The request that asks an input, in the field names of the query log."""
    if isinstance(asked, str):
        return {"text": asked}
    if isinstance(asked, list) and asked and isinstance(asked[0], dict):
        return {"messages": asked}
    return {"features": asked}


class HttpSuspect:
    """Asks an address by POST. Raises WrongUse for one that is none; `ask` raises Unavailable when nobody answers there."""

    def __init__(self, url: str, token: str = "", timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise WrongUse("--suspect: an http or https address without a password in it, or a file")
        if token and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise WrongUse("--token-file: a token goes over https only")
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout_s, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
        self._silent = 0

    def ask(self, asked: Any) -> Answer | None:
        body = json.dumps(request_of(asked)).encode()
        try:
            self._connection.request("POST", self._path, body, self._headers)
            response = self._connection.getresponse()
            content = response.read(ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._silent += 1
            if self._silent >= _GIVE_UP_AFTER:
                raise Unavailable(f"the suspect does not answer: {type(error).__name__}") from error
            return None
        self._silent = 0
        if not 200 <= response.status < 300 or len(content) > ANSWER_BYTES:
            self._connection.close()
            return None
        return _answer(content)

    def close(self) -> None:
        self._connection.close()


def _answer(content: bytes) -> Answer | None:
    try:
        places = places_of(json.loads(content))
    except (ValueError, RecursionError):
        return None
    return places[0].answer if places else None


def answers_in(path: Path, name_of: Callable[[Any], str]) -> Mapping[str, Answer]:
    """The answers in a file of JSON lines with input and prediction, as in the query log, by the input's name.

    name_of: input → its keyed digest. Raises InvalidInput for a file that holds none.
    """
    found: dict[str, Answer] = {}
    with paths.opened(path, "--suspect") as file:
        for line in file:
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            asked = inputs_of(event)
            prediction = event.get("prediction") if isinstance(event, dict) else None
            answer = answer_of(prediction) if isinstance(prediction, dict) else None
            if asked and answer is not None:
                found[name_of(asked[0])] = answer
    if not found:
        raise InvalidInput(f"--suspect {path}: no line holds an input and a prediction")
    return found
