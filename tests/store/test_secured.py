"""The Redis store through TLS with client certificates, as a user who may only do what the consumers need.

The certificates are made here, by an authority of the test's own. The rights are those of the documentation.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.servers import NewServer, Redis, free_port, started, wait_until
from support.store_backings import RedisDatabase
from support.store_contract import CELL, client, failures, profiles
from support.upkeep_contract import WholeContract

from consumers.errors import Refused, Unavailable
from consumers.store import Checkpoint
from consumers.store.redis import connect

DOCS = Path(__file__).parents[2] / "docs"
CORE = (
    "prepare_accepts", "claim_says", "load_gives", "a_new_claim_fences", "touched_is_ordered", "dead_letters_wait",
    "record_moves", "recording_renews", "outbox_is_kept", "decisions_are_listed", "detectors", "attempts", "sketch",
    "restrictions_are", "changes_tell", "an_operation_is_seen", "never_cut_a_revision", "forget", "erasing_drops",
    "erased_decisions", "read_again_from_anywhere", "what_is_restored",
)  # fmt: skip


def rights() -> list[str]:
    """The rights of the consumers' user, as the documentation states them."""
    (line,) = re.findall(r"^user querywarden .*$", (DOCS / "upkeep.md").read_text(), re.MULTILINE)
    return str(line).split()[3:]


@dataclass(frozen=True)
class Authority:
    """A certificate authority and what it signed, as files."""

    folder: Path
    ca: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]


def _authority(folder: Path) -> Authority:
    folder.mkdir()
    now = dt.datetime.now(dt.UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {folder.name}")])

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, authority: bool) -> tuple[Path, Path]:
        subject = ca_name if authority else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .add_extension(x509.KeyUsage(True, False, False, False, False, authority, authority, False, False), True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(ca_key, hashes.SHA256())
        )
        files = folder / f"{name}.crt", folder / f"{name}.key"
        files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    ca, _ = certificate("ca", ca_key, True)
    server, other = (certificate(name, ec.generate_private_key(ec.SECP256R1()), False) for name in ("server", "client"))
    return Authority(folder, ca, server, other)


class SecuredRedis(Redis):
    """Redis that only listens with TLS and asks for a client certificate."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        certificate, key = authority.server
        port = free_port()
        super().__init__(
            port=port,
            options=("--port", "0", "--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key),
                     "--tls-ca-cert-file", str(authority.ca), "--tls-auth-clients", "yes"),
        )  # fmt: skip

    def url_for(
        self, user: str = "", password: str = "", authority: Authority | None = None, certificate: bool = True
    ) -> str:
        trusted = authority or self.authority
        signed = f"&ssl_certfile={trusted.client[0]}&ssl_keyfile={trusted.client[1]}" if certificate else ""
        who = f"{user}:{password}@" if user else ""
        return f"rediss://{who}127.0.0.1:{self.port}/0?ssl_ca_certs={trusted.ca}{signed}"

    def probe(self) -> bool:
        try:
            with redis.Redis.from_url(self.url_for(), socket_timeout=2) as raw:
                return bool(raw.ping())
        except (redis.exceptions.RedisError, OSError):
            return False


class SecuredDatabase(RedisDatabase):
    """Stores as the consumers' user; looked at and emptied by the administrator."""

    def __init__(self, server: SecuredRedis) -> None:
        super().__init__(server.url_for())
        self.url = server.url_for("querywarden", "canary-5772")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, new_server: NewServer) -> Iterator[SecuredRedis]:
    with started(new_server(SecuredRedis, _authority(tmp_path_factory.mktemp("tls") / "ours"))) as server:
        with redis.Redis.from_url(server.url_for()) as raw:
            raw.execute_command("ACL SETUSER", "querywarden", "on", ">canary-5772", *rights())
        yield server


def test_the_suite_passes_with_tls_and_few_rights(secured: SecuredRedis) -> None:
    databases: list[SecuredDatabase] = []

    def fresh() -> SecuredDatabase:
        databases.append(SecuredDatabase(secured))
        databases[-1].wipe()
        return databases[-1]

    suite = WholeContract()
    try:
        assert [name for name in CORE if not any(name in test for test in dir(suite))] == []
        assert failures(fresh, suite=suite, only=CORE) == []
        store = fresh().open()
        store.prepare("k")
        assert store.warnings == []
        assert store.pressure() == 0.0
    finally:
        for database in databases:
            database.close()


def test_the_user_can_do_nothing_else(secured: SecuredRedis) -> None:
    raw: Any = redis.Redis.from_url(secured.url_for("querywarden", "canary-5772"))
    for command in ("FLUSHALL", "KEYS *", "CONFIG GET dir", "SHUTDOWN NOSAVE", "ACL LIST", "GET other",
                    "SET other 1", "BGREWRITEAOF", "MONITOR", "SAVE", "REPLICAOF NO ONE"):  # fmt: skip
        with pytest.raises(redis.exceptions.NoPermissionError):
            raw.execute_command(*command.split())
    raw.close()


def test_strangers_are_refused(secured: SecuredRedis, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = Checkpoint(CELL, None, 5, profiles([client(1)]))
    stranger = _authority(tmp_path / "theirs")
    for url in (
        secured.url_for("querywarden", "canary-5772", authority=stranger),
        secured.url_for("querywarden", "canary-5772", certificate=False),
        f"redis://querywarden:canary-5772@127.0.0.1:{secured.port}/0",
    ):
        store = connect(url, timeout_s=2)
        with pytest.raises(Unavailable) as error:
            store.claim(CELL, "t")
        assert "canary-5772" not in str(error.value)
        with pytest.raises(Unavailable):
            store.commit("t", checkpoint)
        store.close()
    for user, password in (("querywarden", "canary-wrong"), ("nobody", "canary-wrong")):
        store = connect(secured.url_for(user, password), timeout_s=2)
        with pytest.raises(Refused) as refusal:
            store.claim(CELL, "t")
        assert "canary" not in str(refusal.value)
        store.close()
    assert "canary" not in caplog.text


def test_a_wrong_host_name_is_refused(secured: SecuredRedis) -> None:
    url = secured.url_for("querywarden", "canary-5772").replace("127.0.0.1", "localhost")
    store = connect(url, timeout_s=2)
    with pytest.raises(Unavailable, match="certificate"):
        store.claim(CELL, "t")
    store.close()


def test_a_store_without_a_right_says_which(secured: SecuredRedis) -> None:
    store = connect(secured.url_for("querywarden", "canary-5772"), timeout_s=5)
    with redis.Redis.from_url(secured.url_for()) as raw:
        raw.execute_command("ACL SETUSER", "querywarden", "-info", "-time")
        try:
            store.prepare("k")
            assert [warning.split()[1] for warning in store.warnings] == ["INFO", "TIME"]
            raw.execute_command("ACL SETUSER", "querywarden", "-evalsha")
            with pytest.raises(Refused, match="evalsha"):
                store.claim(CELL, "t")
        finally:
            raw.execute_command("ACL SETUSER", "querywarden", "+evalsha", *rights())
            wait_until(lambda: store.claim(CELL, "t").attempts > 0)
    store.close()
