"""P14: what is secret in the settings is nowhere to be read, not in logs, metrics, answers, files or errors, also when everything fails.

Every setting of the type SecretStr gets a canary of its own; a new one without a canary fails the first test.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, SecretStr
from support import victims
from support.forked_command import COLUMNS, querywarden
from support.servers import free_port, wait_until

from consumers import cli, config
from detector.baseline_file import pack_baseline

NOBODY = "127.0.0.1:9"
"""The port of discard, where nobody listens."""


def canary(name: str) -> str:
    return "canary" + name.replace(".", "").replace("_", "")


def key_of(name: str) -> str:
    return "whsec_" + base64.b64encode(canary(name).encode().ljust(24, b"=")).decode()


SECRETS = {
    name: value.replace("CANARY", canary(name))
    for name, value in {
        "store.url": f"redis://:CANARY@{NOBODY}/0",
        "kafka.sasl_password": "CANARY",
        "alerts.webhook.url": f"https://{NOBODY}/CANARY",
        "alerts.webhook.keys": key_of("alerts.webhook.keys"),
        "alerts.alertmanager.url": f"http://{NOBODY}/CANARY",
        "alerts.alertmanager.token": "CANARY",
        "alerts.pagerduty.routing_key": "CANARY",
        "alerts.notify.urls": f"json://user:CANARY@{NOBODY}",
        "alerts.splunk.url": f"https://{NOBODY}/CANARY",
        "alerts.splunk.token": "CANARY",
        "alerts.ecs.url": f"https://{NOBODY}/CANARY",
        "alerts.ecs.api_key": "CANARY",
        "responders.crowdsec_password": "CANARY",
        "responders.crowdsec_bouncer_key": "CANARY",
    }.items()
}
APART = ("store.url", "kafka.sasl_password")
"""With these no service starts here: they have a test of their own."""
OPEN = {
    "alerts.pagerduty.url": f"https://{NOBODY}/v2/enqueue",
    "alerts.pagerduty.allow": "127.0.0.0/8",
    "alerts.webhook.allow": "127.0.0.0/8",
    "responders.crowdsec_url": f"http://{NOBODY}",
}


def secret_settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from secret_settings(kind, f"{prefix}{name}.")
        elif kind is SecretStr or SecretStr in get_args(kind):
            yield prefix + name


def found(text: str) -> list[str]:
    """Settings whose canary, or its base64, is in the text."""
    told = {name: (canary(name), base64.b64encode(canary(name).encode()).decode().rstrip("=")[:-1]) for name in SECRETS}
    return [name for name, forms in told.items() if any(form in text for form in forms)]


def environment(folder: Path, settings: dict[str, str]) -> dict[str, str]:
    mine = {k: v for k, v in os.environ.items() if not k.startswith("QUERYWARDEN_")}
    told = {"QUERYWARDEN_" + name.upper().replace(".", "__"): value for name, value in settings.items()}
    return mine | told | {"QUERYWARDEN_STATE_DIR": str(folder / "state"), "OMP_NUM_THREADS": "1", "COLUMNS": COLUMNS}


def said(arguments: list[str], env: dict[str, str]) -> str:
    done = subprocess.run([str(querywarden()), *arguments], env=env, capture_output=True, timeout=120, check=False)
    return (done.stdout + done.stderr).decode()


def get(address: str) -> str:
    """Head and body of the answer, also of a refusal."""
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return f"{answer.headers}{answer.read().decode()}"
    except urllib.error.HTTPError as refusal:
        return f"{refusal.headers}{refusal.read().decode()}"


def failing(log: Path) -> set[str]:
    """Sinks of which the service said that they took nothing."""
    whole = log.read_text().rpartition("\n")[0]
    told = [json.loads(line) for line in whole.splitlines()]
    return {line["sink"] for line in told if line["event"] in ("sink away", "alert set aside")}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("canaries")
    (folder / "loans.baseline").write_bytes(pack_baseline(victims.baseline()))
    who = victims.streams(4, [("noise_uniform", "plain")], seed=23, kinds=["regular"], queries=(400, 500))
    victims.log_of(folder / "log.jsonl", who)
    return folder


def test_every_secret_has_a_canary_and_the_search_finds_it() -> None:
    assert sorted(secret_settings(config.Settings)) == sorted(SECRETS)
    for name, value in SECRETS.items():
        assert found(f"error: {value!r}") == [name]


TEXTS: tuple[set[object], ...] = ({str}, {SecretStr}, {str | None, str}, {SecretStr | None, SecretStr})
"""A type and what it is made of, where any text is taken."""


def text_settings(model: type[BaseModel] = config.Settings, prefix: str = "") -> Iterator[tuple[str, ...]]:
    """Path of every setting that takes any text, secret or not."""
    for name, field in model.model_fields.items():
        kind, path = field.annotation, (*prefix.split("."), name) if prefix else (name,)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from text_settings(kind, ".".join(path))
        elif {kind, *get_args(kind)} - {type(None)} in TEXTS and not field.metadata:
            yield path


def test_config_show_masks_secrets_inside_addresses_in_every_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canary_url = "https://CANARY:CANARY@h.example:8443/a?token=CANARY&x=CANARY#CANARY"
    filled = list(text_settings())
    assert {("http", "oidc_jwks"), ("alerts", "syslog", "url"), ("store", "url"), ("log", "url")} <= set(filled)
    lines = [f"{'.'.join(path)} = {canary_url!r}" for path in filled]
    (tmp_path / "q.toml").write_text(
        "\n".join(lines) + f"\nbaselines = [{canary_url!r}]\ngateway.degrade.watch = {canary_url!r}\n"
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(["config", "show", "--config", str(tmp_path / "q.toml")])
    shown = capsys.readouterr()
    assert ended.value.code == 0, shown.err
    assert "CANARY" not in shown.out
    assert json.loads(shown.out)["http"]["oidc_jwks"] == "https://***@h.example:8443/a?***"


def test_a_service_whose_alerts_fail_everywhere_tells_no_secret(files: Path, tmp_path: Path) -> None:
    http, metrics = free_port(), free_port()
    env = environment(
        tmp_path,
        {name: value for name, value in SECRETS.items() if name not in APART} | OPEN | {
            "log.url": f"file://{files / 'log.jsonl'}", "baselines": str(files / "loans.baseline"),
            "http.bind": f"127.0.0.1:{http}", "metrics.bind": f"127.0.0.1:{metrics}",
        },
    )  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        service = subprocess.Popen([str(querywarden()), "run"], env=env, stdout=log, stderr=log)
        try:
            wait_until(lambda: "serve started" in (tmp_path / "log").read_text(), 60, "the service")
            wait_until(lambda: len(failing(tmp_path / "log")) == 6, 60, "failures of all six sinks")
            metered = get(f"http://127.0.0.1:{metrics}/metrics")
            pages = [
                "/",
                "/v1/models",
                "/v1/alerts",
                "/v1/decisions",
                "/v1/keys",
                "/v1/audit",
                "/openapi.json",
                "/healthz",
                "/readyz",
            ]
            answers = [get(f"http://127.0.0.1:{http}{page}") for page in pages]
            time.sleep(1.0)
        finally:
            service.terminate()
            assert service.wait(30) == 0
    told = (tmp_path / "log").read_text()
    assert len([json.loads(line) for line in told.splitlines()]) > 5
    kept = [p for p in (tmp_path / "state").rglob("*") if p.is_file() and p.name != "secrets.json"]
    assert any(p.suffix == ".sqlite" for p in kept)
    looked = {
        "its log": told, "its metrics": metered, "its answers": "".join(answers),
        "what it stored": "".join(p.read_bytes().decode("latin-1") for p in kept),
        "config show": said(["config", "show"], env), "config check": said(["config", "check"], env), "doctor": said(["doctor"], env),
    }  # fmt: skip
    assert {where: found(text) for where, text in looked.items() if found(text)} == {}
    assert "querywarden_" in looked["its metrics"]


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("clients", {"store.url": SECRETS["store.url"]}),
        ("doctor", {"store.url": SECRETS["store.url"]}),
        ("ingest", {"kafka.sasl_password": SECRETS["kafka.sasl_password"], "kafka.sasl_username": "someone",
                    "kafka.security_protocol": "SASL_PLAINTEXT", "kafka.sasl_mechanism": "PLAIN", "kafka.bootstrap_servers": NOBODY}),
    ],
)  # fmt: skip
def test_what_cannot_be_reached_tells_no_secret(
    command: str, settings: dict[str, str], files: Path, tmp_path: Path
) -> None:
    text = said([command], environment(tmp_path, settings | {"baselines": str(files / "loans.baseline")}))
    assert len(text) > 40, "it says what is wrong"
    assert found(text) == []
