"""Operators' decisions about clients and campaigns: list, make, confirm, release; and the reset of the circuit breaker.

Rules: a decision always ends. A decision about a large campaign waits until a second person confirms it. A dry run is stored and shown, but
enforced nowhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Literal, TypedDict

from fastapi import Body, FastAPI, Query
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from consumers.http.api.context import Api, tell_revision
from consumers.http.api.parameters import (
    NEXT,
    AboutClientOrCampaign,
    Asked,
    CampaignAsked,
    CampaignId,
    ClientAsked,
    ClientKeyAsked,
    ModelAsked,
    ModelId,
    Once,
    Paged,
    Seen,
    Words,
    about_client,
    newest_first,
    tag,
)
from consumers.http.routes import Acting, Caller, route
from consumers.operators import bounds
from consumers.operators.audited_write import DAY_S, Subject
from consumers.readers import models as read_models
from consumers.readers.pagination import Position
from consumers.readers.public import campaign_decision_of
from consumers.records import operator_entries


class Decide(AboutClientOrCampaign):
    state: Literal["block", "throttle", "degrade", "clear"]
    ttl_s: int = Field(DAY_S, ge=1, le=366 * DAY_S, description="how long it holds")
    reason: Words = ""
    note: Words = ""
    simulated: bool = Field(False, description="a dry run: stored and shown, enforced nowhere")


class Confirm(Asked):
    campaign_id: CampaignId
    model_id: ModelId = operator_entries.EVERY_MODEL


class _Terms(TypedDict):
    """How a decision is made, whomever it is about."""

    ttl_s: int
    reason: str
    note: str
    simulated: bool
    once: str | None
    seen: str | None


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

    @route(app, "GET", "/v1/decisions/campaigns", answers=NEXT)
    def campaigns(who: Caller, part: Paged) -> tuple[read_models.CampaignDecision, ...]:
        found = api.read(who.tenant).campaign_decisions()
        return part.of(found, lambda d: Position(float(d.at_s), f"{d.campaign_id}|{d.model_id}|{d.waits}"))

    @route(app, "POST", "/v1/decisions/confirm", 409)
    def confirm(who: Acting, body: Confirm, once: Once = None) -> read_models.CampaignDecision:
        subject = api.decided_campaign(who, body.campaign_id, body.model_id)
        return campaign_decision_of(api.operations.confirm_campaign(who, subject, once=once), waits=False)

    @route(app, "POST", "/v1/decisions", 409, 412, status_code=201)
    def decide(
        who: Acting, response: Response, body: Decide, once: Once = None, seen: Seen = None
    ) -> Decided | read_models.CampaignDecision:
        asked = _Terms(
            ttl_s=body.ttl_s,
            reason=body.reason,
            note=body.note,
            simulated=body.simulated,
            once=once,
            seen=tag(seen),
        )
        if body.campaign_id is not None:
            about = api.campaign(who, body.campaign_id, body.model_id)
            ruled = api.operations.decide_campaign(who, about, body.state, **asked)
            return campaign_decision_of(ruled, waits=api.operations.waits(ruled))
        subject = api.subject(who, body.client)
        made = api.operations.decide(who, subject, body.state, **asked)
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
        campaign_id: CampaignAsked = None,
        withdraw: Annotated[
            bool, Query(description="take an operator's decision back; what was detected holds again")
        ] = False,
        ttl_s: Annotated[int, Query(ge=1, le=366 * DAY_S, description="how long the release holds")] = DAY_S,
        reason: Annotated[str, Query(max_length=bounds.LONGEST_WORDS)] = "",
        once: Once = None,
        seen: Seen = None,
    ) -> read_models.OperatorDecision | read_models.CampaignDecision:
        if campaign_id is not None:
            if client_id is not None or client_key is not None:
                raise HTTPException(422, "give either client_id, client_key or campaign_id")
            if withdraw:
                about = api.decided_campaign(who, campaign_id, model_id)
                gone = api.operations.withdraw_campaign(who, about, once=once, seen=tag(seen))
                return campaign_decision_of(gone, waits=api.operations.waits(gone))
            about = api.campaign(who, campaign_id, model_id)
            ruled = api.operations.decide_campaign(
                who, about, "clear", ttl_s=ttl_s, reason=reason, once=once, seen=tag(seen)
            )
            return campaign_decision_of(ruled, waits=False)
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
