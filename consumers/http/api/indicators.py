"""Routes for indicators of peers: whose are here, and dropping those of a source.

Rules: importing and exporting need the sharing key, which only the command line reads. What a client matches is part of its details.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Path

from consumers.http.routes import Acting, Caller, route
from consumers.operators.bounds import NAME_PATTERN
from consumers.operators.indicators import IndicatorImports
from consumers.operators.operate import Operations
from consumers.readers.indicators import source_of, sources
from consumers.readers.models import IndicatorSource

Source = Annotated[str, Path(pattern=NAME_PATTERN)]


def indicator_routes(app: FastAPI, operations: Operations) -> None:
    imports = IndicatorImports(operations.store, operations.secrets, operations.now_s, operations.mirror)

    @route(app, "GET", "/v1/indicators")
    def listed(who: Caller) -> tuple[IndicatorSource, ...]:
        return sources(operations.store, who.tenant)

    @route(app, "DELETE", "/v1/indicators/{source}")
    def drop(who: Acting, source: Source) -> IndicatorSource:
        return source_of(imports.drop(who, source))
