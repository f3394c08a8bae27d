"""The webhook's signature: Standard Webhooks' own vector, tampering, replay, rotation; and the snippet of the docs, run as it stands."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.receivers import Request, alert, recording

from consumers.alerts.outbound import AllowedHosts
from consumers.alerts.webhook import TOLERANCE_S, WebhookSink, keys, signature, verify
from consumers.errors import Refused

OLD = f"whsec_{base64.b64encode(b'o' * 32).decode()}"
NEW = f"whsec_{base64.b64encode(b'n' * 32).decode()}"
NOW_S = 1_772_442_000.0
DOCS = Path(__file__).parents[2] / "docs" / "alerts.md"

Verify = Callable[[list[bytes], dict[str, str], bytes, float], bool]


def snippet() -> Verify:
    """`verify` of docs/alerts.md."""
    (text,) = re.findall(r"```python\n(.*?def verify.*?)```", DOCS.read_text(), flags=re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(text, str(DOCS), "exec"), scope)
    found: Verify = scope["verify"]
    return found


@pytest.fixture(params=["ours", "docs"])
def check(request: pytest.FixtureRequest) -> Verify:
    return (
        snippet()
        if request.param == "docs"
        else lambda accepted, headers, body, now: verify(accepted, headers, body, now)
    )


def posted(key_text: str, number: int = 1) -> Request:
    with recording() as recorder:
        sink = WebhookSink(recorder.url, key_text, allow=AllowedHosts.of("127.0.0.1"), clock=lambda: NOW_S)
        assert sink.send([alert(number)]) == [True]
        sink.close()
    (request,) = recorder.seen
    return request


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of its specification."""
    (key,) = keys("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    assert signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_a_message_is_accepted_once_signed(check: Verify) -> None:
    request = posted(NEW)
    assert check(keys(NEW), request.headers, request.body, NOW_S)
    assert check(keys(NEW), request.headers, request.body, NOW_S + TOLERANCE_S)
    assert request.headers["webhook-id"] == f"{1:032x}/0"
    assert request.json["type"] == "io.querywarden.finding.created.v1"


def test_rotation_is_one_key_then_two_then_the_other(check: Verify) -> None:
    both = posted(f"{NEW} {OLD}")
    assert both.headers["webhook-signature"].count("v1,") == 2
    for accepted in (OLD, NEW, f"{OLD} {NEW}"):
        assert check(keys(accepted), both.headers, both.body, NOW_S)
    assert not check(keys(OLD), posted(NEW).headers, posted(NEW).body, NOW_S)


def test_replay_tampering_and_skew_are_rejected(check: Verify) -> None:
    request = posted(NEW)
    other = posted(NEW, 2)
    accepted = keys(NEW)
    good = request.headers
    bad: list[tuple[dict[str, str], bytes, float]] = [
        (good, request.body, NOW_S + TOLERANCE_S + 1),
        (good, request.body, NOW_S - TOLERANCE_S - 1),
        (good, request.body.replace(b"throttle", b"clear"), NOW_S),
        (good, request.body + b" ", NOW_S),
        (good, b"", NOW_S),
        (good, other.body, NOW_S),
        (good | {"webhook-id": other.headers["webhook-id"]}, request.body, NOW_S),
        (good | {"webhook-timestamp": str(int(NOW_S) + 1)}, request.body, NOW_S),
        (good | {"webhook-timestamp": "soon"}, request.body, NOW_S),
        (good | {"webhook-signature": ""}, request.body, NOW_S),
        (good | {"webhook-signature": "v1,"}, request.body, NOW_S),
        (good | {"webhook-signature": good["webhook-signature"].replace("v1,", "v0,")}, request.body, NOW_S),
        (good | {"webhook-signature": good["webhook-signature"][:-4]}, request.body, NOW_S),
        ({k: v for k, v in good.items() if k != "webhook-signature"}, request.body, NOW_S),
        ({k: v for k, v in good.items() if k != "webhook-timestamp"}, request.body, NOW_S),
        ({k: v for k, v in good.items() if k != "webhook-id"}, request.body, NOW_S),
    ]
    assert [check(accepted, headers, body, now) for headers, body, now in bad] == [False] * len(bad)
    assert not check(keys(OLD), good, request.body, NOW_S)


@pytest.mark.parametrize(
    "text", ["", "whsec_", "secret", "whsec_%%%", "whsec_c2hvcnQ=", NEW.removeprefix("whsec_"), f"{NEW} {OLD} {NEW}",
             f"whsec_{base64.b64encode(b'x' * 65).decode()}"],
)  # fmt: skip
def test_a_key_that_cannot_be_right_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(Refused) as refused:
        keys(text)
    assert not text or text not in str(refused.value).replace("whsec_ and", "")
