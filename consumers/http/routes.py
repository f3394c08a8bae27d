"""Make a function a route: guarded, documented and counted according to its row of the access table.

Rules:
* The role is checked before anything of the request is parsed, so that a caller without the role learns nothing from a validation error.
* The body of an API request is an object of at most `MOST_NAMES` names. A larger one is refused before its names are checked.
* Every route documents every status that it can answer with. Errors are `problems.Problem`.
* `complete` stops the start if the application has a route without a row, or a row has no route.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Depends, FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from consumers.http.access import BY_ROUTE, MOST_BYTES, TABLE, Access
from consumers.http.auth import Credential
from consumers.http.problems import MEDIA_TYPE, Problem
from consumers.operators.audited_write import Actor

F = TypeVar("F", bound=Callable[..., Any])
MOST_NAMES = 32
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])

_DESCRIPTIONS = {
    400: "the request cannot be read",
    401: "no credential, or one that is not good",
    403: "the credential's role may not do this",
    404: "nothing of that name, or nothing that the caller may know of",
    408: "the body came too slowly",
    409: "it contradicts what is there",
    410: "the cursor cannot be continued from: begin again",
    412: "somebody decided about this client since: read it again",
    413: "the body is too large",
    415: "a content type or a coding that is not taken",
    422: "a value is wrong",
    429: "too many requests",
    503: "the store or the log does not answer",
}
_ALWAYS = (400, 401, 403, 404, 408, 413, 415, 422, 429, 503)
SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "an API key (qw_…) or a token of the identity provider"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "an API key"},
}


def allowed(row: Access, request: Request) -> None:
    """Raises HTTPException: 401 without a credential, 403 with one of another role."""
    who: Credential | None = request.scope["state"].get("credential")
    if row.open:
        return
    if who is None:
        raise HTTPException(401)
    if who.role not in row.roles:
        raise HTTPException(403)


class GuardedRoute(APIRoute):
    """A route that asks its row first."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        original = super().get_route_handler()
        (row,) = (BY_ROUTE[method, self.path_format] for method in self.methods or ())

        async def guarded(request: Request) -> Response:
            allowed(row, request)
            if row.most_bytes == MOST_BYTES and crowded(await request.body()):
                raise HTTPException(422, f"at most {MOST_NAMES} names")
            return await original(request)

        return guarded


def crowded(body: bytes) -> bool:
    """Whether a body is an object of more names than any that is taken. What cannot be read is for others to refuse."""
    if body.count(b":") <= MOST_NAMES:
        return False
    try:
        return len(_object.decode(body)) > MOST_NAMES
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        found = json.loads(body)  # takes other encodings, and words that are no JSON
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and len(found) > MOST_NAMES


def responses(statuses: Iterable[int]) -> dict[int | str, dict[str, Any]]:
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {s: {"description": _DESCRIPTIONS[s], "content": content} for s in sorted({*_ALWAYS, *statuses})}


def route(
    app: FastAPI,
    method: str,
    path: str,
    *also: int,
    answers: Mapping[int | str, dict[str, Any]] | None = None,
    **more: Any,
) -> Callable[[F], F]:
    """Registers a function for a row of the table. also: statuses of problems besides those that any route may answer with;
    answers: statuses that are no problems, as OpenAPI has them."""
    row = BY_ROUTE[method, path]

    def register(function: F) -> F:
        extra = {
            "security": [{name: []} for name in SCHEMES],
            "x-roles": list(row.roles),
            **more.pop("openapi_extra", {}),
        }
        app.router.add_api_route(
            path,
            function,
            methods=[method],
            summary=row.text,
            responses=responses(also) | dict(answers or {}),
            openapi_extra=extra,
            route_class_override=GuardedRoute,
            **more,
        )
        return function

    return register


def document(app: FastAPI, description: str) -> None:
    """OpenAPI 3.1 with the problem's schema, the ways to authenticate, and nothing that isn't so."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            schema["info"]["description"] = description
            parts = schema.setdefault("components", {})
            parts.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
            parts["securitySchemes"] = SCHEMES
            for name in ("HTTPValidationError", "ValidationError"):
                parts["schemas"].pop(name, None)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def complete(app: FastAPI, elsewhere: frozenset[tuple[str, str]]) -> None:
    """Every route has its row and every row its route, here or `elsewhere`. Raises ValueError."""
    found = {
        (method, getattr(one, "path_format", getattr(one, "path", "")))
        for one in app.routes
        for method in (getattr(one, "methods", None) or ())
        if method != "HEAD"
    }
    known = {(row.method, row.path) for row in TABLE}
    if unknown := sorted(found - known):
        raise ValueError(f"routes without a row in the table of access: {unknown}")
    if missing := sorted(known - found - elsewhere):
        raise ValueError(f"rows of the table of access without a route: {missing}")


def caller(request: Request) -> Credential:
    who: Credential | None = request.scope["state"].get("credential")
    if who is None:
        raise HTTPException(401)
    return who


def actor(request: Request) -> Actor:
    """Who acts, for the audit log."""
    who = caller(request)
    name = f"{who.name} [{who.id}]" if who.kind == "key" else who.id
    address = request.client.host if request.client else ""
    return Actor(name, who.role, who.tenant, address, request.scope["state"]["request_id"])


Caller = Annotated[Credential, Depends(caller)]
Acting = Annotated[Actor, Depends(actor)]
