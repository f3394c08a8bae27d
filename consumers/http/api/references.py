"""The route that finds the client behind the reference of a refusal.

Rules: gateways and viewers may not use it, because a reference leads to a client's id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import FastAPI, Path
from starlette.exceptions import HTTPException

from consumers.http.routes import Caller, route
from consumers.readers.queries import Reader
from consumers.readers.refusals import RefusedClient, refused

Reference = Annotated[str, Path(min_length=1, max_length=64, description="what the refused client saw")]


def reference_routes(app: FastAPI, read: Callable[[str], Reader]) -> None:
    @route(app, "GET", "/v1/decisions/references/{reference}")
    def who_was_refused(who: Caller, reference: Reference) -> RefusedClient:
        found = refused(read(who.tenant), reference)
        if found is None:
            raise HTTPException(404)
        return found
