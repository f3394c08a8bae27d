"""Alerts to people through Apprise: Slack, Teams, e-mail and others. Extra ``[notify]``.

Rules:
* Each target is one Apprise URL. Messages are plain text, so that no text of a client becomes markup or a link.
* Apprise reports success or failure, never a cause. So a failure is `Unavailable`.
* If one of several targets fails, the others get the alert again. To avoid this, give each target a process of its own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from consumers.alerts import one_by_one
from consumers.alerts.finding import Finding, finding
from consumers.errors import ConfigError, Unavailable
from consumers.store import OutboxAlert

TYPES = {"medium": "warning", "high": "warning", "critical": "failure"}
MARKUP = re.compile(r"[<>&*_~`\[\]@#|\\]")


def plain(text: str) -> str:
    """Text without what chat programs read as markup, a mention or a link."""
    return MARKUP.sub(lambda m: f"({ord(m[0]):02x})", text).replace("://", ":(2f)/").replace("www.", "www(2e)")


class NotifySink:
    """Sink ``notify``. `urls`: separated by spaces. Raises ConfigError without the extra, or for a URL that Apprise can't read."""

    name = "notify"

    def __init__(self, urls: str, *, dashboard_url: str = "") -> None:
        try:
            import apprise
        except ImportError as error:
            raise ConfigError("alerts.notify needs the extra: pip install 'querywarden[notify]'") from error
        asset = apprise.AppriseAsset(app_id="QueryWarden", app_desc="QueryWarden", app_url="", plugin_paths=[])
        for name in ("apprise", "urllib3"):  # they log URLs, which are secrets here, and texts with client ids
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._apprise: Any = apprise.Apprise(asset=asset)
        self._text: Any = apprise.NotifyFormat.TEXT
        for at, url in enumerate(urls.split()):
            if not self._apprise.add(url):
                raise ConfigError(f"alerts.notify: target {at + 1} is not a URL that Apprise knows")
        self._dashboard_url = dashboard_url

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        return one_by_one(alerts, self._send)

    def summary(self, title: str, text: str) -> None:
        """One message about many alerts. Raises Unavailable."""
        self._notify(title, text, "warning")

    def close(self) -> None:
        """Nothing is kept open."""

    def _send(self, alert: OutboxAlert) -> None:
        found = finding(alert)
        kind = "success" if found.resolved else TYPES[found.severity]
        self._notify(plain(found.title), self._body(found), kind)

    def _body(self, found: Finding) -> str:
        lines = [plain(found.text), f"enforced: {found.enforced}, alert {found.uid}"]
        return "\n".join([*lines, self._dashboard_url] if self._dashboard_url else lines)

    def _notify(self, title: str, body: str, kind: str) -> None:
        try:
            taken = self._apprise.notify(body=body, title=title, notify_type=kind, body_format=self._text)
        except Exception as error:  # noqa: BLE001 — a plugin may raise anything; its text may hold the URL
            raise Unavailable(f"notify: {type(error).__name__}") from None
        if not taken:
            raise Unavailable("notify: a target did not take the message")
