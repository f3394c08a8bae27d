"""The allowlist: clients that are never throttled or blocked.

Rules: an entry replaces the one for the same client and model. `If-Match` refuses a change of an entry that somebody changed in between.
"""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import Field
from starlette.responses import Response

from consumers.http.api.context import Api, tell_revision
from consumers.http.api.parameters import (
    NEXT,
    AboutClient,
    ClientAsked,
    ClientKeyAsked,
    ModelAsked,
    Once,
    Paged,
    Seen,
    Words,
    about_client,
    newest_first,
    tag,
)
from consumers.http.routes import Acting, Caller, route
from consumers.operators.audited_write import DAY_S, Subject
from consumers.readers import models as read_models
from consumers.records import operator_entries


class Allow(AboutClient):
    ttl_s: int = Field(0, ge=0, le=3650 * DAY_S, description="0: until it is removed")
    reason: Words = ""


def allowlist_routes(app: FastAPI, api: Api) -> None:
    @route(app, "GET", "/v1/allowlist", answers=NEXT)
    def allowlist(who: Caller, part: Paged) -> tuple[read_models.Allowed, ...]:
        return part.of(api.read(who.tenant).allowlist(), newest_first)

    @route(app, "POST", "/v1/allowlist", 409, 412, status_code=201)
    def allow(
        who: Acting, response: Response, body: Allow, once: Once = None, seen: Seen = None
    ) -> read_models.Allowed:
        subject = api.subject(who, body)
        made = api.operations.allow(who, subject, ttl_s=body.ttl_s, reason=body.reason, once=once, seen=tag(seen))
        tell_revision(response, api, who, subject)
        return public_entry(made, subject)

    @route(app, "DELETE", "/v1/allowlist", 409, 412)
    def disallow(
        who: Acting,
        response: Response,
        model_id: ModelAsked = operator_entries.EVERY_MODEL,
        client_id: ClientAsked = None,
        client_key: ClientKeyAsked = None,
        once: Once = None,
        seen: Seen = None,
    ) -> read_models.Allowed:
        subject = api.subject(who, about_client(model_id, client_id, client_key))
        gone = api.operations.disallow(who, subject, once=once, seen=tag(seen))
        tell_revision(response, api, who, subject)
        return public_entry(gone, subject)


def public_entry(made: operator_entries.AllowlistEntry, subject: Subject) -> read_models.Allowed:
    return read_models.Allowed(
        subject.client_id, made.client, made.model, made.until_s, made.reason, made.actor, made.at_s, made.origin
    )
