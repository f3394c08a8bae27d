"""Routes for bouncers: the restrictions in force as a list, a stream of changes, and events. `restriction_feed` holds their content.

Rules:
* The caller's cursor comes back in ``X-QueryWarden-Cursor``, in the body and as ``ETag``. If the caller sends it in ``If-None-Match``, it
  gets 304 without a body when nothing changed.
* A gateway's credential sees hashes, a person's ids. Events hold hashes only.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Response
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from consumers.http.access import VIEWERS
from consumers.http.restriction_feed import DecisionFeed, TooManyFollowers
from consumers.http.routes import Caller, route

CURSOR_HEADER = "X-QueryWarden-Cursor"
Since = Annotated[str | None, Query(max_length=256, description="cursor of the answer before")]
Scopes = Annotated[str | None, Query(max_length=256, description="CrowdSec scopes, separated by commas")]


def restriction_routes(app: FastAPI, feed: DecisionFeed | None) -> None:
    @route(app, "GET", "/v1/decisions")
    def listing(
        who: Caller,
        response: Response,
        model: Annotated[str | None, Query(max_length=256)] = None,
        value: Annotated[str | None, Query(max_length=1024, description="a client's hash, or its id")] = None,
        scopes: Scopes = None,
    ) -> list[dict[str, Any]]:
        there = _there(feed)
        response.headers[CURSOR_HEADER] = there.cursor
        return there.listing(who.tenant, named=who.role in VIEWERS, model=model, value=value, scopes=scopes)

    unchanged: dict[int | str, dict[str, Any]] = {
        304: {"description": "nothing changed since the cursor; there is no body"}
    }

    @route(app, "GET", "/v1/decisions/stream", 410, response_model=dict[str, Any], answers=unchanged)
    def stream(
        who: Caller,
        response: Response,
        startup: Annotated[bool, Query(description="everything, not only what changed")] = False,
        since: Since = None,
        scopes: Scopes = None,
        known: Annotated[str | None, Header(alias="If-None-Match", max_length=300, description="ETag")] = None,
    ) -> Any:
        page = _there(feed).page(who.tenant, startup=startup, since=since, named=who.role in VIEWERS, scopes=scopes)
        if page.status == 410:
            raise HTTPException(410, "the cursor cannot be continued from: ask with startup=true")
        if page.status != 200:
            raise HTTPException(503, "nothing was read from the store yet", {"Retry-After": "1"})
        tag = f'"{page.cursor}"'
        if known == tag and not startup and not page.body["new"] and not page.body["deleted"]:
            return Response(status_code=304, headers={"ETag": tag, CURSOR_HEADER: page.cursor})
        response.headers.update({CURSOR_HEADER: page.cursor, "ETag": tag})
        return {**page.body, "cursor": page.cursor}

    @route(
        app,
        "GET",
        "/v1/decisions/events",
        response_class=StreamingResponse,
        status_code=200,
    )
    async def events(
        who: Caller,
        last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=256)] = None,
        since: Since = None,
    ) -> Response:
        # Hashes only: looking ids up would hold up everybody else here.
        told = _there(feed).events(who.tenant, last_event_id or since, follower=who)
        try:
            first = await anext(told)
        except TooManyFollowers:
            raise HTTPException(503, "too many follow already", {"Retry-After": "5"}) from None

        async def all_of_it() -> Any:
            yield first
            async for event in told:
                yield event

        return StreamingResponse(all_of_it(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _there(feed: DecisionFeed | None) -> DecisionFeed:
    if feed is None:
        raise HTTPException(503, "this service does not follow decisions")
    return feed
