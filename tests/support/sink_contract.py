"""What every sink must do, whatever it speaks. `tests/alerts/test_sinks.py` runs it on all of them, and on broken ones that must fail it.

A `Case` is a sink together with a receiver that shows what arrived.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from support.receivers import HOSTILE, alert, eventually, life

from consumers.alerts import AlertSink
from consumers.alerts.finding import visible
from consumers.errors import Unavailable, Undeliverable
from consumers.store import OutboxAlert

CANARY = "canaryK3yNeverShown"


@dataclass
class Message:
    """What arrived: the id a receiver de-duplicates on, what happened, the client as shown; text for people."""

    id: str
    happened: str
    client: str
    texts: list[str] = field(default_factory=list)


@dataclass
class Case:
    """make: the sink, with `CANARY` in every secret it takes. arrived: all messages so far, parsed strictly (a message that breaks
    its format raises). raw_id: the client stands in the message as data, exactly as it calls itself. acknowledged: the receiver says
    that it took a message. ids: the updates of a finding share one id (an incident), or each has its own."""

    make: Callable[[], AlertSink]
    arrived: Callable[[], list[Message]]
    down: Callable[[], None]
    up: Callable[[], None]
    raw_id: bool = False
    acknowledged: bool = True
    one_incident: bool = False
    says: tuple[str, str, str] = ("created", "updated", "closed")


def arrives(case: Case, wanted: int) -> list[Message]:
    assert eventually(lambda: len(case.arrived()) >= wanted), f"{len(case.arrived())} of {wanted} messages arrived"
    found = case.arrived()
    assert len(found) == wanted
    return found


def delivers_the_life_of_a_finding(case: Case) -> None:
    sink = case.make()
    sent = [*life(1), *life(2)]
    assert sink.send(sent) == [True] * 6
    assert sink.send([]) == []
    sink.close()
    found = arrives(case, 6)
    assert [m.happened for m in found] == [*case.says, *case.says]
    ids = [m.id for m in found]
    if case.one_incident:
        assert len(set(ids[:3])) == len(set(ids[3:])) == 1
        assert ids[0] != ids[3]
    else:
        assert len(set(ids)) == 6, "each update has its own id"


def gives_the_same_id_again(case: Case) -> None:
    sink = case.make()
    assert sink.send([alert(7)]) == sink.send([alert(7)]) == [True]
    sink.close()
    first, again = arrives(case, 2)
    assert first.id == again.id
    assert "7" in first.id


def says_unavailable_in_an_outage_and_goes_on_after_it(case: Case) -> None:
    sink = case.make()
    assert sink.send([alert(1)]) == [True]
    arrives(case, 1)
    case.down()
    for _ in range(2):
        with pytest.raises(Unavailable):
            sink.send([alert(2), alert(3)])
    case.up()
    assert sink.send([alert(2), alert(3)]) == [True, True]
    sink.close()
    assert [m.client for m in arrives(case, 3)] == ["acct-1", "acct-2", "acct-3"]


def is_not_broken_by_what_a_client_calls_itself(case: Case) -> None:
    sink = case.make()
    for number, name in enumerate(HOSTILE):
        text = [{"signal": "s", "statistic": 1.0, "p_value": 0.001, "text": f"client {name} did"}]
        assert sink.send([alert(number, client_id=name, evidence=text)]) == [True]
    sink.close()
    found = arrives(case, len(HOSTILE))
    for name, message in zip(HOSTILE, found, strict=True):
        assert message.client == (name if case.raw_id else visible(name)), "the client can be told by the message"
        for said in message.texts:
            assert said.replace("\n", "") == visible(said.replace("\n", ""), len(said)), (
                "nothing hidden in text for people"
            )
        assert message.texts, "a person can read it"


def keeps_its_secrets(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    sink = case.make()
    said = [sink.name, repr(sink), str(vars(sink).get("name", ""))]
    sink.send([alert(1)])
    case.down()
    try:
        sink.send([alert(2)])
    except Unavailable as error:
        said += [str(error), repr(error), repr(error.__cause__)]
    sink.close()
    said += [record.getMessage() + repr(record.__dict__) for record in caplog.records]
    assert not [text for text in said if CANARY in text]


def refuses_what_is_no_alert(case: Case) -> None:
    sink = case.make()
    for body in (b"", b"[]", b"{}", b'{"alert_id": 1}', b"\xff", alert(1, time="yesterday").body):
        with pytest.raises(Undeliverable):
            sink.send([OutboxAlert("x/0", 0, body), alert(1)])
    assert sink.send([alert(1), OutboxAlert("x/0", 0, b"{}"), alert(2)]) == [True, False, False]
    sink.close()
    assert [m.client for m in arrives(case, 1)] == ["acct-1"]


CONTRACT: tuple[Callable[[Case], None], ...] = (
    delivers_the_life_of_a_finding,
    gives_the_same_id_again,
    says_unavailable_in_an_outage_and_goes_on_after_it,
    is_not_broken_by_what_a_client_calls_itself,
    refuses_what_is_no_alert,
)
