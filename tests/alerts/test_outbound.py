"""Nothing but the receiver is reached: every odd address, rebinding, redirects, proxies, drips, floods."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import trustme
from support.receivers import Recorder, recording
from support.servers import free_port

from consumers.alerts.outbound import AllowedHosts, Outbound, is_open, resolve
from consumers.errors import Refused, Unavailable, Undeliverable

CLOSED = (
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.0.1", "169.254.169.254", "100.64.0.1", "100.127.255.255", "100.100.100.200", "168.63.129.16", "192.0.0.1",
    "192.0.0.192", "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "192.88.99.1", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:8.8.8.8", "::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808",
    "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:808:808::1", "2001::1", "2001:0:53aa:64c::1", "2001:db8::1", "2001:10::1",
    "3fff::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "fdff::1", "ff02::1", "ff0e::1", "100::1", "4000::1", "5f00::1",
)  # fmt: skip
OPEN = ("8.8.8.8", "1.1.1.1", "93.184.215.14", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450:4001::200e")


def outbound(url: str, answers: Sequence[str], allow: str = "", **more: Any) -> tuple[Outbound, list[str]]:
    """An Outbound with a resolver that answers so, and the names it was asked."""
    asked: list[str] = []

    def lookup(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers

    return Outbound(url, what="webhook", allow=AllowedHosts.of(allow), lookup=lookup, **more), asked


@pytest.fixture
def no_connection(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that somebody tried to connect to."""
    tried: list[str] = []

    def connect(where: tuple[str, int], *args: object, **more: object) -> socket.socket:
        tried.append(where[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    return tried


# --- addresses


@pytest.mark.parametrize("address", CLOSED)
def test_an_address_that_is_not_for_everybody_is_never_reached(address: str, no_connection: list[str]) -> None:
    assert not is_open(ipaddress.ip_address(address))
    out, asked = outbound("https://alerts.example/hook", [address])
    with pytest.raises(Unavailable, match="may not be sent to"):
        out.post(b"{}", {})
    assert asked == ["alerts.example"]
    assert no_connection == []


@pytest.mark.parametrize("address", OPEN)
def test_an_open_address_is_tried_itself(address: str, no_connection: list[str]) -> None:
    """The control of the test above, and the pin: what is connected to is the address that was checked."""
    out, _ = outbound("https://alerts.example/hook", [address])
    with pytest.raises(Unavailable, match="ConnectionRefusedError"):
        out.post(b"{}", {})
    assert no_connection == [address]


@pytest.mark.parametrize("closed", ["127.0.0.1", "::1", "10.0.0.1"])
def test_one_closed_address_among_open_ones_closes_the_host(closed: str, no_connection: list[str]) -> None:
    for answers in (["8.8.8.8", closed], [closed, "8.8.8.8"]):
        out, _ = outbound("https://alerts.example/hook", answers)
        with pytest.raises(Unavailable):
            out.post(b"{}", {})
    assert no_connection == []


@pytest.mark.parametrize(
    "url",
    ["https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/", "https://127.1/", "https://0/",
     "https://localhost/", "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/"],
)  # fmt: skip
def test_odd_spellings_of_loopback_are_loopback(url: str, no_connection: list[str]) -> None:
    """The system's own resolver reads them; what it answers is what is checked."""
    out = Outbound(url, what="webhook")
    with pytest.raises(Unavailable):
        out.post(b"{}", {})
    assert no_connection == []


METADATA = (
    "169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd00:ec2::23",
    "fe80::a9fe:a9fe", "fd20:ce::254", "::ffff:169.254.169.254", "::ffff:100.100.100.200", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::", "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::1", "2001:0:808:808:0:ffff:5601:5601",
    "::169.254.169.254", "::ffff:0:169.254.169.254", "fd00::5efe:a9fe:a9fe",
)  # fmt: skip
"""Credentials are handed out there; the same addresses mapped, by NAT64, 6to4, Teredo (server, client), compatible, translated, ISATAP."""


@pytest.mark.parametrize("address", METADATA)
def test_no_allow_list_opens_a_metadata_service(address: str, no_connection: list[str]) -> None:
    out, _ = outbound("https://alerts.example/hook", [address], allow="0.0.0.0/0 ::/0 alerts.example")
    with pytest.raises(Unavailable):
        out.post(b"{}", {})
    assert no_connection == []


def test_the_allow_list_opens_what_it_names_and_no_more(no_connection: list[str]) -> None:
    for allow, address, reached in [
        ("10.1.0.0/16", "10.1.2.3", True),
        ("10.1.0.0/16", "10.2.2.3", False),
        ("alerts.example", "10.2.2.3", True),
        ("ALERTS.EXAMPLE", "10.2.2.3", True),
        ("other.example", "10.2.2.3", False),
        ("fd00::/8", "fd00::1", True),
        ("127.0.0.1", "::ffff:127.0.0.1", False),
    ]:
        no_connection.clear()
        out, _ = outbound("https://alerts.example/hook", [address], allow=allow)
        with pytest.raises(Unavailable):
            out.post(b"{}", {})
        assert bool(no_connection) is reached, (allow, address)


def test_plain_http_only_to_the_allow_list(no_connection: list[str]) -> None:
    out, _ = outbound("http://alerts.example/hook", ["8.8.8.8"])
    with pytest.raises(Unavailable, match="plain http"):
        out.post(b"{}", {})
    assert no_connection == []
    out, _ = outbound("http://alerts.example/hook", ["8.8.8.8"], allow="alerts.example")
    with pytest.raises(Unavailable):
        out.post(b"{}", {})
    assert no_connection == ["8.8.8.8"]


@pytest.mark.parametrize(
    "url",
    ["ftp://x/", "file:///etc/passwd", "gopher://x/", "https://", "https:///x", "x", "", "https://user:pw@alerts.example/",
     "https://alerts.example@evil.example/", "https://alerts.example\\@evil.example/", "https://a b/", "https://a\r\nHost: x/",
     "https://a:99999/", "https://a:x/", "https://ünicode.example/", "https://a/\x00"],
)  # fmt: skip
def test_a_url_that_cannot_be_right_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(Refused) as refused:
        Outbound(url, what="webhook")
    assert url in ("https://", "x", "") or url not in str(refused.value)


@pytest.mark.parametrize("word", ["10.0.0.0/40", "10.0.0.1/8", "a/b", "*", "-x", "http://x"])
def test_an_allow_list_that_cannot_be_read_is_refused(word: str) -> None:
    with pytest.raises(Refused):
        AllowedHosts.of(f"127.0.0.1 {word}")


# --- the connection


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def test_rebinding_meets_the_address_that_was_checked(authority: trustme.CA) -> None:
    """The first answer is checked and used; that the name means something else a moment later is never asked."""
    with recording(authority) as recorder:
        answers = iter([["127.0.0.1"]])
        out = Outbound(
            f"https://alerts.example:{recorder.port}/x", what="webhook", allow=AllowedHosts.of("127.0.0.1"),
            context=recorder.context, lookup=lambda host, port: next(answers),
        )  # fmt: skip
        out.post(b"1", {})
        out.post(b"2", {})
        assert [r.headers["host"] for r in recorder.seen] == [f"alerts.example:{recorder.port}"] * 2
        assert recorder.connections == 1
        out.close()


def test_the_certificate_must_be_of_the_name(authority: trustme.CA) -> None:
    with recording(authority) as recorder:
        for url, context in [
            (f"https://other.example:{recorder.port}/", recorder.context),
            (f"https://alerts.example:{recorder.port}/", Recorder(trustme.CA()).context),
        ]:
            out = Outbound(
                url,
                what="webhook",
                allow=AllowedHosts.of("127.0.0.1"),
                context=context,
                lookup=lambda host, port: ["127.0.0.1"],
            )
            with pytest.raises(Unavailable, match="SSLCertVerificationError"):
                out.post(b"secret", {})
        assert recorder.seen == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    with recording() as trap, recording() as recorder:
        recorder.answers[:] = [status]
        recorder.headers["Location"] = trap.url
        out = Outbound(recorder.url, what="webhook", allow=AllowedHosts.of("127.0.0.1"))
        with pytest.raises(Unavailable, match=str(status)):
            out.post(b"{}", {})
        assert trap.connections == 0
        assert len(recorder.seen) == 1


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with recording() as trap, recording() as recorder:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, trap.url)
        out = Outbound(recorder.url, what="webhook", allow=AllowedHosts.of("127.0.0.1"))
        out.post(b"{}", {})
        out.close()
        assert (trap.connections, len(recorder.seen)) == (0, 1)


def drip_head(answer: BaseHTTPRequestHandler) -> None:
    with contextlib.suppress(OSError):
        answer.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for n in range(200):
            answer.wfile.write(b"X-%d: a\r\n" % n)
            answer.wfile.flush()
            time.sleep(0.05)


def drip_body(answer: BaseHTTPRequestHandler) -> None:
    with contextlib.suppress(OSError):
        answer.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(200):
            answer.wfile.write(b"x")
            answer.wfile.flush()
            time.sleep(0.05)


def silence(answer: BaseHTTPRequestHandler) -> None:
    time.sleep(3)


@pytest.mark.parametrize("misbehave", [drip_head, drip_body, silence])
def test_a_receiver_that_drips_is_left_at_the_deadline(misbehave: object) -> None:
    with recording() as recorder:
        recorder.misbehave = misbehave  # type: ignore[assignment]
        out = Outbound(recorder.url, what="webhook", allow=AllowedHosts.of("127.0.0.1"), deadline_s=0.5)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            out.post(b"{}", {})
        assert time.monotonic() - began < 2.5, "200 drips would take ten seconds"


def test_a_handshake_that_never_ends_is_left_at_the_deadline() -> None:
    with silent_listener() as port:
        out = Outbound(f"https://127.0.0.1:{port}/", what="webhook", allow=AllowedHosts.of("127.0.0.1"), deadline_s=0.5)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            out.post(b"{}", {})
        assert time.monotonic() - began < 2.5


@contextlib.contextmanager
def silent_listener() -> Iterator[int]:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        yield port


def test_a_flood_is_not_read() -> None:
    """An endless answer with status 200 was taken; 64 KB of it are read, and the connection is given up."""
    written = threading.Event()

    def flood(answer: BaseHTTPRequestHandler) -> None:
        with contextlib.suppress(OSError):
            answer.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
            for _ in range(1500):
                answer.wfile.write(b"x" * 65_536)
            written.set()

    with recording() as recorder:
        recorder.misbehave = flood
        out = Outbound(recorder.url, what="webhook", allow=AllowedHosts.of("127.0.0.1"))
        assert len(out.post(b"{}", {})) == 65_536
        assert out._connection is None
        assert not written.is_set()


@pytest.mark.parametrize(
    "garbage", [b"", b"\x00\xff", b"HTTP/9.9 hello\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
                b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, b"HTTP/1.1 abc OK\r\n\r\n"],
)  # fmt: skip
def test_an_answer_that_is_none_is_an_outage(garbage: bytes) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(garbage)

    with recording() as recorder:
        recorder.misbehave = answer
        out = Outbound(recorder.url, what="webhook", allow=AllowedHosts.of("127.0.0.1"))
        with pytest.raises(Unavailable) as unavailable:
            out.post(b"{}", {})
        assert "y" * 20 not in str(unavailable.value)


def test_an_idle_connection_that_was_given_up_is_made_anew() -> None:
    with recording() as recorder:
        out = Outbound(recorder.url, what="webhook", allow=AllowedHosts.of("127.0.0.1"))
        out.post(b"1", {})
        recorder.down()
        recorder.up()
        out.post(b"2", {})
        out.close()
        assert [r.body for r in recorder.seen] == [b"1", b"2"]
        assert recorder.connections == 2


def test_what_is_refused_names_host_and_status_only() -> None:
    with recording() as recorder:
        recorder.answers[:] = [410]
        out = Outbound(f"{recorder.url}/canary?token=canary", what="webhook", allow=AllowedHosts.of("127.0.0.1"))
        with pytest.raises(Undeliverable) as refused:
            out.post(b"{}", {"X-Key": "canary"})
        assert str(refused.value) == "webhook: 127.0.0.1 answered 410"


def test_a_name_that_does_not_exist_is_an_outage() -> None:
    def lookup(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(-2, "Name or service not known")

    for answer in (lookup, lambda host, port: [], lambda host, port: ["nonsense"]):
        out = Outbound("https://alerts.example/", what="webhook", lookup=answer)
        with pytest.raises(Unavailable):
            out.post(b"{}", {})


def test_the_resolver_gives_every_address_once() -> None:
    assert resolve("127.0.0.1", 443) == ["127.0.0.1"]
