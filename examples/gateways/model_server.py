"""A model server that answers with less when the gateway says so: the graded response, worked out.

    python examples/gateways/model_server.py [port]       (default 18080)

The gateway copies QueryWarden's `X-QueryWarden-Degrade` to the model server. Its value is a list of steps, separated by commas:

    round=N    probabilities with N decimals
    top1       the most probable label only, no probabilities of others
    noise=S    noise of standard deviation S that never changes the label

Why in this order of strength: rounding costs an honest client nothing and a thief little; top-1 takes away the soft labels that make
copying cheap; noise makes each answer worth less. The noise of one input is always the same: asking again averages nothing out.
A server that does not know a step must ignore it.
"""

from __future__ import annotations

import hmac
import json
import math
import secrets
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NOISE_KEY = secrets.token_bytes(32)
LABELS = ("honest", "fraud")
MAX_BODY_BYTES = 1 << 20


def degraded(probabilities: Sequence[float], steps: str, asked: bytes) -> list[float]:
    """Probabilities after the steps of an ``X-QueryWarden-Degrade`` header; `asked` is the input they answer."""
    kept = list(probabilities)
    best = max(range(len(kept)), key=kept.__getitem__)
    for step in steps.split(","):
        name, _, text = step.strip().partition("=")
        value = _number(text)
        if name == "top1":
            kept = [float(i == best) for i in range(len(kept))]
        elif name == "round" and value is not None:
            kept = [round(p, min(15, max(0, int(value)))) for p in kept]
        elif name == "noise" and value is not None:
            kept = _noisy(kept, value, asked)
        if max(kept) > kept[best]:  # a step may blur the answer, never change it
            kept[best] = max(kept)
    return kept


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _noisy(probabilities: Sequence[float], deviation: float, asked: bytes) -> list[float]:
    noise = []
    for i in range(len(probabilities)):
        digest = hmac.digest(NOISE_KEY, bytes([i]) + asked, "sha256")
        uniform = [(int.from_bytes(digest[k : k + 8], "big") + 1) / 2**64 for k in (0, 8)]
        noise.append(deviation * math.sqrt(-2 * math.log(uniform[0])) * math.cos(2 * math.pi * uniform[1]))
    moved = [max(0.0, p + n) for p, n in zip(probabilities, noise, strict=True)]
    total = sum(moved)
    return [p / total for p in moved] if total else list(probabilities)


def predict(features: Sequence[float]) -> list[float]:
    """The model: a logistic function, for the example's sake."""
    fraud = 1 / (1 + math.exp(-max(-50.0, min(50.0, 0.7 * sum(features)))))
    return [1 - fraud, fraud]


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(min(MAX_BODY_BYTES, int(self.headers.get("Content-Length") or 0)))
        try:
            features = [float(x) for x in json.loads(body)["features"]]
        except (ValueError, KeyError, TypeError):
            self._send(400, {"error": "features, a list of numbers, is wanted"})
            return
        steps = self.headers.get("X-QueryWarden-Degrade", "")
        answer = predict(features)
        label = LABELS[answer.index(max(answer))]
        probabilities = degraded(answer, steps, json.dumps(features).encode())
        self._send(200, {"label": label, "probabilities": probabilities})

    def do_GET(self) -> None:
        self._send(200, {"model": "fraud-v3"})

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 18080
    with ThreadingHTTPServer(("127.0.0.1", port), Answers) as server:
        print(f"model server on http://127.0.0.1:{port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
