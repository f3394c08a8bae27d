"""Models, their clients with history and notes, and the health of the service.

Rules: a model or client that the tenant does not have is answered with 404, whether another tenant has it or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import FastAPI, Query
from pydantic import Field
from starlette.responses import Response

from consumers.http.api.context import Api
from consumers.http.api.parameters import NEXT, Asked, Cursor, Limit, Model, Named, Once, Paged, there
from consumers.http.routes import Acting, Caller, route
from consumers.operators import bounds
from consumers.readers import models as read_models
from consumers.readers.appeal import Appeal
from consumers.readers.pagination import Position
from detector.policy import State
from detector.query import ClientKey


class Write(Asked):
    text: Annotated[str, Field(min_length=1, max_length=bounds.LONGEST_WORDS, pattern=r"\S")]


@dataclass(frozen=True, slots=True)
class History:
    """When suspicion first reached each level, exposure over queries, and each change of state."""

    trail: tuple[read_models.TrailPoint, ...]
    exposures: tuple[read_models.ExposurePoint, ...]
    history: tuple[read_models.StateChange, ...]


def model_routes(app: FastAPI, api: Api) -> None:
    @route(app, "GET", "/v1/models", answers=NEXT)
    def models(who: Caller, part: Paged) -> tuple[read_models.Model, ...]:
        return part.of(api.read(who.tenant).models(), lambda m: Position(0, m.model_id))

    @route(app, "GET", "/v1/models/{model_id}")
    def model(who: Caller, model_id: Model) -> read_models.Model:
        return there(api.read(who.tenant).model(model_id))

    @route(app, "GET", "/v1/models/{model_id}/clients")
    def clients(
        who: Caller,
        model_id: Model,
        sort: Annotated[Literal["suspicion", "queries", "exposure", "last_seen"], Query()] = "suspicion",
        min_suspicion: Annotated[float, Query(ge=0, le=1)] = 0.0,
        state: Annotated[State | None, Query()] = None,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> read_models.ClientPage:
        read = api.read(who.tenant)
        there(read.model(model_id))
        return read.clients(model_id, sort=sort, min_suspicion=min_suspicion, state=state, cursor=cursor, limit=limit)

    @route(app, "GET", "/v1/models/{model_id}/bound")
    def bound(who: Caller, model_id: Model, n: Annotated[int, Query(ge=1, le=10_000_000)]) -> read_models.ListBound:
        read = api.read(who.tenant)
        there(read.model(model_id))
        return there(read.bound(model_id, n))

    @route(app, "GET", "/v1/models/{model_id}/clients/{client}/appeal")
    def appeal(who: Caller, model_id: Model, client: Named) -> Appeal:
        return there(api.read(who.tenant).appeal(model_id, client))

    @route(app, "GET", "/v1/models/{model_id}/clients/{client}")
    def client(who: Acting, response: Response, model_id: Model, client: Named) -> read_models.ClientDetail:
        found = there(api.read(who.tenant).client(model_id, client))
        api.views.note(who, ClientKey(who.tenant, model_id, found.client.client_key), "api")
        response.headers["ETag"] = f'"{found.revision}"'
        return found

    @route(app, "GET", "/v1/models/{model_id}/clients/{client}/history")
    def history(who: Acting, model_id: Model, client: Named) -> History:
        found = there(api.read(who.tenant).client(model_id, client))
        api.views.note(who, ClientKey(who.tenant, model_id, found.client.client_key), "api")
        return History(found.trail, found.exposures, found.history)

    @route(app, "POST", "/v1/models/{model_id}/clients/{client}/notes", 409, status_code=201)
    def note(who: Acting, model_id: Model, client: Named, body: Write, once: Once = None) -> read_models.Note:
        read = api.read(who.tenant)
        there(read.client(model_id, client))
        made = api.operations.note(who, read.key_of(model_id, client), body.text, once=once)
        return read_models.Note(made.id, body.text, made.actor, made.at_s)

    @route(app, "GET", "/v1/health")
    def health(who: Caller) -> read_models.Health:
        return api.read(who.tenant).health()
