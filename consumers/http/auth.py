"""Authentication: the caller is known by an API key, a bearer token of an identity provider, or a client certificate.

Rules:
* Nothing here waits. Keys are held in memory and refreshed by a thread (`KeyRing.refresh`), as are the provider's public keys. If the store
  is away, or lost its keys (`keymemory`), known keys stay valid.
* The tenant comes from the credential and from nowhere else.
* API keys: ``qw_<env>_<prefix8>_<43>``, in ``Authorization: Bearer`` or ``X-Api-Key``; gateways, whose requests carry their clients'
  headers, use ``X-QueryWarden-Key``. Every check does the same work whatever is wrong: one digest, one comparison (`KeyRing.check`).
* Bearer tokens (RFC 8725): algorithms from a list, asymmetric only, and only the one that the key is for; issuer, audience, expiry and
  not-before are required. A token that brings its own key (``jwk``, ``jku``, ``x5u``, ``x5c``) or unknown critical headers is refused.
* Certificates: the TLS layer has verified them. A name of the certificate, with its type, is looked up in a table.
* While no credential was ever configured, a service on loopback grants the role viewer to requests from this machine to a
  loopback name that no proxy has passed on.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jwt
from starlette.types import Scope

from consumers.errors import ConfigError, CorruptState, InvalidInput, WrongUse
from consumers.http.keymemory import AuditAnchor, KeyMemory, Keys, KnownKey, MemoryFile, Reading, after
from consumers.operators import audit
from consumers.records import operator_entries
from consumers.records.heartbeat import fingerprint
from consumers.records.operator_entries import ROLES, Role
from consumers.secrets import Secrets
from consumers.store import Entry, OperatorStore

log = logging.getLogger("querywarden.auth")

LEEWAY_S = 60
LONGEST_TOKEN = 8192
ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
"""Key type → algorithms it may be used with. No symmetric one, and none that is none."""

REQUIRED = ["exp", "iat", "nbf", "iss", "aud", "sub"]
"""Claims that must be there; their times are judged by our own clock and leeway."""

TOKEN_TYPES = ("jwt", "at+jwt", "application/at+jwt")
_FOREIGN_HEADERS = frozenset({"jwk", "jku", "x5u", "x5c", "x5t", "crit", "zip"})
_KEY = re.compile(r"qw_[a-z0-9]{1,16}_([0-9A-Za-z]{8})_[0-9A-Za-z]{43}")
_NAME_TYPES = ("DNS:", "URI:", "email:")
_DNS_NAME = re.compile(r"[A-Za-z0-9._*-]{1,253}")
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DUMMY = "0" * 64
_KEY_MADE = b'"action":"key.create"'
_RANK = {role: i for i, role in enumerate(("viewer", "analyst", "operator", "admin"))}


CredentialKind = Literal["key", "token", "certificate", "loopback"]


@dataclass(frozen=True, slots=True)
class Credential:
    """A caller. id: public and stable (``key:abcd1234``); kind: key | token | certificate | loopback; expires_s: 0 for never."""

    id: str
    name: str
    role: Role
    tenant: str
    kind: CredentialKind
    expires_s: int = 0


class KeyRing:
    """The API keys of all tenants, in memory. file: where they are remembered over a restart, None: nowhere."""

    def __init__(
        self, secrets: Secrets, now_s: Callable[[], float] = time.time, file: MemoryFile | None = None
    ) -> None:
        self._key = secrets.derived("api-key")
        self._now_s = now_s
        self._file = file
        self._lock = threading.Lock()
        self._memory = file.load() if file is not None else KeyMemory()
        self._keys = _credentials(self._memory)
        self._searched = 0
        self.loaded = False
        self.fingerprint = ""
        """Of the stored keys, as last read."""

    def refresh(self, store: OperatorStore) -> None:
        """Read all keys anew. Raises Unavailable, CorruptState; what is known stays."""
        with self._lock:
            revisions, found = zip(*(store.operator_entries(kind) for kind in ("key", "revoked")), strict=True)
            revision, head = audit.stored_head(store)
            read = Reading(
                _held(found[0]),
                {entry.key: entry.expires_s for entry in found[1]},
                AuditAnchor(head.n, head.hash) if head is not None else None,
                {*revisions} != {revision},
            )
            memory = after(self._memory, read, lambda row: audit.has_row(store, row.n, row.hash), self._now_s())
            if not memory.keyed and head is not None and self._was_keyed(store):
                memory = replace(memory, keyed=True)
            self._memory, self._keys = memory, _credentials(memory)
            self.fingerprint = fingerprint(found[0])
            self.loaded = True
            if self._file is not None:
                self._file.save(memory)

    def lost(self) -> Keys:
        """Keys that are still good although the store has lost them."""
        now_s = self._now_s()
        return {prefix: key for prefix, key in self._memory.lost.items() if key.live(now_s)}

    def check(self, text: str) -> Credential | None:
        """The credential of a key, or None. The same steps for every text."""
        shape = _KEY.fullmatch(text)
        stored, who = self._keys.get(shape[1] if shape else "", (_DUMMY, None))
        digest = hmac.digest(self._key, text.encode("utf-8", "surrogatepass")[:256], "sha256").hex()
        same = hmac.compare_digest(digest, stored)
        return who if same and self._live(who) else None

    def of_prefix(self, prefix: str) -> Credential | None:
        """The credential of a live key by its public prefix: for a session that was opened with the key."""
        _, who = self._keys.get(prefix, (_DUMMY, None))
        return who if self._live(who) else None

    @property
    def ever_keyed(self) -> bool:
        """Whether there ever was a key, live or not; unknown counts as yes."""
        return not self.loaded or self._memory.keyed

    def _was_keyed(self, store: OperatorStore) -> bool:
        """Whether the audit log tells of a key; each row is looked at once."""
        for number, line in audit.stored_rows(store, self._searched):
            self._searched = number
            if _KEY_MADE in line:
                return True
        return False

    def _live(self, who: Credential | None) -> bool:
        return who is not None and (not who.expires_s or who.expires_s > self._now_s())


def _held(found: Sequence[Entry]) -> dict[str, KnownKey]:
    """The keys that can be read."""
    held = {}
    for entry in found:
        try:
            key = operator_entries.unpacked(entry, operator_entries.ApiKey)
        except CorruptState as error:
            log.error("an API key cannot be read and is not accepted", extra={"why": str(error)})
            continue
        if key.role and _DIGEST.fullmatch(key.digest):
            held[key.prefix] = KnownKey(key.prefix, key.digest, key.name, key.role, entry.tenant, key.expires_s)
    return held


def _credentials(memory: KeyMemory) -> dict[str, tuple[str, Credential]]:
    """prefix → (digest, credential), of what the store has and of what it lost."""
    return {
        prefix: (key.digest, Credential(f"key:{prefix}", key.name, key.role, key.tenant, "key", key.expires_s))
        for prefix, key in {**memory.lost, **memory.keys}.items()
    }


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What is demanded of a bearer token.

    role_claim    dotted path to a role or a list of them; roles: the provider's name → ours
    tenant_claim  dotted path to the tenant, empty: `tenant` for all
    longest_s     how long a token may be good for at most, from its ``iat``
    """

    issuer: str
    audience: str
    role_claim: str = "roles"
    roles: Mapping[str, Role] = field(default_factory=dict)
    tenant_claim: str = ""
    tenant: str = "default"
    longest_s: int = 3600
    algorithms: Sequence[str] = ("RS256", "ES256", "EdDSA")


class Tokens:
    """Checks bearer tokens against a pinned set of public keys (JWKS)."""

    def __init__(self, rules: TokenRules, now_s: Callable[[], float] = time.time) -> None:
        known = {a for family in ALGORITHMS.values() for a in family}
        if unknown := [a for a in rules.algorithms if a not in known]:
            raise ConfigError(
                f"http.oidc_algorithms: {', '.join(unknown)} not allowed; allowed are {', '.join(sorted(known))}"
            )
        if wrong := [r for r in rules.roles.values() if r not in ROLES]:
            raise ConfigError(f"http.oidc_roles: {', '.join(wrong)} is not a QueryWarden role")
        self._rules = rules
        self._now_s = now_s
        self._keys: dict[str, tuple[Any, str]] = {}

    def learn(self, jwks: Mapping[str, Any]) -> None:
        """Take the public keys of a JWKS document. Raises ConfigError when it holds none that may be used."""
        found: dict[str, tuple[Any, str]] = {}
        for one in jwks.get("keys", ()) if isinstance(jwks.get("keys"), list) else ():
            kind = one.get("kty")
            if kind not in ALGORITHMS or one.get("use", "sig") != "sig" or "d" in one:
                continue
            usable = [a for a in ALGORITHMS[kind] if a in self._rules.algorithms and one.get("alg") in (None, a)]
            try:
                for algorithm in usable[:1]:
                    found[str(one.get("kid", ""))] = (jwt.PyJWK(one, algorithm).key, algorithm)
            except jwt.PyJWTError as error:
                log.warning("a public key of the identity provider is not usable", extra={"why": str(error)})
        if not found:
            raise InvalidInput("identity provider: it offers no public key that may be used")
        self._keys = found

    def check(self, token: str) -> Credential | None:
        """The credential of a token, or None."""
        if len(token) > LONGEST_TOKEN:
            return None
        try:
            header = jwt.get_unverified_header(token)
            key, algorithm = self._key(header)
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._rules.issuer,
                audience=self._rules.audience,
                options={"require": REQUIRED, "verify_exp": False, "verify_nbf": False, "verify_iat": False},
            )
            return self._credential(claims)
        except Exception as error:  # noqa: BLE001 — whatever a stranger wrote into it, it is no good token
            log.info("bearer token refused", extra={"why": type(error).__name__})
            return None

    def _key(self, header: Mapping[str, Any]) -> tuple[Any, str]:
        if _FOREIGN_HEADERS & header.keys():
            raise ValueError("the token brings its own key")
        if str(header.get("typ", "JWT")).lower() not in TOKEN_TYPES:
            raise ValueError("not an access token")
        kid = header.get("kid")
        key, algorithm = (
            next(iter(self._keys.values())) if kid is None and len(self._keys) == 1 else self._keys[str(kid)]
        )
        if header.get("alg") != algorithm:
            raise ValueError("another algorithm than the key is for")
        return key, algorithm

    def _credential(self, claims: Mapping[str, Any]) -> Credential:
        now, rules = self._now_s(), self._rules
        expires, issued, begins = (_moment(claims[name]) for name in ("exp", "iat", "nbf"))
        if expires <= now - LEEWAY_S or begins > now + LEEWAY_S or issued > now + LEEWAY_S:
            raise ValueError("not valid now")
        if expires - issued > rules.longest_s:
            raise ValueError("valid for too long")
        said = _claim(claims, rules.role_claim)
        ours = [
            rules.roles[r]
            for r in (said if isinstance(said, list) else [said])
            if isinstance(r, str) and r in rules.roles
        ]
        if not ours:
            raise ValueError("no role of ours")
        tenant = _claim(claims, rules.tenant_claim) if rules.tenant_claim else rules.tenant
        if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
            raise ValueError("no tenant")
        subject = str(claims["sub"])[:128]
        return Credential(
            f"token:{subject}", subject, max(ours, key=lambda r: _RANK.get(r, -1)), tenant, "token", expires
        )


def _moment(claim: Any) -> int:
    """Seconds of a NumericDate (RFC 7519). Raises ValueError."""
    if isinstance(claim, bool) or not isinstance(claim, int | float) or not math.isfinite(claim):
        raise ValueError("not a time")
    return int(claim)


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """A claim by its dotted path; None when it isn't there."""
    found: Any = claims
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


@dataclass(frozen=True, slots=True)
class Certificates:
    """Client certificates: a name with its type (``DNS:``, ``URI:`` or ``email:`` of the subject's alternative names) → role.

    A name without a type is a DNS name. Raises WrongUse for one that cannot be.
    """

    roles: Mapping[str, Role]
    tenant: str = "default"

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", {_typed(name): role for name, role in self.roles.items()})

    def check(self, names: Sequence[str]) -> Credential | None:
        """The credential of a verified certificate's names."""
        for name in names:
            if role := self.roles.get(name):
                return Credential(f"certificate:{name}", name, role, self.tenant, "certificate")
        return None


def _typed(name: str) -> str:
    if name.startswith(_NAME_TYPES):
        return name
    if not _DNS_NAME.fullmatch(name):
        raise WrongUse(f"http.certificate_roles: {name!r} is not a DNS name; write URI:{name} or email:{name}")
    return f"DNS:{name}"


@dataclass(slots=True)
class Authenticator:
    """Finds the credential of a request.

    tenant            of whom looks at an open service
    open_on_loopback  whether a service that never had a credential may be looked at from its machine
    """

    keys: KeyRing
    tokens: Tokens | None = None
    certificates: Certificates | None = None
    tenant: str = "default"
    open_on_loopback: bool = False

    def credential(self, scope: Scope) -> Credential | None:
        """Who calls, None for nobody or for a credential that is not good. Nothing else is tried after a wrong one."""
        headers = _headers(scope)
        for text in (_bearer(headers), headers.get("x-api-key"), headers.get("x-querywarden-key")):
            if text is not None:
                return (
                    self.keys.check(text) if text.startswith("qw_") or self.tokens is None else self.tokens.check(text)
                )
        return self._without_text(scope, headers)

    def gateway(self, scope: Scope) -> str | None:
        """Tenant of a gateway's request, whose other headers are its client's; None when it may not ask."""
        headers = _headers(scope)
        text = headers.get("x-querywarden-key")
        # Its Host, and what says whose request it passes on, are its client's: whoever may look here may ask this.
        who = self.keys.check(text) if text is not None else self._without_text(scope, {"host": "localhost"})
        return who.tenant if who is not None and (who.role == "gateway" or who.kind == "loopback") else None

    def is_open(self) -> bool:
        """Whether anybody on this machine may look: only while there never was a credential."""
        return self.open_on_loopback and self.tokens is None and self.certificates is None and not self.keys.ever_keyed

    def _without_text(self, scope: Scope, headers: Mapping[str, str]) -> Credential | None:
        names = scope.get("state", {}).get("certificate_names", ())
        if self.certificates is not None and names:
            return self.certificates.check(names)
        here = on_this_machine(scope) and loopback_host(headers.get("host", ""))
        if here and not _PASSED_ON & headers.keys() and self.is_open():
            return Credential("loopback", "loopback", "viewer", self.tenant, "loopback")
        return None


def loopback_host(host: str) -> bool:
    """Whether a Host header names this machine: a page of another name that resolves here must not read what is open."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return name.lower() in ("127.0.0.1", "localhost", "[::1]")


def on_this_machine(scope: Scope) -> bool:
    """Whether the connection comes from this machine. One whose other end is not known does not."""
    host = (scope.get("client") or ("", 0))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _headers(scope: Scope) -> dict[str, str]:
    found = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"] if name in _LOOKED_AT}
    if any(name == b"forwarded" or name.startswith(b"x-forwarded-") for name, _ in scope["headers"]):
        found["forwarded"] = ""
    return found


_LOOKED_AT = frozenset({b"authorization", b"x-api-key", b"x-querywarden-key", b"host", b"x-real-ip", b"via"})
_PASSED_ON = frozenset({"forwarded", "x-real-ip", "via"})
"""Headers of a proxy: what it passes on may come from anywhere."""


def _bearer(headers: Mapping[str, str]) -> str | None:
    scheme, _, text = headers.get("authorization", "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else None
