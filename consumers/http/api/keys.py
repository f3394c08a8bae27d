"""API keys: list, make, revoke.

Rules: the text of a key is in the answer that made it and nowhere else. A change counts in this process at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import FastAPI
from pydantic import Field

from consumers.http.api.context import Api
from consumers.http.api.parameters import NEXT, Asked, Id, Once, Paged
from consumers.http.routes import Acting, Caller, route
from consumers.operators.audited_write import DAY_S, Actor
from consumers.operators.bounds import NAME_PATTERN
from consumers.readers.pagination import Position
from consumers.records import operator_entries
from consumers.records.operator_entries import Role


class MakeKey(Asked):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    role: Role
    ttl_s: int = Field(365 * DAY_S, ge=1, le=3650 * DAY_S)


@dataclass(frozen=True, slots=True)
class Key:
    """An API key. key: its text, only in the answer that made it."""

    prefix: str
    name: str
    role: str
    created_s: int
    expires_s: int
    actor: str
    key: str | None = None


def key_routes(app: FastAPI, api: Api) -> None:
    @route(app, "GET", "/v1/keys", answers=NEXT)
    def keys(who: Caller, part: Paged) -> tuple[Key, ...]:
        return part.of([public_key(one) for one in api.operations.keys(who.tenant)], by_name)

    @route(app, "POST", "/v1/keys", 409, status_code=201)
    def make(who: Acting, body: MakeKey, once: Once = None) -> Key:
        made, text = api.operations.create_key(who, body.name, body.role, ttl_s=body.ttl_s, once=once)
        api.keys.refresh(api.operations.store)
        return public_key(made, text)

    @route(app, "DELETE", "/v1/keys/{prefix}", 409)
    def revoke(who: Acting, prefix: Id, once: Once = None) -> Key:
        gone = api.operations.revoke_key(who, prefix, lost=lost_key(api, who, prefix), once=once)
        api.keys.refresh(api.operations.store)
        return public_key(gone)


def by_name(one: Key) -> Position:
    return Position(0, f"{one.name}|{one.created_s:012d}|{one.prefix}")


def lost_key(api: Api, who: Actor, prefix: str) -> operator_entries.ApiKey | None:
    """A key of the caller's tenant that this service remembers and the store has lost."""
    key = api.keys.lost().get(prefix)
    if key is None or key.tenant != who.tenant:
        return None
    return operator_entries.ApiKey(prefix, key.digest, key.name, key.role, 0, key.expires_s, "")


def public_key(made: operator_entries.ApiKey, text: str | None = None) -> Key:
    return Key(made.prefix, made.name, made.role, made.created_s, made.expires_s, made.actor, text)
