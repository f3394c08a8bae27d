"""An alert as the sinks read it: the native JSON, its place among the messages of its finding, a severity and a sentence.

Rules:
* A finding keeps one id (`alert_id`). Each message about it is an update of that id: created, then updated, then closed.
* `severity` follows the decision: block is critical, throttle is high, throttle on an uncalibrated baseline is medium. A closed finding
  keeps its severity, so that every receiver of the finding is told of its end.
* Unknown fields are ignored, so that an older sink reads a newer alert. A body without the required fields is `Undeliverable`.
* Text that a client chose goes through `visible` before a person reads it: shortened and `legible`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from consumers.errors import Undeliverable
from consumers.legible import legible
from consumers.store import OutboxAlert
from consumers.times import milliseconds

Activity = Literal["created", "updated", "closed"]
SEVERITIES = ("medium", "high", "critical")
KINDS = ("client", "campaign")
SHOWN = 256


class FindingVerdict(msgspec.Struct, frozen=True):
    """What a person said about the finding."""

    verdict: str
    by: str = ""
    note: str = ""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One alert; the names are those of the native format. `time_ms` is the time of what it says, not of sending."""

    alert_id: str
    time: str
    kind: str = "client"
    client_id: str | None = None
    members: list[str] = []
    campaign_id: str | None = None
    model_id: str
    state: str
    was: str | None = None
    resolved: bool = False
    suspicion: float = 0.0
    queries_seen: int = 0
    extraction: dict[str, float | None] | None = None
    family: str = ""
    evidence: list[dict[str, Any]] = []
    update: int = 0
    calibrated: bool = True
    reason: str = ""
    enforced: str = "clear"
    tenant: str = "default"
    verdict: FindingVerdict | str | None = None
    sources: list[str] = []
    policy: str = "detection"
    frameworks: list[str] = []
    native: dict[str, Any] = {}
    time_ms: int = 0

    @property
    def uid(self) -> str:
        return f"{self.alert_id}/{self.update}"

    @property
    def activity(self) -> Activity:
        if self.resolved:
            return "closed"
        return "updated" if self.update else "created"

    @property
    def severity(self) -> str:
        """medium | high | critical."""
        if self.policy == "exposure":
            return "medium"
        worst = self.was if self.resolved and self.was else self.state
        if worst == "block":
            return "critical"
        return "high" if self.calibrated else "medium"

    @property
    def subject(self) -> str:
        """The client, or the campaign; as its client wrote it, so not fit to be shown."""
        return self.client_id or self.campaign_id or "unknown"

    @property
    def judged(self) -> FindingVerdict | None:
        return FindingVerdict(self.verdict) if isinstance(self.verdict, str) else self.verdict

    @property
    def title(self) -> str:
        end = {"created": "", "updated": " (update)", "closed": " (resolved)"}[self.activity]
        what = "Exposure budget spent" if self.policy == "exposure" else "Model extraction suspected"
        return f"{what}: {visible(self.model_id)}{end}"

    @property
    def text(self) -> str:
        """One sentence for people; safe to show as plain text."""
        who = f"{self.kind} {visible(self.subject)}"
        if self.policy == "exposure":
            why = visible(str(self.evidence[0].get("text", ""))) if self.evidence else self.reason
            return f"{who} of {visible(self.model_id)} after {self.queries_seen} queries: {why}"
        if self.resolved:
            return f"{who} of {visible(self.model_id)} is clear again after {self.queries_seen} queries"
        fidelity = (self.extraction or {}).get("fidelity")
        much = f", exposure {fidelity:.0%}" if isinstance(fidelity, float) else ""
        why = visible(str(self.evidence[0].get("text", ""))) if self.evidence else self.reason
        return f"{who}: {self.state} after {self.queries_seen} queries, suspicion {self.suspicion:.4f}{much}. {why}"


_decode = msgspec.json.Decoder(Finding)


def finding(alert: OutboxAlert) -> Finding:
    """The alert of an outbox entry. Raises Undeliverable for a body that is none."""
    try:
        found = _decode.decode(alert.body)
        time_ms = milliseconds(found.time)
        return msgspec.structs.replace(found, native=msgspec.json.decode(alert.body), time_ms=time_ms)
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise Undeliverable(f"alert {alert.uid}: {error}") from error


def visible(text: str, limit: int = SHOWN) -> str:
    r"""`text` as a message may show it: at most `limit` of its characters, and `legible`.

    >>> visible("a\r\nb\u202ec")
    'a⟨U+000D⟩⟨U+000A⟩b⟨U+202E⟩c'
    """
    return legible(text if len(text) <= limit else text[: limit - 1] + "…")
