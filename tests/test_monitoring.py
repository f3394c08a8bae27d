"""The real Prometheus on the real process' /metrics, with our rules and every expression of our dashboards; the real Alertmanager on
our sink's alerts, from the first one to its end; promtool and amtool on the files we ship.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as grafana
from support import victims
from support.receivers import HOSTILE, Recorder, Syslog, alert, life, recording
from support.servers import Alertmanager, NewServer, Prometheus, found, free_port, started, wait_until

from consumers.alerts.alertmanager import ALERTNAME, AlertmanagerSink
from consumers.alerts.finding import visible
from consumers.alerts.outbound import AllowedHosts
from consumers.alerts.webhook import keys, verify
from consumers.telemetry.metrics import METRICS
from detector.baseline_file import pack_baseline

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "monitoring"
DASHBOARDS = sorted((ROOT / "helm" / "files" / "grafana").glob("*.json"))
RULES = ROOT / "helm" / "files" / "querywarden.rules.yml"
SUFFIXES = ("_bucket", "_count", "_sum")


def fetched(url: str, **query: str) -> Any:
    asked = f"{url}?{urllib.parse.urlencode(query)}" if query else url
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return json.load(answer)


# --- the files


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        (("promtool",), ["check", "rules", "querywarden.rules.yml"]),
        (("promtool",), ["test", "rules", "querywarden.rules.test.yml"]),
        (("promtool",), ["check", "config", "prometheus.yml"]),
        (("amtool",), ["check-config", "alertmanager.yml"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_the_tools_accept_our_files(tool: tuple[str, ...], arguments: list[str], new_server: NewServer) -> None:
    done = subprocess.run(
        [new_server(found, *tool), *arguments], cwd=EXAMPLES, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_sees_a_wrong_threshold(tmp_path: Path, new_server: NewServer) -> None:
    """The unit tests of the rules can fail."""
    rules = RULES.read_text()
    assert "ratio5m > 0.05" in rules
    (tmp_path / "querywarden.rules.yml").write_text(rules.replace("ratio5m > 0.05", "ratio5m > 0.5"))
    shutil.copy(EXAMPLES / "querywarden.rules.test.yml", tmp_path)
    command = [new_server(found, "promtool"), "test", "rules", "querywarden.rules.test.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "QueryWardenRecordsRefused" in done.stdout + done.stderr


def test_every_alert_rule_is_explained() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert f"### {rule['alert']}\n" in text
                assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{rule['alert'].lower()}"
                assert rule["labels"]["severity"] in ("critical", "warning")


def expressions() -> list[tuple[str, str]]:
    """(where, PromQL) of every rule and every panel, Grafana's variables filled in."""
    shown = []
    for file in DASHBOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                if "expr" in target:
                    text = (
                        target["expr"].replace("$__rate_interval", "1m").replace("$job", ".*").replace("$model", ".*")
                    )
                    shown.append((f"{file.stem}: {panel['title']}", text))
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        shown += [(rule.get("alert") or rule["record"], rule["expr"]) for rule in group["rules"]]
    return shown


def test_rules_and_panels_name_metrics_that_exist() -> None:
    recorded = {r["record"] for g in yaml.safe_load(RULES.read_text())["groups"] for r in g["rules"] if "record" in r}
    used: set[str] = set()
    for where, text in expressions():
        for name in re.findall(r"querywarden[a-z0-9_:]+", text):
            if name in recorded:
                continue
            plain = next((name.removesuffix(s) for s in SUFFIXES if name.removesuffix(s) in METRICS), name)
            assert plain in METRICS, f"{where}: {name}"
            used.add(plain)
            for label in re.findall(rf"{name}\{{([^}}]*)\}}", text):
                named = set(re.findall(r"(\w+)(?:=~|!=|=)", label)) - {"job", "le" if name.endswith("_bucket") else ""}
                assert named <= set(METRICS[plain][1]), f"{where}: {label}"
    assert len(used) >= 15


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_is_what_grafana_imports(file: Path) -> None:
    board = json.loads(file.read_text())
    assert board["uid"] == file.stem
    assert board["schemaVersion"] >= 36
    assert "id" not in board, "an id would overwrite somebody's dashboard"
    variables = {v["name"] for v in board["templating"]["list"]}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        assert panel["title"]
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"].strip("${}") in variables
        assert set(re.findall(r"\$\{?(\w+)", json.dumps(panel["targets"]))) - {"__rate_interval"} <= variables


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """(place, value) of everything in a JSON document that holds nothing else."""
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{at}.{name}")
    else:
        yield at, value


def kept(board: dict[str, Any]) -> dict[str, Any]:
    """The board as Grafana's own types have it."""
    known = grafana.Dashboard.from_json(board)
    return dict(leaves(json.loads(JSONEncoder(sort_keys=True).encode(known))))


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_grafanas_own_types_know_every_field_of_a_dashboard(file: Path) -> None:
    """No Grafana runs here: its types, generated from its schemas, read the board and lose nothing of it."""
    board = json.loads(file.read_text())
    whole, told = dict(leaves(board)), kept(board)
    lost = {at for at, value in whole.items() if told.get(at, ...) != value}
    assert {at.rpartition(".")[2] for at in lost} <= {"definition"}, "only what the editor shows of a variable's query"
    board["panels"][0]["gridpos"] = board["panels"][0].pop("gridPos")
    assert not {at for at in kept(board) if at.startswith(".panels.0.gridpos")}, "the check sees a field that is none"


def test_the_table_of_clients_asks_routes_and_fields_that_exist() -> None:
    from consumers.readers import models as read_models

    board = json.loads((ROOT / "helm" / "files" / "grafana" / "querywarden-clients.json").read_text())
    clients, alerts = (panel["targets"][0] for panel in board["panels"])
    assert clients["url"].startswith("/v1/models/${model}/clients")
    assert alerts["url"] == "/v1/alerts"
    for target, page, item in (
        (clients, read_models.ClientPage, read_models.Client),
        (alerts, read_models.AlertPage, read_models.Alert),
    ):
        assert target["root_selector"] in page.__dataclass_fields__
        for column in target["columns"]:
            assert column["selector"].partition(".")[0] in fields(item), column


def fields(kind: Any) -> set[str]:
    return set(getattr(kind, "__dataclass_fields__", None) or kind.__struct_fields__)


# --- the real Prometheus on the real process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the running service."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def hook() -> Iterator[Recorder]:
    """A webhook that is away at first."""
    with recording() as recorder:
        recorder.answers[:] = [500, 429]
        yield recorder


@pytest.fixture(scope="module")
def syslog() -> Iterator[Syslog]:
    listener = Syslog("tcp")
    listener.up()
    yield listener
    listener.down()


@pytest.fixture(scope="module")
def metrics_port(folder: Path, hook: Recorder, syslog: Syslog, alertmanager: Alertmanager) -> Iterator[int]:
    """A real `querywarden run` over a small log with thieves in it, alerts to a file and to four other sinks."""
    (folder / "loans.baseline").write_bytes(pack_baseline(victims.baseline()))
    attacks = [("noise_uniform", "plain")]
    victims.log_of(folder / "log.jsonl", victims.streams(1, attacks, seed=23, kinds=["regular"], queries=(400, 500)))
    port = free_port()
    settings = {
        "QUERYWARDEN_STATE_DIR": str(folder / "state"),
        "QUERYWARDEN_BASELINES": str(folder / "loans.baseline"),
        "QUERYWARDEN_LOG__URL": f"file://{folder / 'log.jsonl'}",
        "QUERYWARDEN_METRICS__BIND": f"127.0.0.1:{port}",
        "QUERYWARDEN_HTTP__BIND": "127.0.0.1:0",
        "QUERYWARDEN_ALERTS__FILE": str(folder / "alerts.jsonl"),
        "QUERYWARDEN_ALERTS__ALERTMANAGER__URL": alertmanager.url,
        "QUERYWARDEN_ALERTS__ALERTMANAGER__FIRING_HOURS": "100000",
        "QUERYWARDEN_ALERTS__ALERTMANAGER__RESEND_S": "0.5",
        "QUERYWARDEN_ALERTS__WEBHOOK__URL": f"{hook.url}/hook",
        "QUERYWARDEN_ALERTS__WEBHOOK__KEYS": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "QUERYWARDEN_ALERTS__WEBHOOK__ALLOW": "127.0.0.1",
        "QUERYWARDEN_ALERTS__SYSLOG__URL": syslog.url,
        "QUERYWARDEN_ALERTS__ECS__FILE": str(folder / "ecs.jsonl"),
        "OMP_NUM_THREADS": "1",
    }
    mine = {k: v for k, v in os.environ.items() if not k.startswith("QUERYWARDEN_")} | settings
    with (folder / "log.txt").open("wb") as said:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("querywarden")), "run"], env=mine, stdout=said, stderr=said
        )
        try:

            def alerted() -> bool:
                assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
                return (folder / "alerts.jsonl").exists() and bool((folder / "alerts.jsonl").read_bytes())

            wait_until(alerted, 60, "the first alert")
            yield port
        finally:
            process.terminate()
            assert process.wait(20) == 0


@pytest.fixture(scope="module")
def alertmanager(new_server: NewServer) -> Iterator[Alertmanager]:
    with started(new_server(Alertmanager, EXAMPLES / "alertmanager.yml")) as server:
        yield server


@pytest.fixture(scope="module")
def prometheus(
    metrics_port: int, alertmanager: Alertmanager, tmp_path_factory: pytest.TempPathFactory, new_server: NewServer
) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copy(RULES, folder / RULES.name)
    config = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [
        {"targets": [f"127.0.0.1:{metrics_port}"], "labels": {"component": "run"}}
    ]
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager.port}"]}]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with started(new_server(Prometheus, folder / "prometheus.yml")) as server:
        yield server


def asked(prometheus: Prometheus, expression: str) -> list[Any]:
    answer = fetched(f"{prometheus.url}/api/v1/query", query=expression)
    assert answer["status"] == "success"
    result: list[Any] = answer["data"]["result"]
    return result


def value(prometheus: Prometheus, expression: str) -> float:
    result = asked(prometheus, expression)
    return float(result[0]["value"][1]) if result else 0.0


def test_prometheus_scrapes_the_running_service(prometheus: Prometheus) -> None:
    wait_until(lambda: value(prometheus, "up{component='run'}") == 1, 15, "a scrape")
    wait_until(lambda: value(prometheus, "sum(querywarden_records_total{outcome='query'})") >= 400, 20, "records")
    wait_until(lambda: value(prometheus, "sum(querywarden_alerts_total{outcome='sent'})") >= 1, 20, "alerts")
    wait_until(lambda: value(prometheus, "max(querywarden_clients_flagged{model='loans-v1'})") >= 1, 20, "the census")
    assert value(prometheus, "querywarden_build_info") == 1
    assert value(prometheus, "sum(querywarden_store_seconds_count{operation='commit'})") >= 1
    assert value(prometheus, "querywarden_detection_latency_seconds_count") >= 1
    labels = {k for series in asked(prometheus, '{__name__=~"querywarden.*"}') for k in series["metric"]}
    assert not labels & {"client", "client_id", "alert_id", "uid"}
    assert "acct-" not in json.dumps(asked(prometheus, '{__name__=~"querywarden.*"}'))


def test_one_alert_reaches_every_sink_of_the_running_service(
    metrics_port: int, folder: Path, hook: Recorder, syslog: Syslog, alertmanager: Alertmanager
) -> None:
    """The webhook answered 500 and 429 first: it got the alert all the same, under the same id, and the others were not held up."""
    first = json.loads((folder / "alerts.jsonl").read_text().splitlines()[0])
    uid = f"{first['alert_id']}/{first['update']}"
    wait_until(lambda: len(hook.seen) >= 3, 20, "the third attempt")
    assert {r.headers["webhook-id"] for r in hook.seen[:3]} == {uid}
    for request in hook.seen[:3]:
        assert verify(keys("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), request.headers, request.body, time.time())
        assert request.json["data"] == first
    wait_until(lambda: any(uid.encode() in line for line in syslog.lines), 10, "the syslog message")
    wait_until(
        lambda: (folder / "ecs.jsonl").exists() and uid in (folder / "ecs.jsonl").read_text(), 10, "the document"
    )
    wait_until(lambda: len(told(alertmanager, alert_id=first["alert_id"])) == 1, 10, "the alert in Alertmanager")


def test_alerts_are_written_as_stix(metrics_port: int, folder: Path) -> None:
    mine = {k: v for k, v in os.environ.items() if not k.startswith("QUERYWARDEN_")}
    mine["QUERYWARDEN_STATE_DIR"] = str(folder / "state")
    command = [str(Path(sys.executable).with_name("querywarden")), "alerts", "--stix", str(folder / "bundle.json")]
    done = subprocess.run(command, env=mine, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told_of = {
        o["user_id"] for o in json.loads((folder / "bundle.json").read_text())["objects"] if o["type"] == "user-account"
    }
    sent = {json.loads(line)["client_id"] for line in (folder / "alerts.jsonl").read_text().splitlines()}
    assert told_of == sent


def test_the_rules_are_loaded_and_evaluate(prometheus: Prometheus) -> None:
    def health() -> set[str]:
        groups = fetched(f"{prometheus.url}/api/v1/rules")["data"]["groups"]
        return {rule["health"] for group in groups for rule in group["rules"] if group["name"].endswith("alerts")}

    wait_until(lambda: health() == {"ok"}, 20, "an evaluation of every rule")
    names = {g["name"] for g in fetched(f"{prometheus.url}/api/v1/rules")["data"]["groups"]}
    assert names == {"querywarden.recording", "querywarden.alerts"}


def test_every_expression_of_rules_and_dashboards_evaluates(prometheus: Prometheus) -> None:
    wait_until(lambda: value(prometheus, "sum(querywarden_clients_flagged)") >= 1, 20, "the census")

    def answered() -> set[str]:
        found = set()
        for where, text in expressions():
            try:
                found |= {where} if asked(prometheus, text) else set()
            except urllib.error.HTTPError as error:
                pytest.fail(f"{where}: {json.load(error)['error']}")
        return found

    speaking = {"querywarden: Clients flagged", "querywarden: Records by outcome", "querywarden: Alerts by sink",
                "querywarden: From query to stored alert", "querywarden: Store, 99th percentile", "querywarden: Checkpoints",
                "querywarden:records:rate5m", "querywarden:flagged_clients:max"}  # fmt: skip
    wait_until(lambda: speaking <= answered(), 20, f"an answer to {speaking - answered()}")


def test_a_wrong_expression_is_seen(prometheus: Prometheus) -> None:
    with pytest.raises(urllib.error.HTTPError):
        asked(prometheus, "sum by (rate(querywarden_records_total[5m]))")


# --- the real Alertmanager


def told(alertmanager: Alertmanager, **labels: str) -> list[Any]:
    query = [("filter", f'{name}="{value}"') for name, value in labels.items()]
    asked_for = f"{alertmanager.url}/api/v2/alerts?{urllib.parse.urlencode(query)}"
    answer: list[Any] = fetched(asked_for)
    return answer


def fires(alertmanager: Alertmanager, number: int) -> bool:
    return len(told(alertmanager, alert_id=f"{number:032x}")) == 1


def sink_of(alertmanager: Alertmanager, **more: Any) -> AlertmanagerSink:
    return AlertmanagerSink(alertmanager.url, allow=AllowedHosts.of("127.0.0.1"), **more)


def test_a_finding_fires_changes_its_severity_and_is_resolved(alertmanager: Alertmanager) -> None:
    sink = sink_of(alertmanager)
    first, second, last = life(901)
    name = f"{901:032x}"
    assert sink.send([first]) == [True]
    wait_until(lambda: len(told(alertmanager, alert_id=name)) == 1, 10, "the alert")
    (shown,) = told(alertmanager, alert_id=name)
    assert shown["labels"]["alertname"] == ALERTNAME
    assert shown["labels"]["severity"] == "high"
    assert shown["annotations"]["subject"] == "acct-901"
    assert shown["status"]["state"] == "active"
    assert [r["name"] for r in shown["receivers"]] == ["security"]
    for _ in range(2):
        assert sink.refresh() == 1
    assert len(told(alertmanager, alert_id=name)) == 1, "sent again is the same alert"
    assert sink.send([second]) == [True]
    wait_until(
        lambda: [a["labels"]["severity"] for a in told(alertmanager, alert_id=name)] == ["critical"], 10, "the block"
    )
    assert [r["name"] for a in told(alertmanager, alert_id=name) for r in a["receivers"]] == ["pager"]
    assert sink.send([last]) == [True]
    wait_until(lambda: told(alertmanager, alert_id=name) == [], 10, "the end")
    assert sink.refresh() == 0
    sink.close()


def test_a_restarted_alertmanager_learns_again(alertmanager: Alertmanager) -> None:
    """It keeps no alerts on its disk: without the repeats it would believe that all is well."""
    sink = sink_of(alertmanager, stored=lambda: [alert(902, time=now())])
    sink.send([alert(902)])
    wait_until(lambda: len(told(alertmanager, alert_id=f"{902:032x}")) == 1, 10, "the alert")
    alertmanager.stop()
    alertmanager.start()
    assert told(alertmanager, alert_id=f"{902:032x}") == []
    assert sink.refresh() == 1
    wait_until(lambda: len(told(alertmanager, alert_id=f"{902:032x}")) == 1, 10, "the alert again")
    sink.close()


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def test_alertmanager_takes_hostile_clients(alertmanager: Alertmanager) -> None:
    sink = sink_of(alertmanager)
    for number, name in enumerate(HOSTILE, start=950):
        assert sink.send([alert(number, client_id=name)]) == [True]
    for number, name in enumerate(HOSTILE, start=950):
        wait_until(functools.partial(fires, alertmanager, number), 10, "the alert")
        (shown,) = told(alertmanager, alert_id=f"{number:032x}")
        assert shown["annotations"]["subject"] == visible(name)
    sink.close()
