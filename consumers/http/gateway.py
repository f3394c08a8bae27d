"""``ANY /v1/authz[/…]``: the answer to a gateway's question whether a request may pass. It comes from memory, as a raw ASGI route.

Rules:
* No answer waits for the store, for another process or for the body of the request.
* 200 lets the request pass, 403 is a block, 429 a throttle. Every answer carries ``X-QueryWarden-Decision`` (clear, watch, degrade,
  throttle or block) and nothing else about detection. Refusals carry ``Retry-After`` and a reference that operators can look up
  (``X-QueryWarden-Reference``, `operators.references`).
* Of all identities and all models that a request names, the most severe decision counts. More than `MOST_VALUES` identities, or more than
  `MOST_VALUES` values and parts of the model header, give 403: one request must not occupy the thread that answers all.
* A throttled client may get `throttle_per_s` requests through; with 0 (the default) none. Its tokens are used by requests that belong to
  it (`Found.first`). Requests that name it beside another client use a second bucket. So adding a client's name takes nothing from that
  client, and putting a name before its own gains a client at most as much again.
* ``X-QueryWarden-Degrade`` asks the model server for a less detailed answer, where the settings say so; otherwise it is ``none``.
  An operator's degrade passes, with such steps.
* ``X-QueryWarden-Client`` is the client's hash where the steps ask for marks (``canary``), otherwise ``none``. Only throttled and degraded
  clients are marked, and only in requests that belong to them: adding a client's name does not get marks registered under it.
* A request without a usable identity, or one that comes before the store was read, passes on routes that are open and is refused on
  routes that are closed (`paths`). Both are counted. HTTP and gRPC judge the same undecoded path.
* The gateway's own credential is checked by `caller`, which returns the tenant.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from starlette.types import Receive, Scope, Send

from consumers.enforcement.restrictions import BLOCK, CLEAR, NOTHING, THROTTLE, Restrictions, Standing
from consumers.http.identities import MOST_VALUES, Identities
from consumers.http.paths import Routes
from consumers.http.token_buckets import TokenBuckets
from consumers.operators.references import HEADER, Cause
from consumers.records.operator_entries import EVERY_MODEL
from consumers.store import ENFORCED, Enforced
from consumers.telemetry.metrics import Metrics
from consumers.watermark.degradation import MARKED_DECISIONS, without_canaries
from consumers.watermark.degradation import NOTHING as NO_DEGRADE

PREFIX = "/v1/authz"
NO_CLIENT = "none"
DEGRADE_STEPS = "top1"
"""What an operator's *degrade* asks of the model server, unless the settings name other steps."""
LONGEST_RETRY_S = 86_400
_FOR_EVER_RETRY_S = 3600
_UNKNOWN_RETRY_S = 1
_ORIGINAL_PATH = (b"x-original-uri", b"x-forwarded-uri")
_TITLES = {
    401: ("unauthorized", "This gateway's credential is missing or not valid."),
    403: ("blocked", "This client may not query this model at present."),
    429: ("throttled", "This client may query this model only slowly at present."),
}

Headers = Iterable[tuple[bytes, bytes]]
Caller = Callable[[Scope], str | None]
"""The tenant that a request's gateway credential is good for, or None. Must not block."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the settings say about answers.

    model_header   names the model that is asked; where it is absent `default_model`, ``*`` the most severe over all
    routes         prefix of the path → open | closed, for clients that cannot be known
    degrade        decision → what to ask of the model server
    throttle_per_s requests a second that a throttled client gets through
    """

    model_header: str = "x-querywarden-model"
    default_model: str = EVERY_MODEL
    routes: Mapping[str, str] = field(default_factory=lambda: {"/": "open"})
    degrade: Mapping[str, str] = field(default_factory=dict)
    throttle_per_s: float = 0.0


class GatewayAnswer(NamedTuple):
    """status: of HTTP; cause: known | unauthorized | a `references.Cause` (for the metric, not for the caller)."""

    status: int
    decision: str
    cause: str
    retry_after_s: int = 0
    degrade: str = NO_DEGRADE
    reference: str = ""
    client: str = NO_CLIENT

    def headers(self) -> list[tuple[str, str]]:
        """What an answer says in headers, over HTTP and gRPC."""
        found = [("x-querywarden-decision", self.decision)]
        if self.status == 200:
            # Sent always: a gateway that copies them overwrites what a client claims.
            found += [("x-querywarden-degrade", self.degrade), ("x-querywarden-client", self.client)]
        if self.retry_after_s:
            found.append(("retry-after", str(self.retry_after_s)))
        if self.reference:
            found.append((HEADER, self.reference))
        return found

    def body(self) -> bytes:
        """A problem (RFC 9457); empty when the request may pass."""
        if self.status == 200:
            return b""
        name, text = _TITLES[self.status]
        reference = f',"reference":"{self.reference}"' if self.reference else ""
        return f'{{"type":"urn:querywarden:{name}","title":"{text}","status":{self.status}{reference}}}'.encode()


class _Bucket(NamedTuple):
    """An allowance. own: of requests that are the client's, and not of those that name it beside somebody else."""

    tenant: str
    client: str
    own: bool


class Gateway:
    """The route; an ASGI application by itself."""

    def __init__(
        self,
        view: Restrictions,
        identities: Identities,
        caller: Caller,
        metrics: Metrics,
        rules: Rules | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._view = view
        self._identities = identities
        self._caller = caller
        self._metrics = metrics
        self._rules = rules or Rules()
        self._clock = clock
        self._model_header = self._rules.model_header.lower().encode("latin-1")
        self._routes = Routes(self._rules.routes)
        self._steps = {decision: _steps(self._rules.degrade, decision) for decision in ENFORCED}
        self._lock = threading.Lock()  # gRPC answers from threads; held for a few additions only
        per_s = self._rules.throttle_per_s
        self._buckets: TokenBuckets[_Bucket] = TokenBuckets(per_s, max(1.0, per_s))
        self._counted: Counter[tuple[str, str]] = Counter()
        self._flushed: Counter[tuple[str, str]] = Counter()
        self._messages: dict[GatewayAnswer, tuple[dict[str, Any], dict[str, Any]]] = {}

    @staticmethod
    def matches(path: str) -> bool:
        return path == PREFIX or path.startswith(PREFIX + "/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.call(scope, scope["headers"], _asked_path(scope))
        start, body = self._messages.get(answer) or self._message(answer)
        await send(start)
        await send(body)

    def call(self, scope: Scope, headers: Headers, path: str) -> GatewayAnswer:
        """The counted answer to a gateway (`scope`: its call, with its credential) about a request's headers and path."""
        begun_s = time.perf_counter()
        tenant = self._caller(scope)
        answer = GatewayAnswer(401, "clear", "unauthorized") if tenant is None else self.answer(tenant, headers, path)
        with self._lock:
            self._counted[answer.decision, answer.cause] += 1
            self._metrics.observe("querywarden_authz_duration_seconds", time.perf_counter() - begun_s)
        return answer

    def answer(self, tenant: str, headers: Headers, path: str) -> GatewayAnswer:
        """The answer to a request of a gateway of `tenant`: its headers (names in lower case) and original path, undecoded."""
        now_s = self._clock()
        found = self._identities.of(tenant, headers)
        if found.crowded:
            return self._refused_unknown(tenant, "crowded", now_s)
        if not found.clients or not self._view.synced:
            cause: Cause = "unsynced" if found.clients else "anonymous"
            # A client may add such a header too: one closed route among them is enough.
            if any(map(self._routes.closed, [path] if path else _original_paths(headers))):
                return self._refused_unknown(tenant, cause, now_s)
            return GatewayAnswer(200, ENFORCED[CLEAR], cause)
        models = self._models(headers)
        if models is None:
            return self._refused_unknown(tenant, "crowded", now_s)
        worst, who = NOTHING, found.clients[0]
        for client in found.clients:
            standing = self._view.worst(tenant, client, models, now_s)
            if standing.strictness > worst.strictness:
                worst, who = standing, client
        if worst.strictness < THROTTLE:
            decision = ENFORCED[worst.strictness]
            return self._passes(decision, _Bucket(tenant, who, who == found.first))
        return self._restricted(worst, _Bucket(tenant, who, who == found.first), now_s)

    def flush(self) -> None:
        """Hand the counters to the metrics and look after the client map; called by the refresher, not by answers."""
        self._identities.refresh()
        for labels, total in list(self._counted.items()):
            if new := total - self._flushed[labels]:
                decision, cause = labels
                self._metrics.add("querywarden_authz_answers_total", new, decision=decision, cause=cause)
                self._flushed[labels] = total

    def _models(self, headers: Headers) -> Collection[str] | None:
        """Models that the model header names, each part of a joined value too, once each; without one the default. None: too many."""
        said, parts = [], 0
        for name, value in headers:
            if name == self._model_header:
                parts += 1 + value.count(b",")
                if parts > MOST_VALUES:
                    return None
                said.append(value.decode("latin-1"))
        if not said:
            return (self._rules.default_model,)
        joined = ",".join(said)
        return dict.fromkeys(said + [part.strip() for part in joined.split(",")] if "," in joined else said)

    def _restricted(self, standing: Standing, bucket: _Bucket, now_s: float) -> GatewayAnswer:
        decision = ENFORCED[standing.strictness]
        left_s = math.ceil(standing.until_s - now_s) if standing.until_s else _FOR_EVER_RETRY_S
        retry_after_s = max(1, min(left_s, LONGEST_RETRY_S))
        if standing.strictness == THROTTLE and self._rules.throttle_per_s > 0:
            wait_s = self._buckets.take(bucket, now_s)
            if wait_s <= 0:
                return self._passes(decision, bucket)
            retry_after_s = min(retry_after_s, math.ceil(wait_s))
        reference = self._identities.references.of(bucket.tenant, decision, bucket.client, now_s)
        status = 403 if standing.strictness == BLOCK else 429
        return GatewayAnswer(status, decision, "known", retry_after_s, reference=reference)

    def _passes(self, decision: Enforced, bucket: _Bucket) -> GatewayAnswer:
        """A known client's request passes; marks are asked for where the request is the client's own."""
        marking, unmarked = self._steps[decision]
        if marking and bucket.own:
            return GatewayAnswer(200, decision, "known", degrade=marking, client=bucket.client)
        return GatewayAnswer(200, decision, "known", degrade=unmarked)

    def _refused_unknown(self, tenant: str, cause: Cause, now_s: float) -> GatewayAnswer:
        reference = self._identities.references.of(tenant, ENFORCED[BLOCK], cause, now_s)
        return GatewayAnswer(403, ENFORCED[BLOCK], cause, _UNKNOWN_RETRY_S, reference=reference)

    def _message(self, answer: GatewayAnswer) -> tuple[dict[str, Any], dict[str, Any]]:
        body = answer.body()
        headers = [(n.encode(), v.encode("latin-1")) for n, v in answer.headers()]
        headers.append((b"content-length", b"%d" % len(body)))
        if body:
            headers.append((b"content-type", b"application/problem+json"))
        start = {"type": "http.response.start", "status": answer.status, "headers": headers}
        messages = start, {"type": "http.response.body", "body": body}
        if answer.status == 200 and answer.client == NO_CLIENT:  # few of them, and nearly all answers
            self._messages[answer] = messages
        return messages


def _steps(degrade: Mapping[str, str], decision: Enforced) -> tuple[str, str]:
    """What is asked of the model server under a decision: with marks (empty: none are asked for), and without."""
    steps = degrade.get(decision, DEGRADE_STEPS if decision == "degrade" else NO_DEGRADE)
    unmarked = without_canaries(steps)
    return steps if unmarked != steps and decision in MARKED_DECISIONS else "", unmarked


def _asked_path(scope: Scope) -> str:
    """The path behind ours, as undecoded as it came."""
    raw = scope.get("raw_path") or b""
    path = raw.decode("latin-1") if raw.startswith(PREFIX.encode()) else scope["path"]
    return str(path[len(PREFIX) :])


def _original_paths(headers: Headers) -> list[str]:
    """Where the request wants to go, as a gateway says it that always asks at the same address; ``/`` if none does."""
    return [v.decode("latin-1").partition("?")[0] for name, v in headers if name in _ORIGINAL_PATH] or ["/"]
