"""Alerts, analysts' verdicts on them, and campaigns.

Rules: a verdict and a case are about the finding, not about one of its alerts; who gave them is in the audit log.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query
from pydantic import Field
from starlette.responses import Response

from consumers.http.api.context import Api
from consumers.http.api.parameters import NEXT, Asked, Cursor, Id, Limit, Once, Paged, Words, there
from consumers.http.routes import Acting, Caller, route
from consumers.operators.audited_write import Subject
from consumers.readers import models as read_models
from consumers.readers.pagination import Position
from consumers.records.decision import campaign_key
from consumers.records.operator_entries import CaseState, VerdictValue
from detector.policy import State


class Judge(Asked):
    verdict: VerdictValue
    note: Words = ""


class Work(Asked):
    assignee: Annotated[str | None, Field(max_length=64, pattern=r"^[A-Za-z0-9._@-]*$")] = None
    state: CaseState | None = None
    note: Words = ""


def alert_routes(app: FastAPI, api: Api) -> None:
    @route(app, "GET", "/v1/alerts")
    def alerts(
        who: Caller,
        model_id: Annotated[str | None, Query(max_length=256)] = None,
        client: Annotated[str | None, Query(max_length=1024, description="id or client_key")] = None,
        state: Annotated[State | None, Query()] = None,
        updates: Annotated[bool, Query(description="each time that a finding was sent, not only the last")] = False,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> read_models.AlertPage:
        return api.read(who.tenant).alerts(
            model=model_id, client=client, state=state, updates=updates, cursor=cursor, limit=limit
        )

    @route(app, "GET", "/v1/alerts/{alert_id}")
    def alert(who: Caller, alert_id: Id) -> read_models.Alert:
        return there(api.read(who.tenant).alert(alert_id))

    @route(app, "POST", "/v1/alerts/{alert_id}/verdict", 409)
    def verdict(who: Acting, alert_id: Id, body: Judge, once: Once = None) -> read_models.Verdict:
        found = there(api.read(who.tenant).alert(alert_id))
        subject, campaign = None, None
        if found.client_key is not None:
            subject = Subject(found.client_key, found.model_id, found.client_id or "")
        elif found.campaign_id is not None:
            campaign = campaign_key(who.tenant, found.model_id, found.campaign_id)
        made = api.operations.record_verdict(
            who, alert_id, body.verdict, subject, campaign=campaign, note=body.note, once=once
        )
        return read_models.Verdict(made.alert_id, made.verdict, made.note, made.actor, made.at_s)

    @route(app, "POST", "/v1/alerts/{alert_id}/case", 409)
    def case(who: Acting, alert_id: Id, body: Work, once: Once = None) -> read_models.AlertCase:
        there(api.read(who.tenant).alert(alert_id))
        made = api.operations.work_on(
            who, alert_id, assignee=body.assignee, state=body.state, note=body.note, once=once
        )
        return read_models.AlertCase(made.alert_id, made.assignee, made.state, made.note, made.actor, made.at_s)

    @route(app, "GET", "/v1/precision")
    def precision(who: Caller) -> tuple[read_models.Precision, ...]:
        return api.read(who.tenant).precision()

    @route(app, "GET", "/v1/campaigns", answers=NEXT)
    def campaigns(who: Caller, part: Paged) -> tuple[read_models.Campaign, ...]:
        found = api.read(who.tenant).campaigns()
        return part.of(found, lambda c: Position(c.suspicion, f"{c.campaign_id}|{c.model_id}"))

    @route(app, "GET", "/v1/campaigns/{campaign_id}")
    def campaign(who: Caller, response: Response, campaign_id: Id) -> read_models.Campaign:
        read = api.read(who.tenant)
        found = there(read.campaign(campaign_id))
        response.headers["ETag"] = f'"{read.campaign_revision(found)}"'
        return found
