"""Credentials: API keys, bearer tokens under attack, client certificates, the open service on loopback."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import http.client
import json
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from support.certificates import certificate, pem
from support.seeded_api import FOREIGN, OURS, SECRETS, World, on_a_port, world

from consumers.errors import Refused, WrongUse
from consumers.http import auth
from consumers.http.auth import Authenticator, Certificates, KeyRing, TokenRules, Tokens, _held, loopback_host
from consumers.http.server import Tls, read_jwks
from consumers.operators.api_keys import new_key
from consumers.operators.audited_write import Actor
from consumers.operators.operate import Operations
from consumers.records.operator_entries import ApiKey, Role, packed
from consumers.store import Entry
from consumers.store.embedded import EmbeddedStore

ISSUER, AUDIENCE = "https://idp.example.test", "querywarden"
RULES = TokenRules(
    ISSUER,
    AUDIENCE,
    "realm.roles",
    {"sec-ops": "operator", "sec-view": "viewer"},
    tenant=OURS,
    algorithms=("RS256", "ES256"),
)
RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())

# --------------------------------------------------------------------------------------------------------- keys


@pytest.fixture
def ring(tmp_path: Path) -> Any:
    store = EmbeddedStore(tmp_path / "keys.sqlite", now_s=lambda: 1000.0)
    store.prepare(SECRETS.key_id)
    yield KeyRing(SECRETS, lambda: 1000.0), Operations(store, SECRETS, lambda: 1000.0)
    store.close()


def test_a_key_is_good_until_it_ends_or_is_revoked(ring: tuple[KeyRing, Operations]) -> None:
    keys, operations = ring
    admin = Actor("root", "admin", OURS)
    made, text = operations.create_key(admin, "bot", "gateway", ttl_s=60)
    assert text is not None
    assert keys.check(text) is None, "not read yet"
    assert keys.ever_keyed, "unknown counts as yes: nothing opens by itself"
    keys.refresh(operations.store)
    who = keys.check(text)
    assert who is not None
    assert (who.id, who.role, who.tenant, who.kind, who.expires_s) == (
        f"key:{made.prefix}",
        "gateway",
        OURS,
        "key",
        1060,
    )
    assert keys.of_prefix(made.prefix) == who
    keys._now_s = lambda: 1060.0
    assert keys.check(text) is None
    assert keys.of_prefix(made.prefix) is None
    assert keys.of_prefix("nobodys") is None
    assert keys.ever_keyed, "a key that ended was a key"
    keys._now_s = lambda: 1000.0
    operations.revoke_key(admin, made.prefix)
    keys.refresh(operations.store)
    assert keys.check(text) is None


def test_nothing_that_resembles_a_key_is_one(ring: tuple[KeyRing, Operations]) -> None:
    keys, operations = ring
    _, text = operations.create_key(Actor("root", "admin", OURS), "bot", "viewer")
    assert text is not None
    keys.refresh(operations.store)
    wrong = [
        "", "qw_", text[:-1], text + "a", text.swapcase(), text.replace("live", "test"), f" {text}", f"{text}\n",
        text[:-1] + ("a" if text[-1] != "a" else "b"), text.replace("qw_live_", "qw_live_x"), "é" * 70, "\ud800" * 10,
    ]  # fmt: skip
    assert keys.check(text) is not None
    assert [w for w in wrong if keys.check(w) is not None] == []


def test_every_check_takes_the_same_steps(ring: tuple[KeyRing, Operations], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a stopwatch: the number of digests and comparisons, and how much is compared, must not tell what is wrong."""
    keys, operations = ring
    made, text = operations.create_key(Actor("root", "admin", OURS), "bot", "viewer")
    assert text is not None
    keys.refresh(operations.store)
    steps: list[tuple[str, int]] = []

    class Watched:
        @staticmethod
        def digest(key: bytes, message: bytes, name: str) -> bytes:
            steps.append(("digest", len(key)))
            return hmac.digest(key, message, name)

        @staticmethod
        def compare_digest(a: str, b: str) -> bool:
            steps.append(("compare", min(len(a), len(b))))
            return hmac.compare_digest(a, b)

    monkeypatch.setattr(auth, "hmac", Watched)
    same_prefix = text[:-4] + "aaaa"
    unknown_prefix = new_key("live")[1]
    seen = {}
    for name, candidate in {"good": text, "wrong": same_prefix, "unknown": unknown_prefix, "malformed": "qw_x"}.items():
        steps.clear()
        keys.check(candidate)
        seen[name] = list(steps)
    assert len({tuple(s) for s in seen.values()}) == 1, seen
    assert seen["good"] == [("digest", 32), ("compare", 64)]
    assert made.digest not in text


def test_the_store_holds_no_key(served: World) -> None:
    raw = b"".join(
        value
        for _, entry in [(0, e) for e in served.store.operator_entries("key")[1]]
        for value in (entry.key.encode(), entry.value)
    )
    for text in served.keys.values():
        assert text.rpartition("_")[2].encode() not in raw
        assert hashlib.sha256(text.encode()).hexdigest().encode() not in raw, "a bare hash could be looked up"


@pytest.mark.parametrize("header", ["Authorization", "X-Api-Key", "X-QueryWarden-Key"])
def test_a_key_in_each_header(served: World, header: str) -> None:
    key = served.keys[OURS, "viewer"]
    value = f"Bearer {key}" if header == "Authorization" else key
    assert served.client(None).get("/v1/models", headers={header: value}).status_code == 200
    assert served.client(None).get("/v1/models", headers={header: value + "x"}).status_code == 401


def test_a_wrong_key_is_not_forgiven_by_a_good_one(served: World) -> None:
    headers = {"Authorization": "Bearer qw_live_wrong", "X-Api-Key": served.keys[OURS, "admin"]}
    assert served.client(None).get("/v1/models", headers=headers).status_code == 401


# ------------------------------------------------------------------------------------------------------- tokens


def jwk_of(key: Any, kid: str, **more: str) -> dict[str, Any]:
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig"} | more


JWKS = {"keys": [jwk_of(RSA, "r1", alg="RS256"), jwk_of(EC, "e1")]}
NOW = 1_800_000_000


def claims(**changes: Any) -> dict[str, Any]:
    made = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "maria",
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + 600,
        "realm": {"roles": ["staff", "sec-ops"]},
    }
    return {k: v for k, v in (made | changes).items() if v is not None}


def token(
    key: Any = RSA,
    algorithm: str = "RS256",
    kid: str | None = "r1",
    body: Mapping[str, Any] | None = None,
    **headers: Any,
) -> str:
    head = ({"kid": kid} if kid else {}) | headers
    return jwt.encode(dict(body or claims()), key, algorithm, headers=head)


def checker(rules: TokenRules = RULES) -> Tokens:
    tokens = Tokens(rules, lambda: float(NOW))
    tokens.learn(JWKS)
    return tokens


def encoded(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def unsigned(algorithm: str) -> str:
    return f"{encoded({'alg': algorithm, 'typ': 'JWT', 'kid': 'r1'})}.{encoded(claims())}."


def confused() -> str:
    """Signed with HMAC, the public key as the secret: what a verifier that believes `alg` would accept."""
    public = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = f"{encoded({'alg': 'HS256', 'typ': 'JWT', 'kid': 'r1'})}.{encoded(claims())}"
    return f"{text}.{base64.urlsafe_b64encode(hmac.digest(public, text.encode(), 'sha256')).decode().rstrip('=')}"


def spliced() -> str:
    head, _, signature = token().split(".")
    return f"{head}.{encoded(claims(sub='root', realm={'roles': ['sec-ops']}))}.{signature}"


def test_good_tokens() -> None:
    who = checker().check(token())
    assert who is not None
    assert (who.id, who.name, who.role, who.tenant, who.kind) == ("token:maria", "maria", "operator", OURS, "token")
    assert checker().check(token(EC, "ES256", "e1")) is not None
    assert checker().check(token(typ="at+jwt")) is not None
    assert checker().check(token(body=claims(exp=NOW - 50, iat=NOW - 100, nbf=NOW - 100))) is not None, (
        "leeway of a minute"
    )
    both = claims(realm={"roles": ["sec-view", "sec-ops"]})
    best = checker().check(token(body=both))
    assert best is not None
    assert best.role == "operator"


def without(claim: str) -> str:
    return token(body=claims(**{claim: None}))


def endless(claim: str) -> str:
    """A time that JSON may hold and no clock shows: 1e999."""
    return token(body=claims(**{claim: float("inf")}))


ATTACKS: dict[str, Callable[[], str]] = {
    "alg none": lambda: unsigned("none"),
    "alg nOnE": lambda: unsigned("nOnE"),
    "empty signature": lambda: unsigned("RS256"),
    "key confusion": confused,
    "symmetric": lambda: jwt.encode(claims(), "x" * 64, "HS256", headers={"kid": "r1"}),
    "spliced claims": spliced,
    "another key": lambda: token(OTHER),
    "another algorithm of the same key": lambda: token(RSA, "PS256"),
    "the other key's id": lambda: token(RSA, kid="e1"),
    "unknown key id": lambda: token(kid="r2"),
    "no key id where there are two": lambda: token(kid=None),
    "key id as a path": lambda: token(OTHER, kid="../../dev/null"),
    "brings a jwk": lambda: token(OTHER, jwk=jwk_of(OTHER, "r1")),
    "brings a jku": lambda: token(OTHER, jku="https://evil.example.test/keys"),
    "jku beside a good signature": lambda: token(jku="https://evil.example.test/keys"),
    "x5u": lambda: token(x5u="https://evil.example.test/c"),
    "x5c": lambda: token(x5c=["AAAA"]),
    "crit": lambda: token(crit=["b64"], b64=False),
    "another type": lambda: token(typ="dpop+jwt"),
    "expired": lambda: token(body=claims(exp=NOW - 61, iat=NOW - 100)),
    "not yet": lambda: token(body=claims(nbf=NOW + 61)),
    "from the future": lambda: token(body=claims(iat=NOW + 61)),
    "valid for too long": lambda: token(body=claims(exp=NOW + 3601)),
    "another issuer": lambda: token(body=claims(iss="https://idp.example.test.evil")),
    "another audience": lambda: token(body=claims(aud="other")),
    "audience as part": lambda: token(body=claims(aud="querywarden-x")),
    **{f"no {name}": functools.partial(without, name) for name in ("exp", "iat", "nbf", "iss", "aud", "sub")},
    "exp as text": lambda: token(body=claims(exp="never")),
    **{f"{name} without end": functools.partial(endless, name) for name in ("exp", "iat", "nbf")},
    "exp as yes": lambda: token(body=claims(exp=True)),
    "no role": lambda: token(body=claims(realm={"roles": ["staff"]})),
    "our role's name, not the provider's": lambda: token(body=claims(realm={"roles": ["admin"]})),
    "role claim of another shape": lambda: token(body=claims(realm={"roles": {"sec-ops": True}})),
    "realm as list": lambda: token(body=claims(realm=["sec-ops"])),
    "huge": lambda: token(body=claims(pad="x" * 9000)),
    "two dots": lambda: "..",
    "empty": lambda: "",
    "not base64": lambda: "!.!.!",
    "not JSON": lambda: f"{base64.urlsafe_b64encode(b'{').decode()}.e30.e30",
    "header is a list": lambda: f"{encoded([1])}.{encoded(claims())}.e30",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_on_tokens(attack: str) -> None:
    assert checker().check(ATTACKS[attack]()) is None


def test_the_attacks_would_work_on_a_careless_verifier() -> None:
    """Otherwise the list above would prove nothing: each of these is accepted when its check is left out."""
    times = {"verify_iat": False, "verify_exp": False, "verify_nbf": False}
    only = (
        "expired",
        "not yet",
        "from the future",
        "valid for too long",
        "no role",
        "another type",
        "x5u",
        "x5c",
        "jku beside a good signature",
    )
    for name in only:
        assert jwt.decode(ATTACKS[name](), RSA.public_key(), ["RS256"], audience=AUDIENCE, issuer=ISSUER, options=times)  # type: ignore[arg-type]
    for name in ("another audience", "another issuer"):
        careless = times | {"verify_aud": False, "verify_iss": False}
        assert jwt.decode(ATTACKS[name](), RSA.public_key(), ["RS256"], audience=AUDIENCE, options=careless)  # type: ignore[arg-type]
    text, _, signature = confused().rpartition(".")
    public = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert base64.urlsafe_b64decode(signature + "=") == hmac.digest(public, text.encode(), "sha256")


def test_tenants_of_tokens() -> None:
    rules = TokenRules(ISSUER, AUDIENCE, "roles", {"x": "viewer"}, tenant_claim="org.id", tenant=OURS)
    made = checker(rules).check(token(body=claims(roles="x", org={"id": FOREIGN})))
    assert made is not None
    assert made.tenant == FOREIGN
    for wrong in ({"id": "*"}, {"id": ["a"]}, {"id": ""}, {}, "acme", {"id": "a" * 65}):
        assert checker(rules).check(token(body=claims(roles="x", org=wrong))) is None


def test_a_key_that_cannot_be_read_takes_no_other_with_it_and_lets_nobody_in() -> None:
    """Damaged entries stand first, in the middle and last."""
    digest = "0f" * 32

    def entry(name: str, role: Role | Literal[""] = "viewer", digest: str = digest) -> Entry:
        return Entry(OURS, "key", name, packed(ApiKey(name, digest, name, role, 0, 0, "root")))

    damaged = entry("broken")._replace(value=b"\xc1")
    found = _held(
        [damaged, entry("a"), entry("no-role", role=""), damaged, entry("short", digest="0f"), entry("b"), damaged]
    )
    assert sorted(found) == ["a", "b"]


def test_a_public_key_that_states_no_use_is_one_for_signatures() -> None:
    """RFC 7517, 4.2: `use` is optional."""
    stated = jwk_of(RSA, "r1")
    tokens = Tokens(RULES, lambda: float(NOW))
    tokens.learn({"keys": [{name: value for name, value in stated.items() if name != "use"}]})
    assert tokens.check(token()) is not None


def test_keys_of_the_provider() -> None:
    assert Tokens(RULES).check(token()) is None, "nothing was read yet"
    documents: list[dict[str, Any]] = [
        {},
        {"keys": []},
        {"keys": [{"kty": "oct", "k": "eA", "kid": "r1"}]},
        {"keys": [jwk_of(RSA, "r1") | {"use": "enc"}]},
    ]
    for wrong in documents:
        with pytest.raises(Refused):
            Tokens(RULES).learn(wrong)
    for algorithm in ("none", "HS256", "RS1"):
        with pytest.raises(Refused, match="not allowed"):
            Tokens(TokenRules(ISSUER, AUDIENCE, algorithms=(algorithm,)))
    with pytest.raises(Refused, match="is not a QueryWarden role"):
        Tokens(TokenRules(ISSUER, AUDIENCE, roles={"x": "root"}))  # type: ignore[dict-item]
    with pytest.raises(Refused, match="only on loopback"):
        read_jwks("http://idp.example.test/keys")


def test_tokens_over_http(tmp_path: Path) -> None:
    tokens = Tokens(RULES)
    tokens.learn(JWKS)
    now = int(time.time())
    fresh = token(body=claims(iat=now, nbf=now, exp=now + 600))
    with world(tmp_path, tokens=tokens) as served:
        asked = served.client(None)
        for name in ("exp", "iat", "nbf"):
            answer = asked.get("/v1/models", headers={"Authorization": f"Bearer {endless(name)}"})
            assert (answer.status_code, answer.headers["x-frame-options"]) == (401, "DENY")
        assert asked.get("/v1/models", headers={"Authorization": f"Bearer {fresh}"}).status_code == 200
        assert asked.get("/v1/keys", headers={"Authorization": f"Bearer {fresh}"}).status_code == 403
        assert asked.get("/v1/models", headers={"Authorization": f"Bearer {fresh[:-4]}AAAA"}).status_code == 401
        key = served.keys[OURS, "viewer"]
        assert asked.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200


# ------------------------------------------------------------------------------------------------- certificates


def test_client_certificates_over_tls(tmp_path: Path) -> None:
    ca, rogue = certificate("our-ca", ca=True), certificate("rogue-ca", ca=True)
    ca_file, _ = pem(tmp_path, "ca", ca)
    server = pem(tmp_path, "server", certificate("localhost", ca))
    roles: dict[str, Role] = {
        "DNS:gw.example.test": "gateway",
        "ops.example.test": "operator",
        "URI:spiffe://prod/soc": "viewer",
    }

    def status(
        port: int, path: str, name: str | None, issuer: Any = ca, kind: Callable[[str], Any] = x509.DNSName
    ) -> int:
        context = ssl.create_default_context(cafile=ca_file)
        if name is not None:
            context.load_cert_chain(*pem(tmp_path, "client", certificate(name, issuer, kind=kind)))
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
        try:
            connection.request("GET", path, headers={"x-api-key": "thief"} if path == "/v1/authz" else {})
            return connection.getresponse().status
        finally:
            connection.close()

    with (
        world(tmp_path, certificates=Certificates(roles, OURS)) as served,
        on_a_port(served.front, Tls(*server, ca_file)) as port,
    ):
        assert status(port, "/v1/models", "ops.example.test") == 200
        assert status(port, "/v1/keys", "ops.example.test") == 403
        assert status(port, "/v1/authz", "gw.example.test") == 200
        assert status(port, "/v1/models", "gw.example.test") == 403
        assert status(port, "/v1/models", "stranger.example.test") == 401
        assert status(port, "/v1/models", None) == 401
        for other in (x509.RFC822Name, x509.UniformResourceIdentifier):
            assert status(port, "/v1/models", "ops.example.test", kind=other) == 401, "not a DNS name"
        assert status(port, "/v1/models", "spiffe://prod/soc", kind=x509.UniformResourceIdentifier) == 200
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            status(port, "/v1/models", "ops.example.test", rogue)


def test_a_name_that_cannot_be_a_dns_name_needs_its_type() -> None:
    for name in ("spiffe://prod/soc", "ops@example.test"):
        with pytest.raises(WrongUse, match="is not a DNS name"):
            Certificates({name: "viewer"})


# ---------------------------------------------------------------------------------------------------- loopback

HERE = ("127.0.0.1", 50_000)


def test_an_open_service_may_be_looked_at_from_its_machine_only(tmp_path: Path) -> None:
    with world(tmp_path, open_on_loopback=True, filled=False) as served:
        local = {"host": "127.0.0.1:8080"}
        stranger = served.client(None, client=HERE)

        def status(**more: str) -> int:
            return stranger.get("/v1/models", headers=local | more).status_code

        assert status() == 200
        assert status(host="evil.example.test") == 401, "rebinding"
        passed_on = ({"forwarded": "for=a"}, {"x-forwarded-for": "a"}, {"x-forwarded-port": "1"}, {"x-real-ip": "a"})
        assert [status(**header) for header in passed_on] == [401] * 4, "a proxy on this machine"
        elsewhere = served.client(None, client=("192.0.2.7", 50_000))
        assert elsewhere.get("/v1/models", headers=local).status_code == 401, "from elsewhere"
        gateways = {"host": "shop.example.test", "x-api-key": "a", "x-forwarded-for": "a"}
        assert stranger.get("/v1/authz", headers=gateways).status_code == 200
        assert elsewhere.get("/v1/authz", headers=gateways).status_code == 401
        assert stranger.get("/v1/keys", headers=local).status_code == 403, "viewer, no more"
        assert stranger.post("/v1/queries", headers=local, content=b"{}").status_code == 403
        served.key("viewer")
        assert status() == 401, "the first key closes it"
        with served.store._write() as db:
            db.execute("DELETE FROM entries WHERE kind IN ('key', 'revoked')")
        served.ring.refresh(served.store)
        assert status() == 401, "and it stays closed when that key is gone"
        afresh = KeyRing(SECRETS)
        afresh.refresh(served.store)
        assert not Authenticator(afresh, open_on_loopback=True).is_open(), "after a restart too: the audit log tells"


def test_it_is_never_open_otherwise(tmp_path: Path) -> None:
    with world(tmp_path, open_on_loopback=False, filled=False) as served:
        asked = served.client(None, client=HERE)
        assert asked.get("/v1/models", headers={"host": "127.0.0.1"}).status_code == 401
    ring = KeyRing(SECRETS)
    ring.loaded = True
    configured = [
        Authenticator(ring, Tokens(RULES), open_on_loopback=True),
        Authenticator(ring, certificates=Certificates({}), open_on_loopback=True),
    ]
    assert not any(one.is_open() for one in configured)
    assert Authenticator(ring, open_on_loopback=True).is_open()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.0.0.1:80", True), ("localhost:8080", True), ("[::1]:8080", True), ("LOCALHOST", True), ("", False),
     ("127.0.0.1.evil.test", False), ("localhost.evil.test:80", False), ("evil.test#127.0.0.1", False), ("127.0.0.2", False)],
)  # fmt: skip
def test_hosts(host: str, loopback: bool) -> None:
    assert loopback_host(host) is loopback
