"""Routes for schema holds: columns whose misfits wait for an operator (records/schema_holds.py).

Rules: only a column that is held can be decided about, and the audit log keeps who did.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from consumers.http.routes import Acting, Caller, route
from consumers.operators.bounds import LONGEST_WORDS
from consumers.operators.operate import Operations
from consumers.records.schema_holds import SchemaHold, holds_of


class RuleOnSchema(BaseModel):
    """A ruling on one held column."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model_id: Annotated[str, Field(min_length=1, max_length=256)]
    column: Annotated[str, Field(min_length=1, max_length=256)]
    ruling: Literal["accepted", "dismissed"]
    reason: Annotated[str, Field(max_length=LONGEST_WORDS)] = ""


def schema_hold_routes(app: FastAPI, operations: Operations) -> None:
    @route(app, "GET", "/v1/schema-holds")
    def holds(who: Caller) -> tuple[SchemaHold, ...]:
        return holds_of(operations.store, who.tenant)

    @route(app, "POST", "/v1/schema-holds", 409)
    def rule(who: Acting, body: RuleOnSchema) -> SchemaHold:
        return operations.rule_on_schema(who, body.model_id, body.column, body.ruling, body.reason)
