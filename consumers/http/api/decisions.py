"""Operators' decisions: list, make, release; and the reset of the circuit breaker."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from fastapi import Body, FastAPI, Query
from pydantic import Field
from starlette.responses import Response

from consumers.http.api.context import Api, tell_revision
from consumers.http.api.parameters import (
    NEXT,
    AboutClient,
    Asked,
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
from consumers.operators import operate
from consumers.operators.audited_write import DAY_S, Subject
from consumers.readers import models as read_models
from consumers.records import operator_entries


class Decide(AboutClient):
    state: Literal["block", "throttle", "degrade", "clear"]
    ttl_s: int = Field(DAY_S, ge=1, le=366 * DAY_S, description="how long it holds")
    reason: Words = ""
    note: Words = ""
    simulated: bool = Field(False, description="a dry run: stored and shown, enforced nowhere")


class ResetBreaker(Asked):
    reason: Words = ""


@dataclass(frozen=True, slots=True)
class Decided(read_models.OperatorDecision):
    """A decision as it was stored. seen: whether the client was ever assessed there; if not, its name may be misspelt."""

    seen: bool


@dataclass(frozen=True, slots=True)
class Done:
    """When something was done, and by whom."""

    actor: str
    at_s: int


def decision_routes(app: FastAPI, api: Api) -> None:
    @route(app, "GET", "/v1/decisions/operator", answers=NEXT)
    def operators(who: Caller, part: Paged) -> tuple[read_models.OperatorDecision, ...]:
        return part.of(api.read(who.tenant).decisions(simulated=True), newest_first)

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
            seen=tag(seen),
        )
        tell_revision(response, api, who, subject)
        return Decided(
            **asdict(public_decision(made, subject)), seen=api.read(who.tenant).seen(subject.model, subject.client)
        )

    @route(app, "DELETE", "/v1/decisions", 409, 412)
    def release(
        who: Acting,
        response: Response,
        model_id: ModelAsked = operator_entries.EVERY_MODEL,
        client_id: ClientAsked = None,
        client_key: ClientKeyAsked = None,
        withdraw: Annotated[
            bool, Query(description="take an operator's decision back; what was detected holds again")
        ] = False,
        ttl_s: Annotated[int, Query(ge=1, le=366 * DAY_S, description="how long the release holds")] = DAY_S,
        reason: Annotated[str, Query(max_length=operate.LONGEST_WORDS)] = "",
        once: Once = None,
        seen: Seen = None,
    ) -> read_models.OperatorDecision:
        subject = api.subject(who, about_client(model_id, client_id, client_key))
        if withdraw:
            made = api.operations.withdraw(who, subject, once=once, seen=tag(seen))
        else:
            made = api.operations.decide(who, subject, "clear", ttl_s=ttl_s, reason=reason, once=once, seen=tag(seen))
        tell_revision(response, api, who, subject)
        return public_decision(made, subject)

    @route(app, "POST", "/v1/breaker/reset", 409)
    def reset(who: Acting, body: Annotated[ResetBreaker, Body()], once: Once = None) -> Done:
        made = api.operations.reset_breaker(who, body.reason, once=once)
        return Done(made.actor, made.at_s)


def public_decision(made: operator_entries.StoredOperatorDecision, subject: Subject) -> read_models.OperatorDecision:
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
