"""Identity: the client of a record, from the places that a mapping names, in their order.

Rules:
* A credential (an API key, a value of ``Authorization``) becomes ``key:`` and a keyed hash under the installation's secrets, in this
  file. Nothing behind it sees the credential: no store, no log line, no dead letter, no alert.
* The hash is the one that `querywarden gateway hash` prints, so that a gateway can be told which key belongs to which client.
* A token is never decoded: an unverified token proves nothing about its bearer.
* A record that names no client is a query of the client `UNATTRIBUTED`, one client for all of them; a mapping may refuse it instead.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from typing import Any

from consumers.log.mappings.mapping import ClientKind

UNATTRIBUTED = "unattributed"
"""The client of all queries of which the log does not say who asked."""
CREDENTIAL = "key:"
ADDRESS = "ip:"
Hash = Callable[[str], str]
"""A credential → 32 hex digits under the installation's secrets."""

_SCHEMES = ("bearer", "basic", "apikey", "api-key", "token", "key")


def client_id(value: Any, kind: ClientKind, hashed: Hash) -> str | int | None:
    """The client that a value names; None when it names none.

    Parameters
    ----------
    value
        What stands at the path; of a list its first element.
    kind
        Whether it is a name, a credential or an address.
    hashed
        Keyed hash of a credential.
    """
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    if isinstance(value, dict):
        value = json.dumps(value, sort_keys=True, default=str) if kind == "credential" else None
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if kind == "credential":
        return CREDENTIAL + hashed(bare(str(value)))
    if kind == "ip":
        return address(str(value))
    # somebody may call itself like our own names; those are for what we found out
    text = str(value)
    return f"id:{text}" if text.startswith((CREDENTIAL, ADDRESS)) or text == UNATTRIBUTED else value


def bare(credential: str) -> str:
    """A credential without the scheme that may stand before it: what a gateway calls the key.

    >>> bare("Bearer abc"), bare("abc")
    ('abc', 'abc')
    """
    text = credential.strip()
    scheme, _, rest = text.partition(" ")
    return rest.strip() if rest.strip() and scheme.lower() in _SCHEMES else text


def address(text: str) -> str | None:
    """An IP address as a client: IPv6 cut to its /64, of a list the first. None when it is none.

    >>> address("2001:db8::1, 10.0.0.1"), address("192.0.2.7:443")
    ('ip:2001:db8::/64', 'ip:192.0.2.7')
    """
    first = text.split(",", 1)[0].strip()
    if first.count(":") == 1 and "." in first:
        first = first.partition(":")[0]
    try:
        found = ipaddress.ip_address(first.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return f"{ADDRESS}{found.ipv4_mapped}"
        return f"{ADDRESS}{ipaddress.ip_network((int(found) >> 64 << 64, 64))}"
    return f"{ADDRESS}{found}"
