"""Parameters that several routes take: path, page, idempotency key, the revision that a decision rests on, a client.

Rules: every text has a longest length and every number bounds. A body with an unknown field is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

from fastapi import Depends, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException
from starlette.responses import Response

from consumers.errors import Missing
from consumers.operators import bounds
from consumers.readers.models import Allowed, OperatorDecision
from consumers.readers.pagination import MOST_ROWS, PageRequest, Position, asked
from consumers.records import operator_entries

T = TypeVar("T")

Model = Annotated[str, Path(min_length=1, max_length=256)]
Named = Annotated[str, Path(min_length=1, max_length=1024, description="the client's id or its client_key")]
Id = Annotated[str, Path(min_length=1, max_length=128)]
Cursor = Annotated[str | None, Query(max_length=2048, description="next of the page before")]
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS)]
NEXT: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            "Link": {
                "description": 'the next page, rel="next"; absent on the last one',
                "schema": {"type": "string"},
            }
        }
    }
}
Words = Annotated[str, Field(max_length=bounds.LONGEST_WORDS)]
Once = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128, pattern=r"^[!-~]+$")]
Seen = Annotated[
    str | None, Header(alias="If-Match", pattern=r'^"[0-9a-f]{32}"$', description="ETag that the decision rests on")
]
ModelAsked = Annotated[str, Query(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f|]+$")]
ClientAsked = Annotated[str | None, Query(min_length=1, max_length=256)]
ClientKeyAsked = Annotated[str | None, Query(pattern=r"^[0-9a-f]{32}$")]
ModelId = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f|]+$")]
ClientId = Annotated[str, Field(min_length=1, max_length=256)]
CampaignId = Annotated[str, Field(min_length=1, max_length=128)]
CampaignAsked = Annotated[str | None, Query(min_length=1, max_length=128)]
ClientHash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AboutClient(Asked):
    """A client, by id or by hash, on one model or on all (``*``)."""

    model_id: ModelId = operator_entries.EVERY_MODEL
    client_id: ClientId | None = None
    client_key: ClientHash | None = None

    @model_validator(mode="after")
    def _one(self) -> AboutClient:
        if (self.client_id is None) == (self.client_key is None):
            raise ValueError("give either client_id or client_key")
        return self


class AboutClientOrCampaign(Asked):
    """A client, by id or by hash, on one model or on all (``*``), or a campaign, which has one model."""

    model_id: ModelId = operator_entries.EVERY_MODEL
    client_id: ClientId | None = None
    client_key: ClientHash | None = None
    campaign_id: CampaignId | None = None

    @model_validator(mode="after")
    def _one(self) -> AboutClientOrCampaign:
        if (self.client_id, self.client_key, self.campaign_id).count(None) != 2:
            raise ValueError("give either client_id, client_key or campaign_id")
        return self

    @property
    def client(self) -> AboutClient:
        return AboutClient(model_id=self.model_id, client_id=self.client_id, client_key=self.client_key)


@dataclass(frozen=True, slots=True)
class ArrayPart:
    """Which part of an array a request asks for; the answer's head says where the next one is."""

    request: Request
    response: Response
    page: PageRequest

    def of(self, rows: Sequence[T], place: Callable[[T], Position]) -> tuple[T, ...]:
        shown, more = self.page.of(rows, place)
        if more is not None:
            query = self.request.query_params.multi_items()
            following = urlencode([*((k, v) for k, v in query if k != "cursor"), ("cursor", more)])
            self.response.headers["Link"] = f'<?{following}>; rel="next"'
        return shown


def _part(request: Request, response: Response, cursor: Cursor = None, limit: Limit = MOST_ROWS) -> ArrayPart:
    """Raises WrongUse for a cursor of another list."""
    return ArrayPart(request, response, asked(request.url.path, cursor, limit))


Paged = Annotated[ArrayPart, Depends(_part)]


def there(value: T | None) -> T:
    """The value that was asked for. Raises Missing for nothing."""
    if value is None:
        raise Missing("there is no such entry")
    return value


def tag(seen: str | None) -> str | None:
    return seen.strip('"') if seen is not None else None


def about_client(model_id: str, client_id: str | None, client_key: str | None) -> AboutClient:
    if (client_id is None) == (client_key is None):
        raise HTTPException(422, "give either client_id or client_key")
    return AboutClient(model_id=model_id, client_id=client_id, client_key=client_key)


def newest_first(row: OperatorDecision | Allowed) -> Position:
    return Position(float(row.at_s), f"{row.client_key}|{row.model_id}")
