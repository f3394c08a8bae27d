"""A model server in one function, the middleware around it, and requests to it without a network."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from consumers.watermark.middleware import DegradationMiddleware, Message, Receive, Scope, Send

CLIENT = "0123456789abcdef" * 2
OTHER = "f" * 32
MODEL = "fraud-v3"

Predict = Callable[[Any], Any]


class Reply(NamedTuple):
    """What came back. body: parsed where it is JSON."""

    status: int
    headers: dict[str, str]
    body: Any


class ModelServer:
    """An ASGI application: request JSON → `predict` → response JSON. log: (request, answer, canary) of each call."""

    def __init__(self, predict: Predict, content_type: str = "application/json", status: int = 200) -> None:
        self.predict, self.content_type, self.status, self.parses = predict, content_type, status, True
        self.log: list[tuple[Any, Any, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = json.loads(body) if body and self.parses else None
        answer = self.predict(request)
        self.log.append((request, copy.deepcopy(answer), scope.get("state", {}).get("canary")))
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        headers = [
            (b"content-type", self.content_type.encode()),
            (b"content-length", b"%d" % len(content)),
            (b"etag", b'"x"'),
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        half = len(content) // 2
        await send({"type": "http.response.body", "body": content[:half], "more_body": True})
        await send({"type": "http.response.body", "body": content[half:]})


def ask(
    app: DegradationMiddleware | ModelServer,
    request: Any,
    headers: Mapping[str, str] | list[tuple[str, str]],
    method: str = "POST",
) -> Reply:
    """One request."""
    content = request if isinstance(request, bytes) else json.dumps(request).encode()
    pairs = headers if isinstance(headers, list) else list(headers.items())
    scope: Scope = {
        "type": "http", "method": method, "path": "/predict",
        "headers": [(n.lower().encode(), v.encode()) for n, v in pairs],
    }  # fmt: skip
    parts = [
        {"type": "http.request", "body": content[:7], "more_body": True},
        {"type": "http.request", "body": content[7:], "more_body": False},
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return parts.pop(0) if parts else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    start, body = sent[0], b"".join(m.get("body", b"") for m in sent[1:])
    found = {n.decode().lower(): v.decode() for n, v in start["headers"]}
    assert int(found["content-length"]) == len(body)
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = body
    return Reply(start["status"], found, parsed)


def degrade(steps: str, client: str = CLIENT, decision: str = "throttle") -> dict[str, str]:
    """The headers that a gateway sets."""
    return {"X-QueryWarden-Decision": decision, "X-QueryWarden-Degrade": steps, "X-QueryWarden-Client": client}
