"""A webhook that is not well: some posts are refused, some taken and answered with an error, some never answered.

taken  uid → how often it was taken; a post whose signature does not fit is remembered in `strange`
"""

from __future__ import annotations

import base64
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from consumers.alerts import webhook

KEY = webhook.PREFIX + base64.b64encode(b"k" * 32).decode()
ILLS = ("refuse", "too many", "take and fail", "say nothing")
ILL_SHARE = 0.35


class FlakyWebhook:
    def __init__(self, seed: int) -> None:
        self.taken: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.strange = 0
        self.well = False
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        flaky = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                self._answer(flaky.post({k.lower(): v for k, v in self.headers.items()}, body))

            def _answer(self, status: int) -> None:
                if not status:
                    time.sleep(1.0)
                    self.close_connection = True
                    return
                self.send_response(status)
                if status == 429:
                    self.send_header("retry-after", "1")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def settings(self) -> dict[str, str]:
        return {
            "QUERYWARDEN_ALERTS__WEBHOOK__URL": f"http://127.0.0.1:{self._server.server_port}/hook",
            "QUERYWARDEN_ALERTS__WEBHOOK__KEYS": KEY,
            "QUERYWARDEN_ALERTS__WEBHOOK__ALLOW": "127.0.0.1",
        }

    def post(self, headers: dict[str, str], body: bytes) -> int:
        """Status to answer with; 0: none."""
        with self._lock:
            if not webhook.verify(webhook.keys(KEY), headers, body, time.time()):
                self.strange += 1
                return 401
            ill = not self.well and self._rng.random() < ILL_SHARE
            what = self._rng.choice(ILLS) if ill else "take"
            self.answers[what] += 1
            if "take" in what:
                self.taken[headers["webhook-id"]] += 1
            return {"take": 204, "refuse": 503, "too many": 429, "take and fail": 500, "say nothing": 0}[what]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
