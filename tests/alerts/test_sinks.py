"""The sink contract on every sink, and on broken ones; then what each sink says in its own words."""

from __future__ import annotations

import base64
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme
from kafka import KafkaConsumer, TopicPartition
from support import sink_contract as contract
from support.receivers import Recorder, Syslog, alert, eventually, life, recording
from support.sink_contract import CANARY, Case, Message

from consumers.alerts import AlertSink
from consumers.alerts.alertmanager import AlertmanagerSink
from consumers.alerts.ecs import EcsFileSink, EcsSink
from consumers.alerts.kafka import KafkaSink
from consumers.alerts.notify import NotifySink
from consumers.alerts.outbound import AllowedHosts
from consumers.alerts.pagerduty import PagerDutySink
from consumers.alerts.splunk import SplunkSink
from consumers.alerts.syslog import SyslogSink
from consumers.alerts.webhook import WebhookSink
from consumers.errors import Refused, Unavailable, Undeliverable
from consumers.log.kafka import connection
from consumers.store import OutboxAlert

LOOPBACK = AllowedHosts.of("127.0.0.1")
KEY = f"whsec_{base64.b64encode(CANARY.encode() * 2).decode()}"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


# --- how each receiver reads


def of_webhook(recorder: Recorder) -> list[Message]:
    return [
        Message(r.headers["webhook-id"], r.json["type"].split(".")[-2], r.json["data"]["client_id"], [r.json["type"]])
        for r in recorder.seen
    ]


def of_webhook_ocsf(recorder: Recorder) -> list[Message]:
    found = []
    for request in recorder.seen:
        event = request.json["data"]
        client = event["evidences"][0]["actor"]["user"]["uid"]
        texts = [event["message"], event["finding_info"]["title"], event["finding_info"]["desc"]]
        happened = {1: "created", 2: "updated", 3: "closed"}[event["activity_id"]]
        found.append(Message(event["metadata"]["uid"], happened, client, texts))
    return found


def of_alertmanager(recorder: Recorder) -> list[Message]:
    found = []
    for request in recorder.seen:
        alerts = request.json
        ((incident, texts),) = {(a["labels"]["alert_id"], tuple(a["annotations"].values())) for a in alerts}
        firing = [a["labels"]["severity"] for a in alerts if a["endsAt"] > "2026-03-03"]
        happened = {("high",): "created", ("critical",): "updated", (): "closed"}[tuple(firing)]
        found.append(Message(incident, happened, alerts[0]["annotations"]["subject"], list(texts)))
    return found


def of_pagerduty(recorder: Recorder) -> list[Message]:
    found = []
    for request in recorder.seen:
        event = request.json
        assert event["routing_key"] == CANARY
        details = event["payload"]["custom_details"]
        texts = [event["payload"]["summary"], details["subject"], *details["evidence"]]
        found.append(Message(event["dedup_key"], event["event_action"], details["subject"], texts))
    return found


def of_notify(recorder: Recorder) -> list[Message]:
    found = []
    for request in recorder.seen:
        title, body, kind = (request.json[k] for k in ("title", "message", "type"))
        (uid,) = re.findall(r"alert (\w+/\d+)", body)
        happened = {"warning": "created", "failure": "updated", "success": "closed"}[kind]
        plainly = re.search(r"client (.*?)(?:: throttle| of fraud|: block|: clear)", body)
        assert plainly is not None
        for mark in "<>*_`[]@|":
            assert mark not in title + body
        assert "://" not in body
        shown = re.sub(r"\(([0-9a-f]{2})\)", lambda m: chr(int(m[1], 16)), plainly[1]).replace(":(2f)/", "://")
        found.append(Message(uid, happened, shown, [title, body]))
    return found


def of_splunk(recorder: Recorder) -> list[Message]:
    for request in recorder.seen:
        assert request.path == "/services/collector/event"
        assert request.headers["authorization"] == f"Splunk {CANARY}"
    happened = {None: "created", "block": "updated", "clear": "closed"}
    return [
        Message(
            r.json["fields"]["uid"],
            happened.get(r.json["event"]["state"], "created"),
            r.json["event"]["client_id"],
            [r.json["sourcetype"]],
        )
        for r in recorder.seen
    ]


def of_ecs(documents: Sequence[Any]) -> list[Message]:
    return [
        Message(
            d["event"]["id"], d["event"]["action"].split("-")[1], d["user"]["id"], [d["message"], d["rule"]["name"]]
        )
        for d in documents
    ]


RFC5424 = re.compile(
    r"<(\d{1,3})>1 (\d{4}-\d\d-\d\dT[\d:.]+Z) ([!-~]+) querywarden (\d+) (created|updated|closed) "
    r'\[querywarden@32473 uid="((?:[^"\\\]]|\\.)*)" model="((?:[^"\\\]]|\\.)*)"\] (CEF:.*)'
)
PART = re.compile(r"(?:[^|\\]|\\[\\|])*")
FIELD = re.compile(r"(\w+)=((?:[^=\\]|\\[\\=])*)(?= \w+=|$)")


def of_syslog(lines: Sequence[bytes]) -> list[Message]:
    """A strict reader: one line, RFC 5424, CEF with seven header parts, every `=` of a value escaped."""
    found = []
    for line in lines:
        text = line.decode()
        assert text.isprintable(), "one line without control characters"
        read = RFC5424.fullmatch(text)
        assert read is not None, text
        head, rest = [], read[8]
        for _ in range(7):
            part = PART.match(rest)
            assert part is not None
            assert rest[part.end()] == "|", "an escaped header"
            head.append(part[0])
            rest = rest[part.end() + 1 :]
        assert head[0] == "CEF:0"
        fields = {k: unescaped(v) for k, v in FIELD.findall(rest)}
        assert " ".join(f"{k}={v}" for k, v in FIELD.findall(rest)) == rest, "every field is read"
        assert list(fields)[:6] == ["externalId", "rt", "cat", "act", "outcome", "suid"]
        assert fields["externalId"] == read[6]
        found.append(Message(read[6], read[5], fields["suid"], [fields["msg"]]))
    return found


def of_kafka(records: Sequence[Any]) -> list[Message]:
    found = []
    for record in records:
        headers = dict(record.headers)
        event = json.loads(record.value)
        assert record.key.decode() == event["finding_info"]["uid"]
        happened = headers["ce_type"].decode().split(".")[-2]
        texts = [event["message"], event["finding_info"]["title"]]
        found.append(Message(headers["ce_id"].decode(), happened, event["evidences"][0]["actor"]["user"]["uid"], texts))
    return found


# --- the cases


def http_case(
    recorder: Recorder, make: Callable[[], AlertSink], read: Callable[[Recorder], list[Message]], **more: Any
) -> Case:
    return Case(make, lambda: read(recorder), recorder.down, recorder.up, **more)


INCIDENT: dict[str, Any] = {"one_incident": True, "says": ("trigger", "trigger", "resolve")}
HTTP: dict[str, tuple[Callable[[Recorder], AlertSink], Callable[[Recorder], list[Message]], dict[str, Any]]] = {
    "webhook": (
        lambda r: WebhookSink(f"{r.url}/hook/{CANARY}", KEY, allow=LOOPBACK, context=r.context),
        of_webhook, {"raw_id": True},
    ),
    "webhook-ocsf": (
        lambda r: WebhookSink(f"{r.url}/hook/{CANARY}", KEY, allow=LOOPBACK, context=r.context, form="ocsf"),
        of_webhook_ocsf, {"raw_id": True},
    ),
    "alertmanager": (
        lambda r: AlertmanagerSink(
            r.url, allow=LOOPBACK, context=r.context, headers={"Authorization": f"Bearer {CANARY}"},
            clock=lambda: 1_772_442_100.0,
        ),
        of_alertmanager, {"one_incident": True},
    ),
    "pagerduty": (
        lambda r: PagerDutySink(CANARY, url=f"{r.url}/v2/enqueue", allow=LOOPBACK, context=r.context),
        of_pagerduty, INCIDENT,
    ),
    "splunk": (
        lambda r: SplunkSink(r.url, CANARY, allow=LOOPBACK, context=r.context),
        of_splunk, {"raw_id": True},
    ),
    "ecs": (
        lambda r: EcsSink(f"{r.url}/alerts", api_key=CANARY, allow=LOOPBACK, context=r.context),
        lambda r: of_ecs([request.json for request in r.seen]), {"raw_id": True},
    ),
}  # fmt: skip
NAMES = [*HTTP, "notify", "syslog-tcp", "syslog-tls"]


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest, authority: trustme.CA) -> Iterator[Case]:
    yield from cases(request.param, authority)


def cases(name: str, authority: trustme.CA) -> Iterator[Case]:
    if name.startswith("syslog"):
        scheme = name.removeprefix("syslog-")
        syslog = Syslog(scheme, authority if scheme == "tls" else None)
        syslog.up()
        yield Case(
            lambda: SyslogSink(syslog.url, context=syslog.context), lambda: of_syslog(list(syslog.lines)), syslog.down,
            syslog.up,
        )  # fmt: skip
        syslog.down()
    elif name == "notify":
        with recording() as recorder:
            url = f"json://user:{CANARY}@127.0.0.1:{recorder.port}/{CANARY}"
            yield http_case(recorder, lambda: NotifySink(url), of_notify)
    else:
        make, read, more = HTTP[name]
        with recording(authority) as recorder:
            yield http_case(recorder, lambda: make(recorder), read, **more)


@pytest.mark.parametrize("promise", contract.CONTRACT, ids=lambda promise: promise.__name__)
def test_every_sink_keeps_the_contract(case: Case, promise: Callable[[Case], None]) -> None:
    promise(case)


def test_no_sink_tells_its_secrets(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    contract.keeps_its_secrets(case, caplog)


# --- the contract sees what is wrong


class Broken:
    """A webhook that breaks one promise."""

    def __init__(self, inner: AlertSink, fault: str) -> None:
        self._inner, self._fault, self._sent = inner, fault, 0

    @property
    def name(self) -> str:
        return CANARY if self._fault == "tells" else self._inner.name

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        if self._fault == "drops":
            return [True] * len(alerts)
        if self._fault == "renames":
            self._sent += 1
            alerts = [
                OutboxAlert(a.uid, a.time_ms, a.body.replace(b'0", "time', b'%d", "time' % self._sent)) for a in alerts
            ]
            alerts = [
                OutboxAlert(a.uid, a.time_ms, json.dumps(json.loads(a.body) | {"update": self._sent}).encode())
                for a in alerts
            ]
        if self._fault == "cuts":
            bodies = [json.loads(a.body) for a in alerts]
            shortened = [b | {"client_id": b["client_id"][:20]} if "client_id" in b else b for b in bodies if b]
            alerts = [
                OutboxAlert(a.uid, a.time_ms, json.dumps(b).encode()) for a, b in zip(alerts, shortened, strict=False)
            ]
        try:
            return self._inner.send(alerts)
        except Unavailable:
            if self._fault == "lies":
                return [True] * len(alerts)
            raise
        except Undeliverable:
            if self._fault == "swallows":
                return [True] * len(alerts)
            raise

    def close(self) -> None:
        self._inner.close()


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("drops", contract.delivers_the_life_of_a_finding),
        ("renames", contract.gives_the_same_id_again),
        ("lies", contract.says_unavailable_in_an_outage_and_goes_on_after_it),
        ("cuts", contract.is_not_broken_by_what_a_client_calls_itself),
        ("swallows", contract.refuses_what_is_no_alert),
    ],
)
def test_the_contract_fails_on_a_broken_sink(
    authority: trustme.CA, fault: str, promise: Callable[[Case], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "eventually", lambda condition, within_s=0.0: condition())
    make, read, more = HTTP["webhook"]
    with recording(authority) as recorder:
        case = http_case(recorder, lambda: Broken(make(recorder), fault), read, **more)
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            promise(case)


def test_the_contract_sees_a_secret(authority: trustme.CA, caplog: pytest.LogCaptureFixture) -> None:
    make, read, more = HTTP["webhook"]
    with recording(authority) as recorder:
        case = http_case(recorder, lambda: Broken(make(recorder), "tells"), read, **more)
        with pytest.raises(AssertionError):
            contract.keeps_its_secrets(case, caplog)


# --- HTTP statuses


@pytest.mark.parametrize("name", ["webhook", "alertmanager", "ecs"])
@pytest.mark.parametrize(
    ("status", "error"),
    [(400, Undeliverable), (401, Undeliverable), (404, Undeliverable), (413, Undeliverable), (408, Unavailable),
     (429, Unavailable), (500, Unavailable), (503, Unavailable), (302, Unavailable)],
)  # fmt: skip
def test_a_status_says_whether_to_try_again(
    authority: trustme.CA, name: str, status: int, error: type[Exception]
) -> None:
    make, _, _ = HTTP[name]
    with recording(authority) as recorder:
        recorder.headers["Location"] = f"{recorder.url}/elsewhere"
        sink = make(recorder)
        recorder.answers[:] = [status]
        with pytest.raises(error):
            sink.send([alert(1), alert(2)])
        assert len(recorder.seen) == 1, "no redirect followed, nothing sent behind a failure"
        recorder.answers[:] = [202, status]
        assert sink.send([alert(1), alert(2), alert(3)]) == [True, False, False]
        sink.close()


# --- each in its own words


def test_an_incident_is_acknowledged_and_resolved_by_a_verdict(authority: trustme.CA) -> None:
    with recording(authority) as recorder:
        sink = PagerDutySink(CANARY, url=f"{recorder.url}/v2/enqueue", allow=LOOPBACK, context=recorder.context)
        judged = [alert(1, 1, verdict="true_positive"), alert(1, 2, verdict={"verdict": "false_positive", "by": "ann"})]
        assert sink.send([alert(1), *judged]) == [True] * 3
        sink.close()
    assert [r.json["event_action"] for r in recorder.seen] == ["trigger", "acknowledge", "resolve"]
    assert len({r.json["dedup_key"] for r in recorder.seen}) == 1
    for request in recorder.seen:
        assert request.json["payload"].keys() >= {"summary", "source", "severity"}
        assert request.json["payload"]["severity"] in ("critical", "error", "warning", "info")


def test_a_document_that_is_there_already_counts_as_taken(authority: trustme.CA) -> None:
    with recording(authority) as recorder:
        recorder.answers[:] = [409]
        sink = EcsSink(f"{recorder.url}/alerts", allow=LOOPBACK, context=recorder.context)
        assert sink.send([alert(5)]) == [True]
        sink.close()
    assert recorder.seen[0].path == f"/alerts/_create/{5:032x}%2F0"


def test_ecs_documents_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "ecs.jsonl"
    sink = EcsFileSink(path)
    assert sink.send(life(1)) == [True] * 3
    sink.close()
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    assert [m.happened for m in of_ecs(documents)] == ["created", "updated", "closed"]
    first = documents[0]
    assert first["threat"]["technique"]["subtechnique"]["id"] == ["AML.T0024.002", "AML.T0005.001"]
    assert first["event"]["kind"] == "alert"
    assert first["event"]["category"] == ["api", "intrusion_detection"]
    assert first["ecs"]["version"].startswith("9.")
    assert first["gen_ai"]["request"]["model"] == "fraud-v3"


def test_syslog_over_udp_is_one_datagram_a_message() -> None:
    syslog = Syslog("udp")
    syslog.up()
    sink = SyslogSink(syslog.url)
    assert sink.send(life(1)) == [True] * 3
    case = Case(lambda: sink, lambda: of_syslog(list(syslog.lines)), syslog.down, syslog.up)
    found = contract.arrives(case, 3)
    sink.close()
    syslog.down()
    assert [m.happened for m in found] == ["created", "updated", "closed"]
    assert [line.split(b">")[0] for line in syslog.lines] == [b"<107", b"<106", b"<110"]


def test_syslog_over_tls_keeps_its_connection(authority: trustme.CA) -> None:
    """The tickets that TLS 1.3 sends after the handshake are something to read, and no end."""
    syslog = Syslog("tls", authority)
    syslog.up()
    sink = SyslogSink(syslog.url, context=syslog.context)
    for number in range(4):
        arrived = len(syslog.lines) + 3
        assert sink.send(life(number)) == [True] * 3
        assert eventually(lambda arrived=arrived: len(syslog.lines) == arrived)  # type: ignore[misc]
    sink.close()
    assert syslog.connections == 1
    syslog.down()


def test_syslog_connects_anew_when_the_other_side_resets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = SyslogSink(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        assert sink.send(life(1)) == [True] * 3
        first, _ = listener.accept()
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        first.close()
        time.sleep(0.1)
        assert sink.send(life(2)) == [True] * 3
        second, _ = listener.accept()
        second.close()
        sink.close()


def test_notify_refuses_what_apprise_does_not_know_without_repeating_it() -> None:
    with pytest.raises(Refused) as refused:
        NotifySink(f"json://127.0.0.1 nosuch://{CANARY}")
    assert CANARY not in str(refused.value)
    assert "target 2" in str(refused.value)


@pytest.mark.parametrize("make", [lambda: SplunkSink("https://splunk.example", "a\r\nb"),
                                  lambda: EcsSink("https://es.example/x", api_key="a\nb"),
                                  lambda: SyslogSink("https://x"), lambda: SyslogSink("tcp://"),
                                  lambda: WebhookSink("https://x.example", "whsec_c2hvcnQ=")])  # fmt: skip
def test_what_cannot_be_right_is_refused_at_the_start(make: Callable[[], AlertSink]) -> None:
    with pytest.raises(Refused):
        make()


# --- Kafka, on a real broker


def consumed(bootstrap: str, topic: str) -> list[Any]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    tp = TopicPartition(topic, 0)
    consumer.assign([tp])
    end = consumer.end_offsets([tp])[tp]
    records: list[Any] = []
    while consumer.position(tp) < end:
        for found in consumer.poll(timeout_ms=1000).values():
            records += found
    consumer.close()
    return records


def test_kafka_carries_ocsf_in_cloud_events(kafka_bootstrap: str, topic: Callable[..., str]) -> None:
    name = topic(partitions=1)
    nobody = Case(
        lambda: KafkaSink(connection(kafka_bootstrap), name, form="ocsf"),
        lambda: of_kafka(consumed(kafka_bootstrap, name)),
        lambda: None,
        lambda: None,
        raw_id=True,
    )
    contract.delivers_the_life_of_a_finding(nobody)


def test_kafka_carries_hostile_clients(kafka_bootstrap: str, topic: Callable[..., str]) -> None:
    name = topic(partitions=1)
    case = Case(
        lambda: KafkaSink(connection(kafka_bootstrap), name, form="ocsf"),
        lambda: of_kafka(consumed(kafka_bootstrap, name)),
        lambda: None,
        lambda: None,
        raw_id=True,
    )
    contract.is_not_broken_by_what_a_client_calls_itself(case)
