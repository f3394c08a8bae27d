"""The reference id of a refusal: a refused client can quote it, and an operator can look it up.

Rules:
* A reference is the day (UTC) and a keyed hash of the day, the answer and the client: ``20261128-9f3ab2c4d5e6f708``. It is stored
  nowhere: with the secrets it is computed again for each client that the store knows. A client has one reference per day and answer.
* Without the secrets it reveals nothing: no id, no hash that is used elsewhere, no score.
* The key is the one with which gateways hash API keys (`querywarden gateway edge-key`), so HAProxy computes the same reference by itself.
  No hash of a client equals a reference, because the text below is not a possible client id.
* A refusal that concerns no particular client has a cause in the place of the client.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from consumers.records.decision import is_campaign
from consumers.secrets import Secrets
from consumers.store import ServiceStore

Cause = Literal["anonymous", "unsynced", "crowded"]
"""Why nobody in particular was refused: no identity in the request, restrictions not read yet, more identities or models than allowed."""

HEADER = "x-querywarden-reference"
_ANSWERS = ("block", "throttle")
_DIGITS = 16
_REFERENCE = re.compile(rf"([0-9]{{8}})-([0-9a-f]{{{_DIGITS}}})")


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a reference stands for. day: YYYY-MM-DD; answer: block | throttle; client: its hash, or a `Cause` when nobody was known."""

    day: str
    answer: str
    client: str

    @property
    def cause(self) -> str:
        return self.client if self.client in get_args(Cause) else ""


class References:
    """Makes references, and finds what they stand for."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def of(self, tenant: str, answer: str, client: str, now_s: float) -> str:
        """The reference of a refusal. client: its hash, or a `Cause`."""
        day = time.strftime("%Y%m%d", time.gmtime(now_s))
        return f"{day}-{self._digits(tenant, day, answer, client)}"

    def find(self, tenant: str, reference: str, clients: Iterable[str]) -> Refusal | None:
        """What a reference stands for, if it is that of one of these clients' (hashes) or of nobody in particular."""
        found = _REFERENCE.fullmatch(reference.strip().lower())
        if found is None:
            return None
        day, digits = found.groups()
        for client in (*get_args(Cause), *clients):
            for answer in _ANSWERS:
                if self._digits(tenant, day, answer, client) == digits:
                    return Refusal(f"{day[:4]}-{day[4:6]}-{day[6:]}", answer, client)
        return None

    def _digits(self, tenant: str, day: str, answer: str, client: str) -> str:
        text = f"refusal|{day}|{answer}|{client}"
        return hmac.digest(self._secrets.edge_key(tenant), text.encode(), "sha256").hex()[:_DIGITS]


def known_clients(store: ServiceStore, tenant: str) -> Iterator[str]:
    """Hashes of the clients that may have been refused, some more than once. Raises Unavailable."""
    for entry in store.operator_entries("decision", tenant)[1]:
        yield entry.key.rpartition("|")[2]
    for key, _ in store.decisions(tenant):
        if not is_campaign(key):
            yield key.client
