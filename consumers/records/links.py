"""Links: where a client comes from, according to the `metadata` of its events, stored as keyed hashes only.

Rules:
* `metadata` is never a reason to refuse an event. It is read for `WHO`, `ip`, `plan`, what `PAIRS` says, and the keys that the settings
  add: strings of at most `MOST_BYTES` bytes, or whole numbers. Anything else is ignored.
* A TLS fingerprint alone is shared by all users of the same browser, and so is a `user_agent`; each counts with a second value only.
* A link of a key that the settings add has the kind ``who.KEY`` or ``where.KEY``, so that detection knows what it says.
* An address of version 6 counts as its /64, because that is what one subscriber is given.
* A link is ``kind:hash`` with 16 hex digits of a hash keyed by the tenant's pepper. Nothing of the metadata itself is stored.
* Under each sharing key (sharing_keys.py) the values of the kinds `SHAREABLE` are hashed once more, as ``shared.KEYID.kind:hash`` with
  32 hex digits. Such a hash groups nobody here; it is what indicators of peers are compared with (`indicators`), within bounds of its own.
* A client keeps the first `KEPT` links that it was seen with, at most `OF_A_KIND` of a kind, so that a client that changes its address with
  every query still shows its organisation. The kept links depend on the order of its queries alone, never on how polls cut them.
* Links are field ``l`` of the profile (a msgpack list). A field that cannot be read is started again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from consumers.secrets import Secrets
from consumers.sharing_keys import MOST_KEYS, SharingKey
from detector.query import ClientKey, QueryBatch

FIELD = "l"
WHO = ("org", "session", "payment", "device", "registration")
"""Keys that say who an account belongs to: their values are costly to change."""
PAIRS = (("asn_ja4", "asn", "ja4"), ("agent", "user_agent", "headers"))
"""Kinds that two values make together: network and TLS fingerprint, client software and the order of its headers."""
PLAIN = ("plan",)
"""Other keys that are a kind of their own."""
KEPT = 16
OF_A_KIND = 4
SHARED = "shared."
SHAREABLE = frozenset(("org", "payment", "device", "registration", "ip", "asn_ja4", "agent"))
"""Kinds whose values can mean the same at another organisation; a session or a plan cannot."""
MOST_STORED = KEPT * (1 + MOST_KEYS)
MOST_BYTES = 256
MOST_DIGITS = 20
MOST_SHOWN = 32
"""Links of a client that was seen in several log cells, at most; as many again under each sharing key."""
NO_VALUE = frozenset(("", "-", "0", "none", "null", "unknown", "n/a", "undefined"))
"""What systems write where they know nothing; it ties nobody."""

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError)


@dataclass(frozen=True, slots=True)
class OwnKeys:
    """Keys of `metadata` that link accounts beside the documented ones: who says who an account belongs to, where where from."""

    who: tuple[str, ...] = ()
    where: tuple[str, ...] = ()


NO_KEYS = OwnKeys()

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_plain = msgspec.json.Decoder(int | str)
_list = msgspec.msgpack.Decoder(list[str])
_pack = msgspec.msgpack.Encoder()


def links_of(metadata: msgspec.Raw | bytes, own: OwnKeys = NO_KEYS) -> list[tuple[str, str]]:
    """(kind, value) of everything in one event's metadata that can tie accounts together."""
    try:
        given = _object.decode(metadata)
    except UNREADABLE:
        return []
    found = [(kind, value) for kind in WHO if (value := _value(given, kind))]
    address = _address(_value(given, "ip") if "ip" in given else "")
    if address:
        found.append(("ip", address))
    for kind, first, second in PAIRS:
        one, other = _value(given, first), _value(given, second)
        if one and other:
            found.append((kind, f"{one}\x00{other}"))
    more = [(key, key) for key in PLAIN]
    more += [(f"{kind}.{key}", key) for kind, keys in (("who", own.who), ("where", own.where)) for key in keys]
    return found + [(kind, value) for kind, key in more if (value := _value(given, key))]


def _value(given: Mapping[str, msgspec.Raw], name: str) -> str:
    """A string or a whole number as text, empty for anything else."""
    raw = given.get(name)
    if raw is None:
        return ""
    try:
        value = _plain.decode(raw)
    except UNREADABLE:
        return ""
    if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        return ""
    text = str(value).strip()
    too_long = len(text.encode("utf-8", "surrogatepass")) > MOST_BYTES
    return "" if too_long or text.lower() in NO_VALUE else text


@lru_cache(maxsize=16_384)
def _address(text: str) -> str:
    """An address in one spelling, the /64 of version 6; empty when it is none, or says nothing (unspecified, loopback)."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_unspecified or address.is_loopback:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)


def seen(
    known: Mapping[ClientKey, Sequence[str]],
    keys: Sequence[ClientKey],
    batch: QueryBatch,
    metadata: Mapping[int, msgspec.Raw | bytes],
    secrets: Secrets,
    own: OwnKeys = NO_KEYS,
    sharing: Sequence[SharingKey] = (),
) -> dict[ClientKey, tuple[str, ...]]:
    """Clients whose links change, with what they are then.

    known     links so far
    keys      (g,) what `batch.who` points into
    metadata  offset → metadata of the events that have some
    own       keys that the settings add
    sharing   keys under which values are hashed once more, at most `MOST_KEYS`; hashes under others are dropped
    """
    if not metadata:
        return {}
    circles = {"", *(key.key_id for key in sharing)}
    mine: dict[int, dict[str, None]] = {}
    full: dict[int, set[str]] = {}  # kinds of which a client keeps no more: nothing is hashed for them
    last: dict[int, bytes] = {}
    changed: set[int] = set()
    for offset, who in zip(batch.offsets.tolist(), batch.who.tolist(), strict=True):
        raw = metadata.get(offset)
        if raw is None:
            continue
        links = mine.get(who)
        if links is None:
            links = mine[who] = dict.fromkeys(one for one in known.get(keys[who], ()) if _circle(one) in circles)
        if len(links) >= KEPT * len(circles):
            continue
        text = bytes(raw)
        if last.get(who) == text:
            continue
        last[who] = text
        filled = full.setdefault(who, set())
        for link in _hashed(links_of(raw, own), keys[who].tenant, secrets, sharing, filled):
            if link in links:
                continue
            if _room(links, link):
                links[link] = None
                changed.add(who)
            else:
                filled.add(link.partition(":")[0])
    return {keys[who]: tuple(mine[who]) for who in sorted(changed)}


def _hashed(
    found: Iterable[tuple[str, str]],
    tenant: str,
    secrets: Secrets,
    sharing: Sequence[SharingKey] = (),
    filled: Collection[str] = (),
) -> Iterator[str]:
    """The links of what was found, but for kinds that are filled."""
    for kind, value in found:
        if kind not in filled:
            hashed = secrets.client_hash(tenant, f"link\x00{kind}\x00{value}")
            yield f"{kind}:{hashed[:16]}"
        for key in sharing if kind in SHAREABLE else ():
            name = f"{SHARED}{key.key_id}.{kind}"
            if name not in filled:
                yield f"{name}:{key.hash(kind, value)}"


def _room(links: Collection[str], link: str) -> bool:
    kind, circle = link.partition(":")[0] + ":", _circle(link)
    of_a_kind = sum(one.startswith(kind) for one in links)
    return of_a_kind < OF_A_KIND and sum(_circle(one) == circle for one in links) < KEPT


def _circle(link: str) -> str:
    """Id of the sharing key that a link is keyed by; empty for a link of our own."""
    return link.removeprefix(SHARED).partition(".")[0] if link.startswith(SHARED) else ""


def packed(links: Sequence[str]) -> bytes:
    return _pack.encode(list(links))


def unpacked(blob: bytes | None) -> tuple[str, ...]:
    """Links as stored; none for a field that is missing or damaged."""
    if not blob:
        return ()
    try:
        return tuple(dict.fromkeys(_list.decode(blob)))[:MOST_STORED]
    except UNREADABLE:
        return ()


def together(blobs: Iterable[bytes | None]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Links of one client from all its profile cells, in their order: its own, and ``KEYID.kind:hash`` of those under sharing keys."""
    found = dict.fromkeys(link for blob in blobs for link in unpacked(blob))
    own = [link for link in found if not _circle(link)]
    shared = [link.removeprefix(SHARED) for link in found if _circle(link)]
    return tuple(own[:MOST_SHOWN]), tuple(shared[: MOST_SHOWN * MOST_KEYS])
