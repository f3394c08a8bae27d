"""Errors of the API as ``application/problem+json`` (RFC 9457).

Rules:
* One table maps errors to statuses. `type` is ``urn:querywarden:<name>``. Every problem holds the request id.
* No stack trace, setting or input is repeated. What a caller may not know of looks as if it did not exist (404).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from consumers.errors import Conflict, CorruptState, Missing, QueryWardenError, Refused, Stale, Unavailable, WrongUse

log = logging.getLogger("querywarden.http")

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = "1"

STATUSES: Mapping[type[QueryWardenError], tuple[int, str]] = {
    WrongUse: (422, "wrong-value"),
    Missing: (404, "not-found"),
    Conflict: (409, "conflict"),
    Stale: (412, "changed"),
    Unavailable: (503, "unavailable"),
    CorruptState: (500, "corrupt-state"),
    Refused: (500, "refused"),
}
"""Error → status and name of its type."""

NAMES = {
    400: "bad-request",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    408: "too-slow",
    409: "conflict",
    410: "cursor-gone",
    412: "changed",
    413: "too-large",
    415: "unsupported-media-type",
    422: "wrong-value",
    429: "too-many-requests",
    500: "internal-error",
    503: "unavailable",
}


class Problem(BaseModel):
    """RFC 9457. `errors` says where a request is wrong, never what it said there."""

    type: str
    title: str
    status: int
    detail: str | None = None
    request_id: str | None = None
    errors: list[dict[str, Any]] | None = None


def problem(
    status: int,
    detail: str | None = None,
    *,
    name: str | None = None,
    request_id: str = "",
    headers: Mapping[str, str] | None = None,
    errors: list[dict[str, Any]] | None = None,
) -> Response:
    body: dict[str, Any] = {
        "type": f"urn:querywarden:{name or NAMES.get(status, 'error')}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "request_id": request_id,
    }
    if detail:
        body["detail"] = detail
    if errors:
        body["errors"] = errors
    said = dict(headers or {})
    if status == 401:
        said.setdefault("WWW-Authenticate", 'Bearer realm="querywarden"')
    return Response(json.dumps(body), status, said, MEDIA_TYPE)


def request_id_of(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))


def install(app: FastAPI, methods: Mapping[str, list[str]]) -> None:
    """Answer every error of the application with a problem. methods: path of the table → its methods."""

    async def ours(request: Request, error: Exception) -> Response:
        status, name = next(
            (found for kind, found in STATUSES.items() if isinstance(error, kind)), (500, "internal-error")
        )
        if status >= 500:
            log.error("request failed", extra={"request_id": request_id_of(request), "why": str(error)})
        headers = {"Retry-After": RETRY_AFTER_S} if status == 503 else None
        detail = "the store does not answer; nothing may have happened" if status == 503 else None
        return problem(
            status,
            str(error) if status < 500 else detail,
            name=name,
            request_id=request_id_of(request),
            headers=headers,
        )

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == 405:
            allowed = allowed_methods(request.scope, app, methods)
            headers["Allow"] = ", ".join(allowed) or headers.get("Allow", "GET")
        usual = error.detail == HTTPStatus(error.status_code).phrase
        return problem(
            error.status_code, None if usual else error.detail, request_id=request_id_of(request), headers=headers
        )

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        said = error.errors()
        found = [{"where": ".".join(str(p) for p in e["loc"])[:200], "what": str(e["msg"])[:200]} for e in said[:20]]
        unreadable = any(e["type"] == "json_invalid" for e in said)
        return problem(400 if unreadable else 422, None, request_id=request_id_of(request), errors=found)

    async def unforeseen(request: Request, error: Exception) -> Response:
        return problem(500, request_id=request_id_of(request))  # the middleware `UnforeseenFailures` logs it

    app.add_exception_handler(Exception, unforeseen)
    app.add_exception_handler(QueryWardenError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def allowed_methods(scope: Mapping[str, Any], app: FastAPI, methods: Mapping[str, list[str]]) -> list[str]:
    """Methods of the path that was asked for, over all its routes."""
    path = scope.get("path", "")
    for route in app.routes:
        pattern = getattr(route, "path_regex", None)
        name = getattr(route, "path", "")
        if pattern is not None and name in methods and pattern.match(path):
            return sorted(methods[name])
    return []
