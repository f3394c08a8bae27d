"""The routes of the API: what they take and what they answer. Who may use them is in `access`; `readers` and `operate` do the work.

Rules:

* A route parses, asks one thing of the layer below, and answers a typed value. Nothing is decided here.
* Everything is read for the caller's tenant; what belongs to another looks like what isn't there.
* A client is named by its id or by its `client_key`, the keyed hash that every answer carries: put that into addresses.
* A page holds at most 1,000 rows. Where the list is an object, `next` is the cursor of the next page; where it is an array, the
  header ``Link`` names the next page (RFC 8288).
* Changes take an ``Idempotency-Key``: the same key, the same answer, one effect, for a day.
"""

from __future__ import annotations

import importlib.metadata
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlencode

import anyio.to_thread
import msgspec
from fastapi import Body, Depends, FastAPI, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute

from consumers.errors import Missing
from consumers.http import bridge, problems
from consumers.http.access import methods_by_path
from consumers.http.auth import KeyRing
from consumers.http.decisions import feed_routes
from consumers.http.refusals import refusal_routes
from consumers.http.restriction_feed import DecisionFeed
from consumers.http.routes import Acting, Caller, complete, document, route
from consumers.http.schema import schema_routes
from consumers.operators import operate
from consumers.operators.audit import stored_rows
from consumers.operators.operate import Actor, Operations, Subject
from consumers.readers import models as read_models
from consumers.readers.pagination import MOST_ROWS, Page, Place, asked
from consumers.readers.queries import Reader
from consumers.records import operator_entries
from consumers.records.decision import campaign_key

ELSEWHERE = frozenset({("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"), ("ANY", "/v1/authz")})
"""Rows whose paths are answered before the API: see `front`."""

MOST_AUDIT_ROWS = 10_000
_KEPT_TENANTS = 256
DESCRIPTION = "Clients whose prediction queries look like model extraction: scores, evidence, decisions."

T = TypeVar("T")

Model = Annotated[str, Path(min_length=1, max_length=256)]
Named = Annotated[str, Path(min_length=1, max_length=1024, description="the client's id or its client_key")]
Id = Annotated[str, Path(min_length=1, max_length=128)]
Cursor = Annotated[str | None, Query(max_length=2048, description="next of the page before")]
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS)]
NEXT: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            "Link": {
                "description": 'the next page, rel="next"; absent on the last one',
                "schema": {"type": "string"},
            }
        }
    }
}
Words = Annotated[str, Field(max_length=operate.LONGEST_WORDS)]
Once = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128, pattern=r"^[!-~]+$")]
Seen = Annotated[
    str | None, Header(alias="If-Match", pattern=r'^"[0-9a-f]{32}"$', description="ETag that the decision rests on")
]
ModelId = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f|]+$")]
ClientId = Annotated[str, Field(min_length=1, max_length=256)]
ClientHash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AboutClient(Asked):
    """A client, by id or by hash, on one model or on all (``*``)."""

    model_id: ModelId = operator_entries.EVERY_MODEL
    client_id: ClientId | None = None
    client_key: ClientHash | None = None

    @model_validator(mode="after")
    def _one(self) -> AboutClient:
        if (self.client_id is None) == (self.client_key is None):
            raise ValueError("give either client_id or client_key")
        return self


class Decide(AboutClient):
    state: Literal["block", "throttle", "clear"]
    ttl_s: int = Field(operate.DAY_S, ge=1, le=366 * operate.DAY_S, description="how long it holds")
    reason: Words = ""
    note: Words = ""
    simulated: bool = Field(False, description="a dry run: stored and shown, enforced nowhere")


class Allow(AboutClient):
    ttl_s: int = Field(0, ge=0, le=3650 * operate.DAY_S, description="0: until it is removed")
    reason: Words = ""


class Judge(Asked):
    verdict: Literal["true_positive", "false_positive"]
    note: Words = ""


class Write(Asked):
    text: Annotated[str, Field(min_length=1, max_length=operate.LONGEST_WORDS, pattern=r"\S")]


class MakeKey(Asked):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    role: Literal["gateway", "viewer", "analyst", "operator", "admin", "ingest"]
    ttl_s: int = Field(365 * operate.DAY_S, ge=1, le=3650 * operate.DAY_S)


class ResetBreaker(Asked):
    reason: Words = ""


@dataclass(frozen=True, slots=True)
class Decided(read_models.OperatorDecision):
    """A decision as it was stored. seen: whether the client was ever assessed there; if not, its name may be misspelt."""

    seen: bool


@dataclass(frozen=True, slots=True)
class Key:
    """An API key. key: its text, only in the answer that made it."""

    prefix: str
    name: str
    role: str
    created_s: int
    expires_s: int
    actor: str
    key: str | None = None


@dataclass(frozen=True, slots=True)
class History:
    """When suspicion first reached each level, what could be copied over queries, and each change of state."""

    trail: tuple[read_models.TrailPoint, ...]
    exposures: tuple[read_models.ExposurePoint, ...]
    history: tuple[read_models.StateChange, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """When something was done, and by whom."""

    actor: str
    at_s: int


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A row of the audit log. before, after: hashes of what was there and of what is."""

    n: int
    ts: str
    actor: str
    role: str
    ip: str
    action: str
    object: str
    before: str
    after: str
    request_id: str
    hash: str


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Rows of one's own tenant; `next` is to be given as `after`."""

    items: tuple[AuditRow, ...]
    next: int | None


@dataclass(slots=True)
class Api:
    """What the routes stand on.

    feed     restrictions in force, None without
    bridge   None where this service does not write the log
    """

    reader: Reader
    operations: Operations
    keys: KeyRing
    feed: DecisionFeed | None = None
    bridge: bridge.Bridge | None = None
    _of: OrderedDict[str, Reader] = field(default_factory=OrderedDict)

    def read(self, tenant: str) -> Reader:
        """The reader of a tenant, with what it remembers."""
        found = self._of.get(tenant)
        if found is None:
            found = self._of[tenant] = self.reader.of(tenant)
            while len(self._of) > _KEPT_TENANTS:
                self._of.popitem(last=False)
        return found

    def subject(self, actor: Actor, about: AboutClient) -> Subject:
        """Whom it is about. A `client_key` must be that of a client of the tenant: raises Missing."""
        if about.client_id is not None:
            return self.operations.subject(actor.tenant, about.model_id, about.client_id)
        read, key = self.read(actor.tenant), about.client_key or ""
        everywhere = about.model_id == operator_entries.EVERY_MODEL
        for model in (
            (operator_entries.EVERY_MODEL, *(m.model_id for m in read.models())) if everywhere else (about.model_id,)
        ):
            client = read.named(model, key)
            if client is not None:
                return Subject(key, about.model_id, client)
        raise Missing("no such client")


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of an array a request asks for; the answer's head says where the next one is."""

    request: Request
    response: Response
    page: Page

    def of(self, rows: Sequence[T], place: Callable[[T], Place]) -> tuple[T, ...]:
        shown, more = self.page.of(rows, place)
        if more is not None:
            query = self.request.query_params.multi_items()
            following = urlencode([*((k, v) for k, v in query if k != "cursor"), ("cursor", more)])
            self.response.headers["Link"] = f'<?{following}>; rel="next"'
        return shown


def _part(request: Request, response: Response, cursor: Cursor = None, limit: Limit = MOST_ROWS) -> Part:
    """Raises WrongUse for a cursor of another list."""
    return Part(request, response, asked(request.url.path, cursor, limit))


Paged = Annotated[Part, Depends(_part)]


def build(api: Api, pages: Sequence[BaseRoute] = ()) -> FastAPI:
    """The application, with the dashboard's pages. Raises ValueError when a route is not in the table of access."""
    version = importlib.metadata.version("querywarden")
    app = FastAPI(
        title="QueryWarden",
        version=version,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
    )
    problems.install(app, methods_by_path())
    _models(app, api)
    _findings(app, api)
    feed_routes(app, api.feed)
    refusal_routes(app, api.read)
    _decisions(app, api)
    _allowlist(app, api)
    schema_routes(app, api.operations)
    _keys(app, api)
    _queries(app, api)
    document(app, DESCRIPTION)
    complete(app, ELSEWHERE)
    app.router.routes.extend(pages)  # they ask for a session themselves
    return app


def _models(app: FastAPI, api: Api) -> None:
    @route(app, "GET", "/v1/models", answers=NEXT)
    def models(who: Caller, part: Paged) -> tuple[read_models.Model, ...]:
        return part.of(api.read(who.tenant).models(), lambda m: Place(0, m.model_id))

    @route(app, "GET", "/v1/models/{model_id}")
    def model(who: Caller, model_id: Model) -> read_models.Model:
        return _there(api.read(who.tenant).model(model_id))

    @route(app, "GET", "/v1/models/{model_id}/clients")
    def clients(
        who: Caller,
        model_id: Model,
        sort: Annotated[Literal["suspicion", "queries", "exposure", "last_seen"], Query()] = "suspicion",
        min_suspicion: Annotated[float, Query(ge=0, le=1)] = 0.0,
        state: Annotated[Literal["clear", "watch", "throttle", "block"] | None, Query()] = None,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> read_models.ClientPage:
        read = api.read(who.tenant)
        _there(read.model(model_id))
        return read.clients(model_id, sort=sort, min_suspicion=min_suspicion, state=state, cursor=cursor, limit=limit)

    @route(app, "GET", "/v1/models/{model_id}/clients/{client}")
    def client(who: Caller, response: Response, model_id: Model, client: Named) -> read_models.ClientDetail:
        found = _there(api.read(who.tenant).client(model_id, client))
        response.headers["ETag"] = f'"{found.revision}"'
        return found

    @route(app, "GET", "/v1/models/{model_id}/clients/{client}/history")
    def history(who: Caller, model_id: Model, client: Named) -> History:
        found = _there(api.read(who.tenant).client(model_id, client))
        return History(found.trail, found.exposures, found.history)

    @route(app, "POST", "/v1/models/{model_id}/clients/{client}/notes", 409, status_code=201)
    def note(who: Acting, model_id: Model, client: Named, body: Write, once: Once = None) -> read_models.Note:
        read = api.read(who.tenant)
        _there(read.client(model_id, client))
        made = api.operations.note(who, read.key_of(model_id, client), body.text, once=once)
        return read_models.Note(made.id, body.text, made.actor, made.at_s)

    @route(app, "GET", "/v1/health")
    def health(who: Caller) -> read_models.Health:
        return api.read(who.tenant).health()


def _findings(app: FastAPI, api: Api) -> None:
    @route(app, "GET", "/v1/alerts")
    def alerts(
        who: Caller,
        model_id: Annotated[str | None, Query(max_length=256)] = None,
        client: Annotated[str | None, Query(max_length=1024, description="id or client_key")] = None,
        state: Annotated[Literal["clear", "watch", "throttle", "block"] | None, Query()] = None,
        updates: Annotated[bool, Query(description="each time that a finding was sent, not only the last")] = False,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> read_models.AlertPage:
        return api.read(who.tenant).alerts(
            model=model_id, client=client, state=state, updates=updates, cursor=cursor, limit=limit
        )

    @route(app, "GET", "/v1/alerts/{alert_id}")
    def alert(who: Caller, alert_id: Id) -> read_models.Alert:
        return _there(api.read(who.tenant).alert(alert_id))

    @route(app, "POST", "/v1/alerts/{alert_id}/verdict", 409)
    def verdict(who: Acting, alert_id: Id, body: Judge, once: Once = None) -> read_models.Verdict:
        found = _there(api.read(who.tenant).alert(alert_id))
        subject, campaign = None, None
        if found.client_key is not None:
            subject = Subject(found.client_key, found.model_id, found.client_id or "")
        elif found.campaign_id is not None:
            campaign = campaign_key(who.tenant, found.model_id, found.campaign_id)
        made = api.operations.judge(who, alert_id, body.verdict, subject, campaign=campaign, note=body.note, once=once)
        return read_models.Verdict(made.alert_id, made.verdict, made.note, made.actor, made.at_s)

    @route(app, "GET", "/v1/campaigns", answers=NEXT)
    def campaigns(who: Caller, part: Paged) -> tuple[read_models.Campaign, ...]:
        found = api.read(who.tenant).campaigns()
        return part.of(found, lambda c: Place(c.suspicion, f"{c.campaign_id}|{c.model_id}"))

    @route(app, "GET", "/v1/campaigns/{campaign_id}")
    def campaign(who: Caller, campaign_id: Id) -> read_models.Campaign:
        return _there(api.read(who.tenant).campaign(campaign_id))


def _decisions(app: FastAPI, api: Api) -> None:
    @route(app, "GET", "/v1/decisions/operator", answers=NEXT)
    def operators(who: Caller, part: Paged) -> tuple[read_models.OperatorDecision, ...]:
        return part.of(api.read(who.tenant).decisions(simulated=True), _newest)

    @route(app, "POST", "/v1/decisions", 409, 412, status_code=201)
    def decide(who: Acting, response: Response, body: Decide, once: Once = None, seen: Seen = None) -> Decided:
        subject = api.subject(who, body)
        made = api.operations.decide(
            who,
            subject,
            body.state,
            ttl_s=body.ttl_s,
            reason=body.reason,
            note=body.note,
            simulated=body.simulated,
            once=once,
            seen=_tag(seen),
        )
        _tagged(response, api, who, subject)
        return Decided(**asdict(_ruled(made, subject)), seen=api.read(who.tenant).seen(subject.model, subject.client))

    @route(app, "DELETE", "/v1/decisions", 409, 412)
    def release(
        who: Acting,
        response: Response,
        model_id: Annotated[
            str, Query(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f|]+$")
        ] = operator_entries.EVERY_MODEL,
        client_id: Annotated[str | None, Query(min_length=1, max_length=256)] = None,
        client_key: Annotated[str | None, Query(pattern=r"^[0-9a-f]{32}$")] = None,
        withdraw: Annotated[
            bool, Query(description="take an operator's decision back; what was detected holds again")
        ] = False,
        ttl_s: Annotated[
            int, Query(ge=1, le=366 * operate.DAY_S, description="how long the release holds")
        ] = operate.DAY_S,
        reason: Annotated[str, Query(max_length=operate.LONGEST_WORDS)] = "",
        once: Once = None,
        seen: Seen = None,
    ) -> read_models.OperatorDecision:
        subject, tag = api.subject(who, _about(model_id, client_id, client_key)), _tag(seen)
        if withdraw:
            made = api.operations.withdraw(who, subject, once=once, seen=tag)
        else:
            made = api.operations.decide(who, subject, "clear", ttl_s=ttl_s, reason=reason, once=once, seen=tag)
        _tagged(response, api, who, subject)
        return _ruled(made, subject)

    @route(app, "POST", "/v1/breaker/reset", 409)
    def reset(who: Acting, body: Annotated[ResetBreaker, Body()], once: Once = None) -> Done:
        made = api.operations.reset_breaker(who, body.reason, once=once)
        return Done(made.actor, made.at_s)


def _allowlist(app: FastAPI, api: Api) -> None:
    @route(app, "GET", "/v1/allowlist", answers=NEXT)
    def allowlist(who: Caller, part: Paged) -> tuple[read_models.Allowed, ...]:
        return part.of(api.read(who.tenant).allowlist(), _newest)

    @route(app, "POST", "/v1/allowlist", 409, 412, status_code=201)
    def allow(
        who: Acting, response: Response, body: Allow, once: Once = None, seen: Seen = None
    ) -> read_models.Allowed:
        subject = api.subject(who, body)
        made = api.operations.allow(who, subject, ttl_s=body.ttl_s, reason=body.reason, once=once, seen=_tag(seen))
        _tagged(response, api, who, subject)
        return _allowed(made, subject)

    @route(app, "DELETE", "/v1/allowlist", 409, 412)
    def disallow(
        who: Acting,
        response: Response,
        model_id: Annotated[
            str, Query(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f|]+$")
        ] = operator_entries.EVERY_MODEL,
        client_id: Annotated[str | None, Query(min_length=1, max_length=256)] = None,
        client_key: Annotated[str | None, Query(pattern=r"^[0-9a-f]{32}$")] = None,
        once: Once = None,
        seen: Seen = None,
    ) -> read_models.Allowed:
        subject = api.subject(who, _about(model_id, client_id, client_key))
        gone = api.operations.disallow(who, subject, once=once, seen=_tag(seen))
        _tagged(response, api, who, subject)
        return _allowed(gone, subject)


def _keys(app: FastAPI, api: Api) -> None:
    @route(app, "GET", "/v1/keys", answers=NEXT)
    def keys(who: Caller, part: Paged) -> tuple[Key, ...]:
        return part.of([_key(one) for one in api.operations.keys(who.tenant)], _by_name)

    @route(app, "POST", "/v1/keys", 409, status_code=201)
    def make(who: Acting, body: MakeKey, once: Once = None) -> Key:
        made, text = api.operations.create_key(who, body.name, body.role, ttl_s=body.ttl_s, once=once)
        api.keys.refresh(api.operations.store)
        return _key(made, text)

    @route(app, "DELETE", "/v1/keys/{prefix}", 409)
    def revoke(who: Acting, prefix: Id, once: Once = None) -> Key:
        gone = api.operations.revoke_key(who, prefix, lost=_lost(api, who, prefix), once=once)
        api.keys.refresh(api.operations.store)
        return _key(gone)

    @route(app, "GET", "/v1/audit")
    def audit(who: Caller, after: Annotated[int, Query(ge=0, le=2**53)] = 0, limit: Limit = 100) -> AuditPage:
        items: list[AuditRow] = []
        for read, (number, line) in enumerate(stored_rows(api.operations.store, after), 1):
            row: dict[str, Any] = msgspec.json.decode(line)
            if row["tenant"] == who.tenant:
                items.append(AuditRow(**{name: row[name] for name in AuditRow.__dataclass_fields__}))
            if len(items) == limit or read == MOST_AUDIT_ROWS:
                return AuditPage(tuple(items), number)
        return AuditPage(tuple(items), None)


def _queries(app: FastAPI, api: Api) -> None:
    text = {"schema": {"type": "string"}}
    content = dict.fromkeys((bridge.NDJSON[0], bridge.JSON, bridge.CLOUD_EVENT, bridge.CLOUD_BATCH), text)
    extra = {"requestBody": {"required": True, "content": {k: {"schema": {}} for k in content}}}

    def taken(there: bridge.Bridge, headers: Mapping[str, str], body: bytes) -> bridge.Receipt:
        return there.take(bridge.records(headers.get("content-type", ""), headers, body))

    @route(app, "POST", "/v1/queries", openapi_extra=extra)
    async def queries(who: Caller, request: Request) -> bridge.Receipt:
        if api.bridge is None:
            raise HTTPException(503, "this service does not write the log")
        if who.tenant != api.bridge.tenant:
            raise HTTPException(403, "this bridge writes the log of another tenant")
        try:
            return await anyio.to_thread.run_sync(taken, api.bridge, request.headers, await request.body())
        except bridge.UnknownType as error:
            raise HTTPException(415, f"not taken: {str(error)[:100]}") from None
        except bridge.Unreadable as error:
            raise HTTPException(400, str(error)) from None
        except bridge.NotWritten as error:
            return _not_written(request, error)  # type: ignore[return-value]


def _not_written(request: Request, error: bridge.NotWritten) -> Response:
    missing = [{"where": f"record {i}", "what": "not written"} for i in error.indexes]
    detail = f"{len(error.indexes)} records were not written, {error.receipt.accepted} were: send those again"
    request_id = problems.request_id_of(request)
    headers = {"Retry-After": problems.RETRY_AFTER_S}
    return problems.problem(503, detail, request_id=request_id, headers=headers, errors=missing)


def _there(found: T | None) -> T:
    """What was found. Raises Missing for nothing."""
    if found is None:
        raise Missing("nothing of that name")
    return found


def _tag(seen: str | None) -> str | None:
    return seen.strip('"') if seen is not None else None


def _tagged(response: Response, api: Api, who: Actor, subject: Subject) -> None:
    """Say what the next change may rest on."""
    response.headers["ETag"] = f'"{api.operations.revision(who.tenant, subject)}"'


def _about(model_id: str, client_id: str | None, client_key: str | None) -> AboutClient:
    if (client_id is None) == (client_key is None):
        raise HTTPException(422, "give either client_id or client_key")
    return AboutClient(model_id=model_id, client_id=client_id, client_key=client_key)


def _ruled(made: operator_entries.StoredOperatorDecision, subject: Subject) -> read_models.OperatorDecision:
    return read_models.OperatorDecision(
        subject.client_id,
        made.client,
        made.model,
        made.state,
        made.until_s,
        made.simulated,
        made.reason,
        made.note,
        made.actor,
        made.at_s,
    )


def _allowed(made: operator_entries.AllowlistEntry, subject: Subject) -> read_models.Allowed:
    return read_models.Allowed(
        subject.client_id, made.client, made.model, made.until_s, made.reason, made.actor, made.at_s, made.origin
    )


def _by_name(one: Key) -> Place:
    return Place(0, f"{one.name}|{one.created_s:012d}|{one.prefix}")


def _newest(one: read_models.OperatorDecision | read_models.Allowed) -> Place:
    return Place(float(one.at_s), f"{one.client_key}|{one.model_id}")


def _lost(api: Api, who: Actor, prefix: str) -> operator_entries.ApiKey | None:
    """A key of the caller's tenant that this service remembers and the store has lost."""
    key = api.keys.lost().get(prefix)
    if key is None or key.tenant != who.tenant:
        return None
    return operator_entries.ApiKey(prefix, key.digest, key.name, key.role, 0, key.expires_s, "")


def _key(made: operator_entries.ApiKey, text: str | None = None) -> Key:
    return Key(made.prefix, made.name, made.role, made.created_s, made.expires_s, made.actor, text)
