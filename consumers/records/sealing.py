"""Sealing of ids inside stored texts: nothing that is stored names a client, an account or an event in clear.

Rules:

* A sealed text is base64 of `Secrets.seal`, so that it fits into JSON and msgpack alike. Sealing is deterministic: equal ids of one tenant
  have equal sealed texts, and what is computed again has the same bytes.
* A finding holds three kinds of ids: its client's (or those of a campaign's members), and those of sample events. `with_ids` alone
  knows where they are.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from consumers.errors import CorruptState
from consumers.secrets import Secrets


def sealed(text: str, secrets: Secrets, tenant: str) -> str:
    """Seal a text under the tenant's key."""
    return base64.b64encode(secrets.seal(text, tenant)).decode()


def unsealed(text: str, secrets: Secrets, tenant: str) -> str:
    """Read a sealed text. Raises CorruptState."""
    try:
        return secrets.unseal(base64.b64decode(text, validate=True), tenant)
    except ValueError as error:
        raise CorruptState(f"sealed text: {error}") from error


def with_ids(body: Mapping[str, Any], turn: Callable[[str], str]) -> dict[str, Any]:
    """Return an alert's body with every id passed through `turn`: `sealed` before it is stored, `unsealed` when it is read."""
    turned = dict(body)
    if body["kind"] == "client":
        turned["client_id"] = turn(body["client_id"])
    for name in ("members", "witnesses"):
        if body.get(name):
            turned[name] = [turn(sealed_or_clear) for sealed_or_clear in body[name]]
    return turned
