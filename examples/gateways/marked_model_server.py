"""A model server with the reference middleware: graded answers, and marks by which a copy is recognised (docs/watermark.md).

    querywarden watermark create --out watermark.json
    python examples/gateways/marked_model_server.py watermark.json canaries.jsonl [port]       (default 18080)

The application inside answers and logs the truth; the middleware around it changes what suspected clients get. An event in the query log
says ``"canary": true`` where the client got something else than what is logged.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import sys
from pathlib import Path
from typing import Any

import uvicorn

from consumers.watermark.keys import WatermarkKey
from consumers.watermark.middleware import DegradationMiddleware, Receive, Scope, Send
from consumers.watermark.registry import Registry
from consumers.watermark.selection import MarkPolicy

MODEL, LABELS = "fraud-v3", ("honest", "fraud")


def predict(features: list[float]) -> dict[str, Any]:
    """The model: a logistic function, for the example's sake."""
    fraud = round(1 / (1 + math.exp(-max(-50.0, min(50.0, 0.7 * sum(features))))), 6)
    return {"label": LABELS[fraud > 0.5], "probabilities": [round(1 - fraud, 6), fraud]}


async def model_server(scope: Scope, receive: Receive, send: Send) -> None:
    """The application as it was before: it knows nothing of marks but the word that goes into the log."""
    if scope["type"] != "http":
        return
    body = b""
    while (message := await receive()).get("more_body"):
        body += message["body"]
    asked = json.loads(body + message.get("body", b"") or b"{}").get("features", [0.0])
    answer = predict([float(x) for x in asked])
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    event = {
        "timestamp": dt.datetime.now(dt.UTC).isoformat(), "client_id": headers.get("x-api-key", "nobody"), "model_id": MODEL,
        "features": asked, "prediction": answer, "status": 200,
    }  # fmt: skip
    if scope.get("state", {}).get("canary"):
        event["canary"] = True
    print(json.dumps(event), flush=True)  # stands for the query log
    content = json.dumps(answer).encode()
    described = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": described})
    await send({"type": "http.response.body", "body": content})


def main() -> None:
    key = WatermarkKey.load(sys.argv[1])
    app = DegradationMiddleware(
        model_server,
        MODEL,
        key=key,
        registry=Registry(Path(sys.argv[2]), key),
        policy=MarkPolicy(flip_share=0.005, mark_share=0.05),
        labels=LABELS,
    )
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[3]) if len(sys.argv) > 3 else 18080,
        log_level="warning",
        lifespan="off",
    )


if __name__ == "__main__":
    main()
