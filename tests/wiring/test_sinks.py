"""Settings → sinks: every row of the table; filters, caps and digests; rounds. Alertmanager's repeats."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.certificates import certificate, pem
from support.receivers import alert, eventually, life, recording

from consumers import alert_settings, config, log_settings
from consumers.alerts import AlertSink
from consumers.alerts.alertmanager import MAX_OPEN, AlertmanagerSink
from consumers.alerts.capped import DAY_S, CappedSink
from consumers.alerts.outbound import AllowedHosts
from consumers.alerts.rounds import refresh_periodically
from consumers.errors import Refused, Unavailable, WrongUse
from consumers.store import OutboxAlert
from consumers.telemetry.metrics import Metrics
from consumers.wiring import sinks

CANARY = "canaryK3yNeverShown"
KEY = f"whsec_{base64.b64encode(CANARY.encode() * 2).decode()}"
FILLED: dict[str, tuple[dict[str, Any], str]] = {
    "webhook": ({"url": f"https://hooks.example/{CANARY}", "keys": KEY}, "webhook:hooks.example"),
    "alertmanager": ({"url": "http://alertmanager:9093", "token": CANARY}, "alertmanager:alertmanager"),
    "pagerduty": ({"routing_key": CANARY}, "pagerduty"),
    "notify": ({"urls": f"json://u:{CANARY}@127.0.0.1 json://127.0.0.2"}, "notify"),
    "splunk": ({"url": "https://splunk.example:8088", "token": CANARY}, "splunk:splunk.example"),
    "syslog": ({"url": "tls://log.example:6514"}, "syslog:log.example"),
    "ecs": ({"url": "https://es.example/alerts", "api_key": CANARY}, "ecs:es.example"),
}


def settings(**sections: Any) -> alert_settings.AlertSettings:
    return alert_settings.AlertSettings.model_validate(sections)


@pytest.mark.parametrize("row", sinks.SINKS, ids=lambda row: row.section)
def test_every_row_makes_its_sink_when_its_section_is_filled(row: sinks.SinkKind) -> None:
    section, name = FILLED[row.section]
    assert not row.filled(settings())
    (sink,) = sinks.configured(settings(**{row.section: section}), None, tuple)
    assert sink.name == name
    sink.close()


def test_nothing_is_on_by_default() -> None:
    assert sinks.configured(alert_settings.AlertSettings(), Metrics(), tuple) == []


def test_every_sink_has_a_section_and_every_section_a_row() -> None:
    sections = {name for name, f in alert_settings.AlertSettings.model_fields.items() if _is_section(f.annotation)}
    assert sections == {row.section for row in sinks.SINKS} == set(FILLED)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, alert_settings.SinkSettings)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("webhook", {"url": "https://hooks.example/x"}),
        ("webhook", {"url": f"ftp://{CANARY}", "keys": KEY}),
        ("webhook", {"url": "https://hooks.example/x", "keys": KEY, "allow": "*"}),
        ("alertmanager", {"url": "nonsense"}),
        ("alertmanager", {"url": "http://a:9093", "token": f"{CANARY}\r\n"}),
        ("splunk", {"url": "https://splunk.example", "token": ""}),
        ("notify", {"urls": f"nosuch://{CANARY}"}),
        ("syslog", {"url": "log.example"}),
    ],
)
def test_a_section_that_cannot_work_is_refused_in_one_line(section: str, values: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        sinks.configured(settings(**{section: values}), None, tuple)
    assert str(refused.value).startswith(f"alerts.{section}: ")
    assert "\n" not in str(refused.value)
    assert CANARY not in str(refused.value)


def test_sinks_are_set_by_file_and_environment_and_mask_their_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "querywarden.toml"
    file.write_text(
        f'[alerts.webhook]\nurl = "https://hooks.example/{CANARY}"\nkeys = "{KEY}"\nmin_severity = "high"\n'
        f'[alerts.splunk]\nurl = "https://splunk.example"\n'
    )
    monkeypatch.setenv("QUERYWARDEN_ALERTS__SPLUNK__TOKEN", CANARY)
    monkeypatch.setenv("QUERYWARDEN_ALERTS__PAGERDUTY__PER_DAY", "7")
    loaded = config.load(file)
    assert loaded.alerts.webhook.min_severity == "high"
    assert loaded.alerts.splunk.token.get_secret_value() == CANARY
    assert loaded.alerts.pagerduty.per_day == 7
    for text in (repr(loaded), str(loaded), json.dumps(loaded.model_dump(mode="json")), loaded.model_dump_json()):
        assert CANARY not in text
        assert KEY not in text
    assert [
        s.name for s in sinks.open_sinks(loaded.model_copy(update={"log": log_settings.LogSettings(url="file:///x")}))
    ] == [
        "webhook:hooks.example",
        "splunk:splunk.example",
    ]
    file.write_text("[alerts.webhook]\nsecret = 1\n")
    with pytest.raises(WrongUse, match=r"alerts\.webhook\.secret"):
        config.load(file)


# --- filter, cap, digest


class Kept:
    """A sink that keeps what it is given; `away` makes it unavailable."""

    name = "kept:x"

    def __init__(self) -> None:
        self.uids: list[str] = []
        self.digests: list[tuple[str, str]] = []
        self.away = False
        self.closed = False
        self.refreshed = 0

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        if self.away:
            raise Unavailable("away")
        self.uids += [a.uid.lstrip("0") for a in alerts]
        return [True] * len(alerts)

    def summary(self, title: str, text: str) -> None:
        if self.away:
            raise Unavailable("away")
        self.digests.append((title, text))

    def refresh(self) -> int:
        self.refreshed += 1
        if self.away:
            raise Unavailable("away")
        return 1

    def close(self) -> None:
        self.closed = True


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_772_442_100.0

    def __call__(self) -> float:
        return self.now_s


def capped(**more: Any) -> tuple[Kept, CappedSink, Clock]:
    kept, clock = Kept(), Clock()
    return kept, CappedSink(kept, clock=clock, **more), clock


def test_a_filter_passes_by_severity_and_kind_and_lets_the_end_follow_its_beginning() -> None:
    medium, high = life(1, calibrated=False), [alert(2), alert(2, 1, state="clear", was="throttle", resolved=True)]
    critical = life(3)
    group = alert(4, kind="campaign", client_id=None, campaign_id="c")
    everything = [medium[0], *high, *critical, group]
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["1/0", "2/0", "2/1", "3/0", "3/1", "3/2", "4/0"]),
        ({"min_severity": "high"}, ["2/0", "2/1", "3/0", "3/1", "3/2", "4/0"]),
        ({"min_severity": "critical"}, ["3/1", "3/2"]),
        ({"kinds": ("campaign",)}, ["4/0"]),
    ]
    for wanted, uids in cases:
        kept, sink, _ = capped(**wanted)
        assert sink.send(everything) == [True] * 7, "what a sink does not want is none of its business any more"
        assert kept.uids == uids, wanted


def test_what_is_over_the_cap_comes_in_a_digest_and_the_next_day_is_new() -> None:
    counted: list[int] = []
    kept, sink, clock = capped(per_day=2, digest_s=600, on_capped=lambda: counted.append(1))
    assert sink.send([alert(n) for n in range(1, 6)]) == [True] * 5
    assert kept.uids == ["1/0", "2/0"]
    assert len(counted) == 3
    clock.now_s += 599
    assert sink.refresh() == 1, "only the sink's own repeat"
    assert kept.digests == []
    clock.now_s += 2
    assert sink.refresh() == 4
    ((title, text),) = kept.digests
    assert title == "3 more alerts over today's limit"
    assert "3 created" in text
    assert "fraud-v3: 3" in text
    clock.now_s += DAY_S
    assert sink.send([alert(9)]) == [True]
    assert kept.uids[-1] == "9/0"


def test_the_end_of_a_finding_is_told_to_who_was_told_of_it() -> None:
    kept, sink, _ = capped(per_day=1)
    sink.send([alert(1), alert(2)])
    ends = [alert(n, 1, state="clear", was="throttle", resolved=True) for n in (1, 2, 3)]
    assert sink.send(ends) == [True] * 3
    assert kept.uids == ["1/0", "1/1", "3/1"], "3 was told before this process began"
    sink.close()
    assert kept.closed
    assert kept.digests[0][0] == "2 more alerts over today's limit"


def test_an_outage_costs_nothing_of_the_cap_and_loses_no_digest() -> None:
    kept, sink, clock = capped(per_day=1, digest_s=60)
    kept.away = True
    with pytest.raises(Unavailable):
        sink.send([alert(1)])
    kept.away = False
    assert sink.send([alert(1), alert(2)]) == [True, True]
    assert kept.uids == ["1/0"]
    kept.away = True
    clock.now_s += 61
    with pytest.raises(Unavailable):
        sink.refresh()
    kept.away = False
    sink.refresh()
    assert len(kept.digests) == 1


def test_a_digest_that_waits_is_as_small_after_many_alerts_as_after_few() -> None:
    """Each finding may name 10,000 members; what is kept until the receiver is back is a count and one sentence."""
    kept, sink, clock = capped(per_day=1, digest_s=60)
    sink.send([alert(1)])
    kept.away = True
    sizes = []
    for few in (20, 400):
        sink.send([alert(n, suspicion=n / 1000, members=[f"acct-{i}" for i in range(50)]) for n in range(2, few + 2)])
        clock.now_s += 61
        with pytest.raises(Unavailable):
            sink.refresh()
        sizes.append(len(repr(sink._digest)))
    assert sizes[1] < sizes[0] + 100
    kept.away = False
    sink.refresh()
    ((title, text),) = kept.digests
    assert title == "420 more alerts over today's limit"
    assert "420 created" in text
    assert "suspicion 0.4010" in text, "the gravest of all"


def test_a_digest_shows_no_hidden_character() -> None:
    kept, sink, _ = capped(per_day=1)
    sink.send([alert(1), alert(2, client_id="a\r\nb\u202e", model_id="m\x1b[31m")])
    sink.close()
    ((_, text),) = kept.digests
    assert text.replace("\n", "").isprintable()


# --- rounds


def test_rounds_go_on_when_a_sink_is_away_and_stop() -> None:
    away, here = Kept(), Kept()
    away.away = True
    enough = threading.Event()

    class Last:
        name = "last"

        def refresh(self) -> int:
            if here.refreshed >= 3:
                enough.set()
            return 0

    rounds = refresh_periodically([object(), away, here, Last()], every_s=0.01)
    rounds.start()
    assert enough.wait(5)
    rounds.stop()
    assert away.refreshed >= 3
    after = here.refreshed
    rounds.run()
    assert here.refreshed == after, "stopped is stopped"


# --- Alertmanager


def manager(
    url: str, stored: Callable[[], Sequence[OutboxAlert]] = tuple, clock: Clock | None = None
) -> AlertmanagerSink:
    return AlertmanagerSink(
        url,
        allow=AllowedHosts.of("127.0.0.1"),
        firing_s=3600,
        stored=stored,
        clock=clock or Clock(),
        dashboard_url="https://qw",
    )


def test_open_findings_are_sent_again_until_they_are_resolved() -> None:
    clock = Clock()
    with recording() as recorder:
        sink = manager(recorder.url, clock=clock)
        sink.send([alert(1), alert(2)])
        recorder.seen.clear()
        clock.now_s += 60
        assert sink.refresh() == 2
        (request,) = recorder.seen
        assert [a["labels"]["alert_id"][-1] for a in request.json] == ["1", "2"]
        assert {a["endsAt"] for a in request.json} == {"2026-03-02T10:01:40.000Z"}, (
            "an hour after the news, not the repeat"
        )
        assert {a["generatorURL"] for a in request.json} == {"https://qw"}
        sink.send([alert(1, 1, state="clear", was="throttle", resolved=True)])
        assert sink.refresh() == 1
        clock.now_s += 3600
        assert sink.refresh() == 0, "no news for so long"
        sink.close()


def test_what_others_told_of_is_learnt_from_the_store_in_every_round() -> None:
    stored = [alert(1), *life(2)[:1]]
    with recording() as recorder:
        sink = manager(recorder.url, lambda: [*stored, OutboxAlert("x/0", 1_772_442_000_123, b"broken")])
        assert sink.refresh() == 2
        stored += life(2)[1:]  # another process saw the end of it
        assert sink.refresh() == 1
        assert [a["labels"]["alert_id"] for a in recorder.seen[-1].json] == [f"{1:032x}"]
        sink.close()


def test_an_end_and_a_verdict_of_one_number_leave_the_finding_closed() -> None:
    begun, *_ = life(1)
    end = alert(1, 1, state="clear", was="throttle", resolved=True)
    verdict = alert(1, 1, verdict={"verdict": "false_positive", "by": "ann", "note": ""})
    for stored in ([begun, end, verdict], [begun, verdict, end]):
        with recording() as recorder:
            sink = manager(recorder.url, functools.partial(tuple, stored))
            assert sink.refresh() == 0
            sink.close()


def test_a_finding_fires_under_one_severity_and_the_labels_stay() -> None:
    with recording() as recorder:
        sink = manager(recorder.url)
        sink.send(life(1))
        sink.close()
    now = "2026-03-02T09:01:40.000Z"
    firing = [[a["labels"]["severity"] for a in r.json if a["endsAt"] > now] for r in recorder.seen]
    assert firing == [["high"], ["critical"], []]
    labels = [{k: v for k, v in a["labels"].items() if k != "severity"} for r in recorder.seen for a in r.json]
    assert all(named == labels[0] for named in labels)
    assert "acct-1" not in json.dumps(labels), "a client is no label"
    for request in recorder.seen:
        for told in request.json:
            assert told["startsAt"] < told["endsAt"]


def test_a_late_older_message_changes_nothing() -> None:
    with recording() as recorder:
        sink = manager(recorder.url)
        first, second, _ = life(1)
        assert sink.send([second, first]) == [True, True]
        assert len(recorder.seen) == 1
        sink.close()


def test_open_findings_are_bounded() -> None:
    sink = manager("http://127.0.0.1:9")
    for n in range(MAX_OPEN + 50):
        sink._restore([alert(n)])
    sink._prune()
    assert len(sink._open) == MAX_OPEN


@pytest.fixture
def mutual(tmp_path: Path) -> Iterator[tuple[Path, int, list[bytes]]]:
    """A receiver of syslog that asks for a certificate of our authority: folder of the files, port, what it got."""
    ca = certificate("our-ca", ca=True)
    ca_file, _ = pem(tmp_path, "ca", ca)
    pem(tmp_path, "collector", certificate("collector", ca))
    pem(tmp_path, "stranger", certificate("stranger", certificate("another-ca", ca=True)))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca_file)
    context.load_cert_chain(*pem(tmp_path, "receiver", certificate("localhost", ca)))
    context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", 0))
    got: list[bytes] = []

    def receive() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as sock:
                while part := sock.recv(65_536):
                    got.append(part)

    threading.Thread(target=receive, daemon=True).start()
    yield tmp_path, listener.getsockname()[1], got
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_syslog_presents_its_certificate_to_a_receiver_that_asks_for_one(mutual: tuple[Path, int, list[bytes]]) -> None:
    folder, port, got = mutual

    def syslog(**files: str) -> AlertSink:
        section = {"url": f"tls://localhost:{port}"} | {name: str(folder / file) for name, file in files.items()}
        (sink,) = sinks.configured(settings(syslog=section), None, tuple)
        return sink

    def sent(sink: AlertSink) -> bool:
        """Whether a message arrives. TLS 1.3 tells a client that it is refused only after it wrote."""
        before = len(got)
        try:
            for _ in range(3):
                sink.send(life(1)[:1])
                if eventually(lambda: len(got) > before, 0.5):
                    return True
        except Unavailable:
            return False
        finally:
            sink.close()
        return False

    assert sent(syslog(ca_file="ca.pem", certfile="collector.pem", keyfile="collector.key"))
    assert not sent(syslog(ca_file="ca.pem"))
    assert not sent(syslog(ca_file="ca.pem", certfile="stranger.pem", keyfile="stranger.key"))
    assert not sent(syslog(certfile="collector.pem", keyfile="collector.key")), "the system trusts no such authority"
    with pytest.raises((Refused, WrongUse)):
        syslog(ca_file="nowhere.pem")
    with pytest.raises(WrongUse, match="go together"):
        syslog(certfile="collector.pem")
    with pytest.raises(WrongUse, match="tls://"):
        sinks.configured(
            settings(syslog={"url": f"tcp://localhost:{port}", "ca_file": str(folder / "ca.pem")}), None, tuple
        )
