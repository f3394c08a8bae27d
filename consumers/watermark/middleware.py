"""The reference middleware: a model server (ASGI) mounts it, and answers suspected clients with less detail, and with marks.

    app = DegradationMiddleware(app, "fraud-v3", key=key, registry=registry, policy=MarkPolicy(flip_share=0.005))

The gateway decides who gets what; it sets these headers, and drops a client's own copies of them:

    X-QueryWarden-Degrade   the steps (`degradation`), ``none`` for everybody else
    X-QueryWarden-Client    the client's hash, with the step ``canary``; else ``none``
    X-QueryWarden-Decision  throttle | degrade | …; under others than these two nothing is marked, whatever the steps say

Rules:

* A request without steps passes untouched: it costs a look at the headers.
* The application inside computes and logs the truthful answer. It finds in ``scope["state"]["canary"]`` whether the key selected one of the
  request's inputs, and writes that into the query log as ``"canary": true``.
* Marks come last, after all other steps, and only once they are registered.
* What cannot be read is withheld (503) while `strict`: otherwise a very long batch, or an answer that is not JSON, would evade every step.
  So is an answer that is to be marked while its input is in doubt: a field twice, or a second one that may be a decoy. GET, HEAD and
  OPTIONS pass.
* The model server must be reachable through the gateway only. A header that comes twice names nobody.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from consumers.errors import ConfigError
from consumers.watermark import degradation
from consumers.watermark.answers import Answer, Label, Place, inputs_of, places_of
from consumers.watermark.degradation import Degradation, degradation_of, degraded
from consumers.watermark.keys import WatermarkKey
from consumers.watermark.marks import marked, marks_for
from consumers.watermark.registry import Registry, Sealed
from consumers.watermark.selection import MarkPolicy, Selection, digest_of, quantised, select

log = logging.getLogger("querywarden.watermark")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES = 4 << 20
_HASH_DIGITS = frozenset("0123456789abcdef")
_WITHHELD = (
    b'{"type":"urn:querywarden:withheld","title":"This answer cannot be given to this client at present.","status":503}'
)
_STALE_HEADERS = (b"content-length", b"etag", b"digest", b"repr-digest", b"content-digest", b"content-md5")


class _Unreadable(Exception):
    """A request or answer that the steps cannot be applied to."""


class DegradationMiddleware:
    """An ASGI application around the model server's.

    Parameters
    ----------
    app
        The model server.
    model
        Id of the model; selections of two models have nothing to do with each other.
    key, registry
        For marks; without them the step ``canary`` does nothing.
    policy
        What may be marked. Flips are off unless it opts in.
    input_field
        Field of the request that the model reads; empty where the requests hold one known field (`answers.inputs_of`).
    labels
        The model's labels in the order of its classes; empty where they are the numbers from 0.
    without_header
        Steps for requests that carry no ``X-QueryWarden-Degrade`` at all, as when the gateway could not ask.
    strict
        Withhold what the steps cannot be applied to.
    """

    def __init__(
        self,
        app: App,
        model: str,
        *,
        key: WatermarkKey | None = None,
        registry: Registry | None = None,
        policy: MarkPolicy | None = None,
        input_field: str = "",
        labels: Sequence[Label] = (),
        without_header: str = degradation.NOTHING,
        strict: bool = True,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._app, self._model, self._key, self._registry = app, model, key, registry
        self._policy = policy or MarkPolicy()
        self._input_field, self._labels = input_field, tuple(labels)
        self._without_header, self._strict, self._most_bytes = without_header, strict, most_bytes
        self._noise_key = (key or WatermarkKey.draw()).derived("noise", model)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        steps = degradation_of(_joined(scope, degradation.HEADER) or self._without_header)
        if not steps or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self, scope, steps)
        await exchange.run(self._app, receive, send)

    def markable(self, scope: Scope, steps: Degradation) -> str:
        """Hash of the client whose answers may be marked; empty for none."""
        key = self._key
        if key is None or self._registry is None or key.key_id not in steps.canaries:
            return ""
        decision, client = _only(scope, degradation.DECISION_HEADER), _only(scope, degradation.CLIENT_HEADER)
        is_hash = len(client) == 32 and set(client) <= _HASH_DIGITS
        return client if decision in degradation.MARKED_DECISIONS and is_hash else ""

    def inputs(self, request: bytes) -> list[Any] | None:
        """The inputs of a request's body; None where they are in doubt."""
        return inputs_of(_parsed(request, unique=True), self._input_field)

    def selected(self, coarse: bytes) -> Selection | None:
        return None if self._key is None else select(self._key, self._model, coarse, self._policy)

    def answered(self, place: Place, asked: Any, coarse: bytes, steps: Degradation, client: str) -> Answer:
        """The answer that a client gets: after the steps, and marked where the key selects its input."""
        answer = degraded(place.answer, steps.steps, self._noise_key, coarse)
        key, registry = self._key, self._registry
        if not client or key is None or registry is None or (chosen := self.selected(coarse)) is None:
            return answer
        decimals = steps.decimals(self._policy.decimals)
        marks = marks_for(answer, chosen.stream, chosen.draw, decimals, self._labels)
        if not marks:
            return answer
        sealed = Sealed(asked, list(marks))
        digest = digest_of(key, self._model, coarse)
        try:
            registered = registry.register(client, self._model, digest, sealed, treated=chosen.treated)
        except (OSError, ConfigError) as error:
            log.error("the canary registry cannot be written; nothing is marked", extra={"why": str(error)})
            return answer
        return marked(answer, marks) if registered and chosen.treated else answer

    @property
    def strict(self) -> bool:
        return self._strict

    @property
    def most_bytes(self) -> int:
        return self._most_bytes


class _Exchange:
    """One request of a suspected client, and its answer."""

    def __init__(self, owner: DegradationMiddleware, scope: Scope, steps: Degradation) -> None:
        self._owner, self._scope, self._steps = owner, scope, steps
        self._client = owner.markable(scope, steps)
        self._start: Message | None = None
        self._body = bytearray()
        self._passing = False

    async def run(self, app: App, receive: Receive, send: Send) -> None:
        request = await _body_of(receive, self._owner.most_bytes)
        if request is None:
            await _withhold(send)
            return
        asked = self._owner.inputs(request)
        coarse = [quantised(one) for one in asked] if asked is not None else []
        chosen = [self._owner.selected(one) for one in coarse] if self._client else []
        state = dict(self._scope.get("state") or {})
        state["canary"] = any(one is not None and one.treated for one in chosen)
        headers = [(n, v) for n, v in self._scope["headers"] if n.lower() != b"accept-encoding"]
        inner = {**self._scope, "state": state, "headers": headers}
        sent = False

        async def replayed() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": request, "more_body": False}

        await app(inner, replayed, self._collect(send))
        await self._finish(send, asked, coarse)

    def _collect(self, send: Send) -> Send:
        """Keep the answer back; what is no success passes as it comes."""

        async def collected(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._start = message
                self._passing = not 200 <= message["status"] < 300
            if self._passing:
                await send(message)
            elif message["type"] == "http.response.body" and len(self._body) <= self._owner.most_bytes:
                self._body += message.get("body", b"")

        return collected

    async def _finish(self, send: Send, asked: list[Any] | None, coarse: list[bytes]) -> None:
        if self._passing or self._start is None:
            return
        try:
            content = self._changed(asked, coarse)
        except _Unreadable as error:
            log.warning("an answer to a degraded client cannot be read", extra={"why": str(error)})
            if self._owner.strict:
                await _withhold(send)
                return
            content = bytes(self._body)
        headers = [(n, v) for n, v in self._start.get("headers", []) if n.lower() not in _STALE_HEADERS]
        headers.append((b"content-length", b"%d" % len(content)))
        await send({**self._start, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _changed(self, asked: list[Any] | None, coarse: list[bytes]) -> bytes:
        """The body with every answer in it changed. Raises _Unreadable."""
        if len(self._body) > self._owner.most_bytes:
            raise _Unreadable("too long")
        response = _parsed(bytes(self._body))
        places = places_of(response)
        if places is None:
            raise _Unreadable("not JSON, or no known shape")
        steps = self._steps
        pairs = asked is not None and len(asked) == len(places)
        if self._client and not pairs and self._owner.strict:
            raise _Unreadable("the inputs are in doubt")
        for i, place in enumerate(places):
            if pairs and asked is not None:
                answer = self._owner.answered(place, asked[i], coarse[i], steps, self._client)
            else:  # whichever input it answers: noise is keyed by the answer, and nothing is marked
                answer = self._owner.answered(place, None, quantised(repr(place.answer)), steps, "")
            place.write(answer, hide_logits=steps.hides_logits, hide_reasoning=steps.hides_reasoning)
        return json.dumps(response).encode()


async def _body_of(receive: Receive, most: int) -> bytes | None:
    """The whole body of a request; None when it is longer than `most`."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > most:
            return None
        if not message.get("more_body"):
            return bytes(body)


async def _withhold(send: Send) -> None:
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(_WITHHELD))]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": _WITHHELD})


def _values(scope: Scope, name: str) -> list[str]:
    return [value.decode("latin-1").strip() for n, value in scope["headers"] if n.lower() == name.encode()]


def _joined(scope: Scope, name: str) -> str:
    return ",".join(_values(scope, name))


def _only(scope: Scope, name: str) -> str:
    """A header's value; empty when there is none, or more than one."""
    values = _values(scope, name)
    return values[0] if len(values) == 1 else ""


def _parsed(content: bytes, *, unique: bool = False) -> Any:
    """The JSON value, None where there is none. unique: a name that comes twice in one object is none either: readers differ about it."""
    try:
        return json.loads(content, object_pairs_hook=_unique if unique else None)
    except (ValueError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found
