"""The real processes: `run` from request to assessment, `serve` and its SIGTERM, `doctor` and the commands of operators."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import io
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import pytest
import redis
import trustme
from support import victims
from support.forked_command import COLUMNS, querywarden
from support.kafka_producer import produce
from support.servers import free_port

from consumers import cli, config
from consumers.commands import doctor
from consumers.commands.entries import seconds
from consumers.errors import WrongUse
from consumers.secrets import Secrets
from detector.baseline_file import pack_baseline

DRAIN_S = 20


def environment(folder: Path, **more: str) -> dict[str, str]:
    mine = {k: v for k, v in os.environ.items() if not k.startswith("QUERYWARDEN_")}
    usual = {
        "QUERYWARDEN_STATE_DIR": str(folder),
        "QUERYWARDEN_LOG__URL": f"file://{folder}/log.jsonl",
        "COLUMNS": COLUMNS,
    }
    return mine | usual | {"OMP_NUM_THREADS": "1"} | more


def done(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself, in this process: what starting one is worth, `running` and tests/consumers/test_cli.py show."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environment(folder, **more), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main(arguments)
    return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def ask(
    port: int,
    path: str,
    key: str = "",
    body: bytes | None = None,
    kind: str = "application/json",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, Any]:
    usual = {"Content-Type": kind} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {**usual, **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            raw, status = answer.read(), answer.status
    except urllib.error.HTTPError as error:
        raw, status = error.read(), error.code
    try:
        return status, json.loads(raw)
    except ValueError:
        return status, raw


def refused(port: int, gateway: str, client: str) -> str:
    """The reference with which a gateway refuses a client."""
    headers = {"X-QueryWarden-Key": gateway, "X-Api-Key": client}
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/v1/authz", headers=headers), timeout=10)
    return str(answer.value.headers["X-QueryWarden-Reference"])


def until(what: Callable[[], Any], within_s: float = 90) -> Any:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError("did not happen in time")


@contextmanager
def running(folder: Path, command: str, **more: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    settings = environment(folder, QUERYWARDEN_HTTP__BIND=f"127.0.0.1:{port}", **more)
    with (folder / "process.log").open("wb") as log:
        process = subprocess.Popen([str(querywarden()), command], env=settings, stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or ask(port, "/readyz")[0] == 200)
        assert process.poll() is None, (folder / "process.log").read_text()
        yield port, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_from_a_request_to_an_assessment_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "loans.baseline").write_bytes(pack_baseline(victims.baseline()))
    rows = victims.reference_rows()[:40]
    body = b"\n".join(victims.line(row, client_id=f"acct-{i % 4}", event_id=f"e{i}") for i, row in enumerate(rows))
    keys = {role: done(tmp_path, "keys", "create", "--role", role).stdout.strip() for role in ("ingest", "viewer")}
    with running(tmp_path, "run", QUERYWARDEN_BASELINES=str(tmp_path / "loans.baseline")) as (port, process):
        status, receipt = ask(port, "/v1/queries", keys["ingest"], body, "application/x-ndjson")
        assert (status, receipt) == (200, {"accepted": 40, "rejected": []})
        path = f"/v1/models/{victims.MODEL}/clients"

        def assessed() -> Any:
            found = ask(port, path, keys["viewer"])[1]
            items = found.get("items", [])
            return items if sum(c["queries"] for c in items) == 40 else None

        assert {c["client_id"] for c in until(assessed)} == {f"acct-{i}" for i in range(4)}
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(DRAIN_S) == 0, (tmp_path / "process.log").read_text()
        assert time.monotonic() - began < DRAIN_S
    assert b"acct-" not in (tmp_path / "process.log").read_bytes(), "no client id in a log"
    assert keys["viewer"].encode() not in (tmp_path / "process.log").read_bytes()


def test_what_the_terminal_decides_the_service_enforces(tmp_path: Path) -> None:
    with running(tmp_path, "serve") as (port, process):
        assert ask(port, "/v1/models")[0] == 200, "open on loopback until there is a key"
        key = done(tmp_path, "keys", "create", "--role", "gateway").stdout.strip()
        assert ask(port, "/v1/decisions/stream")[0] == 401, "the key ended that"
        assert done(tmp_path, "decisions", "block", "bob", "--yes", "--for", "1h", "--reason", "test").returncode == 0
        stream = until(lambda: ask(port, "/v1/decisions/stream?startup=true", key)[1].get("new"), 10)
        assert [(d["type"], d["model"]) for d in stream] == [("ban", "*")]
        reference = refused(port, key, "bob")
        told = done(tmp_path, "decisions", "reference", reference)
        assert (told.returncode, "bob. Now:" in told.stdout, "block on every model until" in told.stdout) == (
            0,
            True,
            True,
        ), told
        unknown = done(tmp_path, "decisions", "reference", reference[:-1])
        assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
        assert done(tmp_path, "decisions", "release", "bob", "--yes").returncode == 0
        until(lambda: not ask(port, "/v1/decisions/stream?startup=true", key)[1].get("new"), 10)
        (prefix,) = [
            json.loads(line)["prefix"] for line in done(tmp_path, "keys", "list", "--json").stdout.splitlines()
        ]
        assert done(tmp_path, "keys", "revoke", prefix).returncode == 0
        until(lambda: ask(port, "/v1/decisions/stream", key)[0] == 401, 10)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DRAIN_S) == 0
    verified = done(tmp_path, "audit", "verify", "--json")
    assert verified.returncode == 0, verified.stdout
    assert json.loads(verified.stdout)["rows"] == 4
    text = (tmp_path / "audit.jsonl").read_text()
    (tmp_path / "audit.jsonl").write_text(text.replace("decision.block", "decision.clear", 1))
    tampered = done(tmp_path, "audit", "verify")
    assert tampered.returncode == 1
    assert "row 2 does not follow" in tampered.stdout


def test_a_key_is_good_when_its_command_returns(tmp_path: Path) -> None:
    with running(tmp_path, "serve") as (port, _):
        for role in ("viewer", "analyst"):
            found = done(tmp_path, "keys", "create", "--role", role)
            assert ask(port, "/v1/models", found.stdout.strip())[0] == 200
            assert "1 service knows it" in found.stderr
        key = done(tmp_path, "keys", "create", "--role", "admin").stdout.strip()
        assert ask(port, "/v1/models", key)[0] == 200
        revoked = done(tmp_path, "keys", "revoke", key.split("_")[2])
        assert ask(port, "/v1/models", key)[0] == 401
        assert "1 service knows it" in revoked.stdout
    late = done(tmp_path, "keys", "create", "--role", "viewer", "--name", "late")
    assert "1 of 1 services have not confirmed it" in late.stderr, "it was killed and seems to live for a minute"


def test_a_wiped_store_is_an_alarm_and_no_outage(tmp_path: Path, redis_url: str) -> None:
    store = {"QUERYWARDEN_STORE__URL": redis_url}
    key = done(tmp_path, "keys", "create", "--role", "gateway", **store).stdout.strip()

    def gateway() -> int:
        return ask(port, "/v1/authz", headers={"X-QueryWarden-Key": key, "X-Api-Key": "acct-1"})[0]

    def alarm() -> bool:
        return b'querywarden_alarm{alarm="keys_lost"} 1.0' in ask(port, "/metrics")[1]

    with running(tmp_path, "serve", **store) as (port, _):
        assert gateway() == 200
        redis.Redis.from_url(redis_url).flushdb()
        until(alarm)
        assert (gateway(), ask(port, "/v1/models")[0]) == (200, 401)
        assert f"{key.split('_')[2]} gateway gateway".encode() in (tmp_path / "process.log").read_bytes()
    with running(tmp_path, "serve", **store) as (port, _):
        assert (gateway(), ask(port, "/v1/models")[0], alarm()) == (200, 401, True), "after a restart too"
        wrong = done(tmp_path, "keys", "revoke", key.split("_")[2], **store)
        assert (wrong.returncode, "--lost" in wrong.stderr) == (1, True)
        assert done(tmp_path, "keys", "revoke", "--lost", key.split("_")[2], **store).returncode == 0
        until(lambda: gateway() == 401, 10)
        until(lambda: not alarm(), 10)


def test_a_service_with_followers_ends_at_once_and_in_order(tmp_path: Path) -> None:
    with running(tmp_path, "serve", QUERYWARDEN_GATEWAY__REFRESH_S="0.1") as (port, process):
        key = done(tmp_path, "keys", "create", "--role", "gateway").stdout.strip()
        until(lambda: ask(port, "/v1/decisions", key)[0] == 200)
        followers = []
        for _ in range(3):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/v1/decisions/events", headers={"X-Api-Key": key})
            followers.append(connection.getresponse())
            assert followers[-1].readline().startswith(b"retry")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DRAIN_S) == 0
        for follower in followers:
            follower.read()  # raises where the stream was cut off
    text = (tmp_path / "process.log").read_text()
    assert "Traceback" not in text
    assert '"level": "error"' not in text.lower()


def test_gateways_keys_do_not_cross_the_network_in_clear(tmp_path: Path) -> None:
    bind = {"QUERYWARDEN_GATEWAY__GRPC_BIND": "0.0.0.0:0", "QUERYWARDEN_HTTP__BIND": "127.0.0.1:0"}
    refused = done(tmp_path, "serve", **bind)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "gateway.grpc_plaintext" in refused.stderr


def test_commands_say_what_is_there(tmp_path: Path) -> None:
    for arguments in (
        ("allowlist", "add", "carol", "--yes", "--for", "30d"),
        ("decisions", "throttle", "dave", "--yes", "--model", "m", "--dry-run"),
    ):
        assert done(tmp_path, *arguments).returncode == 0
    (allowed,) = [json.loads(line) for line in done(tmp_path, "allowlist", "list", "--json").stdout.splitlines()]
    assert (allowed["client_id"], allowed["model_id"], allowed["origin"]) == ("carol", "*", "operator")
    (decided,) = [json.loads(line) for line in done(tmp_path, "decisions", "list", "--json").stdout.splitlines()]
    assert (decided["client_id"], decided["state"], decided["simulated"]) == ("dave", "throttle", True)
    assert "dry run" in done(tmp_path, "decisions", "list").stdout
    assert done(tmp_path, "allowlist", "remove", "carol").returncode == 0
    again = done(tmp_path, "allowlist", "remove", "carol")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    wrong = done(tmp_path, "decisions", "block", "x", "--for", "2 weeks")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("15m", 900), ("4h", 14_400), ("7d", 604_800), ("60", 60)])
def test_lengths_of_time(text: str, value: int) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "h", "-1h", "1y", "1.5h", "9999999999s"])
def test_no_lengths_of_time(text: str) -> None:
    with pytest.raises(WrongUse):
        seconds(text)


# -------------------------------------------------------------------------------------------------------- doctor

FIRES: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "store answers": ({"store": {"url": "redis://127.0.0.1:1"}}, "redis"),
    "store encryption": ({"store": {"url": "redis://:secret@redis.example.test:6379"}}, "not encrypted"),
    "store password": ({"store": {"url": "redis://127.0.0.1:1"}}, "no password"),
    "store replicas": ({"store": {"url": "rediss://:secret@redis.example.test"}}, "min_replicas is 0"),
    "log answers": ({"kafka": {"bootstrap_servers": "127.0.0.1:1"}}, "no answer from 127.0.0.1:1"),
    "log format": ({"log": {"mapping": {"other": "kserve"}}}, "names topics that are not read: other"),
    "kafka encryption": (
        {"kafka": {"bootstrap_servers": "kafka.example.test:9092", "security_protocol": "PLAINTEXT"}}, "PLAINTEXT",
    ),
    "kafka access": ({"kafka": {"bootstrap_servers": "kafka.example.test:9092", "security_protocol": "SSL"}}, "without authentication"),
    "http address": ({"http": {"bind": "0.0.0.0:8080"}}, "keys would cross the network in clear text"),
    "gateway address": ({"gateway": {"grpc_bind": "0.0.0.0:8081"}}, "keys would cross the network in clear text"),
    "authentication": ({"http": {"open_on_loopback": False}}, "nobody can use the API"),
    "baselines": ({}, "no baselines"),
}  # fmt: skip
UNTRIED: dict[str, dict[str, dict[str, Any]]] = {
    "store answers": {},
    "store encryption": {"store": {"url": "rediss://:secret@127.0.0.1:1"}},
    "store password": {"store": {"url": "redis://:secret@127.0.0.1:1"}},
    "store eviction": {},
    "store replicas": {"store": {"url": "redis://127.0.0.1:1", "min_replicas": 1}},
    "record encryption": {},
    "log answers": {"log": {"url": "file:///nowhere/log.jsonl"}},
    "log cells": {},
    "kafka encryption": {"kafka": {"bootstrap_servers": "127.0.0.1:1", "security_protocol": "SSL"}},
    "kafka access": {"kafka": {"bootstrap_servers": "127.0.0.1:1", "security_protocol": "SASL_SSL"}},
    "secrets file": {},
    "settings file": {},
    "http address": {"http": {"bind": f"127.0.0.1:{free_port()}"}},
}
"""What can't be tried: nobody answers, or nothing is there."""


def finding(name: str, folder: Path, more: dict[str, dict[str, Any]], file: Path | None = None) -> tuple[str, str]:
    """(state, words) of one check."""
    settings = config.Settings(state_dir=str(folder), **more)  # type: ignore[arg-type]
    with mock.patch.object(doctor, "CHECKS", {name: doctor.CHECKS[name]}):
        return dict(doctor.examine(settings, file))[name]


@pytest.mark.parametrize("name", FIRES)
def test_each_check_of_doctor_fires(tmp_path: Path, name: str) -> None:
    settings, words = FIRES[name]
    state, found = finding(name, tmp_path, settings)
    assert (state, words in found) == ("look", True), found
    assert "secret@" not in found


@pytest.mark.parametrize("name", UNTRIED)
def test_doctor_calls_nothing_good_that_it_could_not_try(tmp_path: Path, name: str) -> None:
    assert finding(name, tmp_path, UNTRIED[name])[0] == "not checked"
    assert list(tmp_path.iterdir()) == [], "looking makes no file"
    assert doctor.CHECKS.keys() == FIRES.keys() | UNTRIED.keys()


def test_doctor_asks_a_real_broker(tmp_path: Path, kafka_bootstrap: str) -> None:
    produce(kafka_bootstrap, "asked-by-doctor", [b"{}"], partitions=1)
    brokers = {"bootstrap_servers": kafka_bootstrap, "topic": "asked-by-doctor"}
    assert finding("log answers", tmp_path, {"kafka": brokers}) == ("ok", "the brokers have the topic asked-by-doctor")
    state, words = finding("log answers", tmp_path, {"kafka": brokers | {"topic": "misspelt"}})
    assert (state, "no topic misspelt" in words) == ("look", True)


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_cert_reqs=optional", "ssl_check_hostname=false"])
def test_doctor_says_that_encryption_is_not_verified(tmp_path: Path, option: str) -> None:
    state, words = finding("store encryption", tmp_path, {"store": {"url": f"rediss://:secret@127.0.0.1:1?{option}"}})
    assert (state, "not verified" in words) == ("look", True)


def test_doctor_shakes_hands_with_an_encrypted_store(tmp_path: Path) -> None:
    authority, listener = trustme.CA(), socket.create_server(("127.0.0.1", 0))
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    port = listener.getsockname()[1]

    def answer() -> None:
        for _ in range(2):
            with contextlib.suppress(OSError), listener.accept()[0] as plain:
                context.wrap_socket(plain, server_side=True).close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    url = f"rediss://:secret@127.0.0.1:{port}"
    assert (
        finding("store encryption", tmp_path, {"store": {"url": f"{url}?ssl_ca_certs={tmp_path / 'ca.pem'}"}})[0]
        == "ok"
    )
    state, words = finding("store encryption", tmp_path, {"store": {"url": url}})
    assert (state, "cannot be verified" in words) == ("look", True)
    thread.join(10)
    listener.close()


def test_doctor_tries_a_store_without_its_password(tmp_path: Path, redis_url: str) -> None:
    state, words = finding("store password", tmp_path, {"store": {"url": redis_url.replace("//", "//:secret@")}})
    assert (state, "without a password" in words) == ("look", True), "it is spelt with one, and yet lets everybody in"
    assert finding("store answers", tmp_path, {"store": {"url": redis_url}})[0] == "ok"
    Secrets.create(tmp_path / "secrets.json")
    assert finding("store eviction", tmp_path, {"store": {"url": redis_url}})[0] == "ok"
    replicas = {"store": {"url": redis_url, "min_replicas": 1}}
    assert finding("store replicas", tmp_path, replicas) == (
        "look", "0 replicas are connected, store.min_replicas is 1: operators' writes will fail",
    )  # fmt: skip


def test_doctor_looks_at_the_secrets_file(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.json"
    secrets.write_text("{}")
    secrets.chmod(0o640)
    assert "mode 0640" in finding("secrets file", tmp_path, {})[1]
    secrets.chmod(0o600)
    assert finding("secrets file", tmp_path, {})[0] == "look", "it is none"
    secrets.unlink()
    made = Secrets.create(secrets)
    assert finding("secrets file", tmp_path, {}) == (
        "ok",
        f"{secrets}: secrets {made.key_id}, readable by its owner only",
    )
    tmp_path.chmod(0o777)
    assert "replace the secrets file" in finding("secrets file", tmp_path, {})[1]


def test_doctor_reads_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    file.write_text('[kafka]\nsasl_password = "pw"\n[http]\noidc_jwks = "https://u:pw@idp.example/"\n')
    file.chmod(0o644)
    state, words = finding("settings file", tmp_path, {}, file)
    assert (state, "holds kafka.sasl_password, http.oidc_jwks" in words, "pw" in words.split()) == ("look", True, False)
    file.chmod(0o600)
    assert finding("settings file", tmp_path, {}, file)[0] == "ok"


def test_doctor_reads_the_certificate_of_the_service(tmp_path: Path) -> None:
    authority = trustme.CA()
    for name, days in (("old", -1), ("good", 90)):
        ends = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
        issued = authority.issue_cert("q.example", not_after=ends, not_before=ends - dt.timedelta(days=365))
        issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")

    def seen(name: str) -> tuple[str, str]:
        file = str(tmp_path / f"{name}.pem")
        return finding(
            "http address", tmp_path, {"http": {"bind": "0.0.0.0:8080", "tls_certfile": file, "tls_keyfile": file}}
        )

    (tmp_path / "none.pem").write_text("x")
    assert [seen(name)[0] for name in ("good", "old", "none", "missing")] == ["ok", "look", "look", "look"]


def test_doctor_from_the_terminal(tmp_path: Path) -> None:
    found = done(tmp_path, "doctor", "--json")
    rows = {row["check"]: row for row in map(json.loads, found.stdout.splitlines())}
    assert found.returncode == 1
    assert (rows["baselines"]["ok"], rows["baselines"]["state"]) == (False, "look")
    assert (rows["store answers"]["ok"], rows["store answers"]["state"]) == (None, "not checked")
