"""Sessions of the browser: a signed cookie, a token on every form, and the check of a request's origin.

Rules:
* The cookie holds the id of a key, never the key. It is signed (HMAC-SHA256), HttpOnly, SameSite=Strict, Secure over TLS, and it expires.
  The key is looked up again at each request, so revoking a key ends its sessions at once.
* Signing out ends the session, not only the cookie: hashes of ended tickets are kept until they would have expired, here at once and
  through the store in every service.
* Every form carries a token bound to the cookie. A post without it, or from another origin, is refused before it is read further.
* Without a session there is a guest cookie, which signs nothing but the login form: signing a stranger in is an attack, too.
* Comparisons take the same time whatever is wrong, and an error never says what was wrong.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets as entropy
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from consumers.records.operator_entries import Role
from consumers.store import OperatorStore

COOKIE = "qw_session"
HOURS = 12
ROLES = ("viewer", "analyst", "operator", "admin")
"""Roles that may look, each with all that the ones before it may."""

_TOKEN_BYTES = 18


class Session(msgspec.Struct, frozen=True):
    """A browser's session. `ticket` is random and ties the form tokens to it; `key_id` is empty for a guest."""

    key_id: str
    ends_s: int
    ticket: str


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks: `role` is empty for somebody who must sign in first."""

    name: str
    role: Role | Literal[""]
    tenant: str
    session: Session

    @property
    def signed_in(self) -> bool:
        return bool(self.session.key_id)

    def may(self, role: str) -> bool:
        return self.role in ROLES and ROLES.index(self.role) >= ROLES.index(role)


class Sessions:
    """Makes and checks cookies and form tokens; `key` must be the same in every process that serves the dashboard."""

    __slots__ = ("_csrf_key", "_ended", "_key")

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ValueError("a session key of less than 128 bits signs nothing")
        self._key = hashlib.blake2b(key, digest_size=32, person=b"qw-session").digest()
        self._csrf_key = hashlib.blake2b(key, digest_size=32, person=b"qw-csrf").digest()
        self._ended: dict[str, int] = {}

    def open(self, key_id: str, now_s: int) -> Session:
        return Session(key_id, now_s + HOURS * 3600, entropy.token_urlsafe(_TOKEN_BYTES))

    def cookie(self, session: Session) -> str:
        body = base64.urlsafe_b64encode(msgspec.json.encode(session)).decode()
        return f"{body}.{self._sign(body)}"

    def read(self, cookie: str | None, now_s: int) -> Session | None:
        """The session of a cookie; None for one that is missing, forged, damaged or over."""
        body, _, signature = (cookie or "").partition(".")
        if not hmac.compare_digest(self._sign(body).encode(), signature.encode("utf-8", "replace")):
            return None
        try:
            session = msgspec.json.decode(base64.urlsafe_b64decode(body), type=Session)
        except (msgspec.DecodeError, binascii.Error, ValueError):
            return None
        return session if session.ends_s > now_s and mark_of(session) not in self._ended else None

    def end(self, session: Session) -> None:
        """The session is good for nothing any more."""
        self._ended = {**self._ended, mark_of(session): session.ends_s}

    def refresh(self, store: OperatorStore, now_s: float) -> None:
        """Learn which sessions ended elsewhere, and forget those whose time is over. Raises Unavailable."""
        told = {entry.key: entry.expires_s for entry in store.operator_entries("session")[1]}
        self._ended = {mark: ends_s for mark, ends_s in {**self._ended, **told}.items() if ends_s > now_s}

    def token(self, session: Session) -> str:
        """The form token of a session."""
        text = f"{session.key_id}\x00{session.ticket}".encode()
        return base64.urlsafe_b64encode(hmac.digest(self._csrf_key, text, "sha256")).decode()

    def token_fits(self, session: Session | None, token: str) -> bool:
        return session is not None and hmac.compare_digest(
            self.token(session).encode(), token.encode("utf-8", "replace")
        )

    def _sign(self, body: str) -> str:
        return base64.urlsafe_b64encode(hmac.digest(self._key, body.encode("utf-8", "replace"), "sha256")).decode()


def mark_of(session: Session) -> str:
    """One-way mark of a session, for the store."""
    return hashlib.blake2b(
        session.ticket.encode("utf-8", "surrogatepass"), digest_size=16, person=b"qw-ended"
    ).hexdigest()


def same_origin(origin: str | None, fetch_site: str | None, host: str) -> bool:
    """Whether a post came from one of our own pages: what the browser says of itself must not contradict it."""
    if fetch_site not in (None, "same-origin", "none"):
        return False
    return origin is None or urlsplit(origin).netloc.lower() == host.lower() != ""


def local_path(path: str) -> str:
    """Where to go after the login: a path of ours, whatever was asked for."""
    plain = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if plain else "/"
