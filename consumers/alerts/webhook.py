"""Alerts to a web address, signed as Standard Webhooks describes.

Rules:
* Headers: ``webhook-id`` (the alert's uid, the same in every attempt), ``webhook-timestamp`` (seconds), ``webhook-signature``
  (``v1,`` and the base64 of HMAC-SHA256 over ``id.timestamp.body``; one for each key, separated by spaces).
* At most two keys. To rotate, give the new key to the receiver first, then both keys to us, then only the new one.
* `verify` is the receiver's half. docs/alerts.md shows it, and a test runs that text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ssl
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from consumers.alerts import one_by_one
from consumers.alerts.envelope import TYPE, content
from consumers.alerts.finding import Finding, finding
from consumers.alerts.outbound import DEADLINE_S, AllowedHosts, Outbound
from consumers.errors import ConfigError
from consumers.store import OutboxAlert
from consumers.times import second

PREFIX = "whsec_"
MIN_KEY_BYTES, MAX_KEY_BYTES = 24, 64
TOLERANCE_S = 300
DIGEST = "io.querywarden.alerts.digest.v1"


def keys(text: str) -> list[bytes]:
    """One or two keys ``whsec_<base64 of 24 to 64 bytes>``, separated by spaces. Raises ConfigError without naming them."""
    found = []
    for word in text.split():
        try:
            key = base64.b64decode(word.removeprefix(PREFIX), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not word.startswith(PREFIX) or not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
            raise ConfigError(
                f"webhook keys: each is {PREFIX} and the base64 of {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes"
            )
        found.append(key)
    if not 1 <= len(found) <= 2:
        raise ConfigError("webhook keys: give one key, or two during a rotation")
    return found


def signature(key: bytes, webhook_id: str, timestamp_s: int, body: bytes) -> str:
    signed = hmac.digest(key, f"{webhook_id}.{timestamp_s}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(signed).decode()}"


def verify(accepted: Sequence[bytes], headers: Mapping[str, str], body: bytes, now_s: float) -> bool:
    """Whether one of the signatures is by one of the keys, and the message not older or newer than five minutes."""
    try:
        sent_s = int(headers["webhook-timestamp"])
        given = headers["webhook-signature"].split(" ")
    except (KeyError, ValueError):
        return False
    if abs(now_s - sent_s) > TOLERANCE_S:
        return False
    wanted = [signature(key, headers.get("webhook-id", ""), sent_s, body).encode() for key in accepted]
    # Every pair is compared: how long it takes says nothing about which one fitted.
    fits = [hmac.compare_digest(w, g.encode()) for w in wanted for g in given]
    return any(fits)


class WebhookSink:
    """Sink ``webhook:<host>``. `form`: native or ocsf. Raises ConfigError for a URL or a key that can't be right."""

    def __init__(
        self,
        url: str,
        key_text: str,
        *,
        allow: AllowedHosts | None = None,
        form: str = "native",
        context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._keys = keys(key_text)
        self._form = form
        self._clock = clock
        self._out = Outbound(url, what="webhook", allow=allow, context=context, deadline_s=deadline_s)

    @property
    def name(self) -> str:
        return f"webhook:{self._out.target.host}"

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        return one_by_one(alerts, self._send)

    def close(self) -> None:
        self._out.close()

    def _send(self, alert: OutboxAlert) -> None:
        found = finding(alert)
        self._post(found.uid, payload(found, self._form))

    def summary(self, title: str, text: str) -> None:
        """One message about many alerts, of type `DIGEST`. Raises Unavailable, Undeliverable."""
        now_s = int(self._clock())
        content = {"title": title, "text": text}
        self._post(f"digest/{now_s}", {"type": DIGEST, "timestamp": second(now_s), "data": content})

    def _post(self, webhook_id: str, content: dict[str, object]) -> None:
        body = msgspec.json.encode(content)
        sent_s = int(self._clock())
        self._out.post(
            body,
            {
                "Content-Type": "application/json",
                "User-Agent": "QueryWarden",
                "webhook-id": webhook_id,
                "webhook-timestamp": str(sent_s),
                "webhook-signature": " ".join(signature(key, webhook_id, sent_s, body) for key in self._keys),
            },
        )


def payload(found: Finding, form: str) -> dict[str, object]:
    return {
        "type": TYPE.format(activity=found.activity),
        "timestamp": found.time,
        "data": content(found, form),
    }
