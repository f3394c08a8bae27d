"""Findings in the formats of others, each checked by its own reader: the official OCSF schema, the CloudEvents package, stix2."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import stix2
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema
from support.receivers import HOSTILE, alert, life

from consumers.alerts import stix, taxonomy
from consumers.alerts.ecs import document
from consumers.alerts.envelope import kafka_message
from consumers.alerts.finding import finding, visible
from consumers.alerts.ocsf import VERSION, detection_finding
from consumers.alerts.syslog import cef
from consumers.errors import Undeliverable
from consumers.records.frameworks import FRAMEWORKS, frameworks_of

SHAPES: dict[str, Any] = {
    "first": {},
    "update": {"update": 1, "state": "block", "enforced": "block"},
    "throttled": {"enforced": "throttle"},
    "closed": {"update": 2, "state": "clear", "was": "block", "resolved": True, "reason": "no_evidence"},
    "uncalibrated": {"calibrated": False, "reason": "uncalibrated"},
    "no estimator, no evidence": {"extraction": None, "evidence": []},
    "campaign": {"kind": "campaign", "client_id": None, "campaign_id": "c-1", "members": ["a", "b"]},
    "addresses": {"sources": ["203.0.113.7", "2001:db8::1"]},
    "true positive": {"update": 3, "verdict": {"verdict": "true_positive", "by": "ann", "note": "seen it"}},
    "false positive": {"update": 3, "verdict": "false_positive"},
    "fields of tomorrow": {"brand_new": {"x": [1]}},
    "hostile": {"client_id": HOSTILE[0], "model_id": HOSTILE[6], "tenant": "t"},
}


@pytest.fixture(scope="module")
def validator() -> Callable[[dict[str, Any]], None]:
    embedded = OcsfJsonSchemaEmbedded(get_ocsf_schema(version=VERSION))

    def check(event: dict[str, Any]) -> None:
        profiles = event["metadata"]["profiles"]
        schema = schemas.setdefault(
            tuple(profiles), embedded.get_class_schema(class_name="detection_finding", profiles=profiles)
        )
        jsonschema.Draft202012Validator(schema).validate(event)

    schemas: dict[tuple[str, ...], Any] = {}
    return check


# --- OCSF


@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_shape_is_a_detection_finding(shape: str, validator: Callable[[dict[str, Any]], None]) -> None:
    event = detection_finding(finding(alert(1, **SHAPES[shape])))
    validator(json.loads(json.dumps(event)))
    assert event["type_uid"] == 200_400 + event["activity_id"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("activity_id",), 17),
        (("severity_id",), "high"),
        (("finding_info", "uid"), None),
        (("ai_model",), {"name": "x"}),
        (("action_id",), 50),
        (("observables", 0, "type_id"), 1234),
        (("anomaly_analyses", 0, "anomalies", 0, "observations", 0, "value"), 1.5),
    ],
    ids=str,
)
def test_the_validator_sees_a_wrong_event(
    path: tuple[Any, ...], value: Any, validator: Callable[[dict[str, Any]], None]
) -> None:
    event = copy.deepcopy(detection_finding(finding(alert(1))))
    where: Any = event
    for step in path[:-1]:
        where = where[step]
    if value is None:
        del where[path[-1]]
    else:
        where[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validator(event)


def test_the_control_fields_need_their_profile(validator: Callable[[dict[str, Any]], None]) -> None:
    event = detection_finding(finding(alert(1, verdict="true_positive")))
    assert event["metadata"]["profiles"] == ["security_control", "incident"]
    assert event["verdict_id"] == 2
    event["metadata"]["profiles"] = ["security_control"]
    with pytest.raises(jsonschema.ValidationError, match="verdict"):
        validator(event)


def test_one_finding_lives_under_one_uid() -> None:
    events = [detection_finding(finding(a)) for a in life(3)]
    assert {e["finding_info"]["uid"] for e in events} == {f"{3:032x}"}
    assert [(e["activity_id"], e["status_id"], e["severity_id"], e["is_alert"]) for e in events] == [
        (1, 1, 4, True),
        (2, 2, 5, True),
        (3, 4, 1, False),
    ]
    assert [e["action_id"] for e in events] == [3, 2, 3]
    assert [e["metadata"]["uid"] for e in events] == [f"{3:032x}/{n}" for n in range(3)]
    assert "created_time" in events[0]["finding_info"]
    assert "modified_time" in events[1]["finding_info"]


def test_every_framework_of_the_native_alert_is_in_the_event() -> None:
    text = json.dumps(detection_finding(finding(alert(1))))
    for framework in FRAMEWORKS:
        number = framework.partition(":")[2].removesuffix(":2023")
        assert number in text, framework
    assert "LLM10:2025" in text
    attack = detection_finding(finding(alert(1)))["attacks"][0]
    assert attack == {
        "version": "5.6",
        "tactic": {"uid": "AML.TA0010", "name": "Exfiltration"},
        "technique": {"uid": "AML.T0024", "name": "Exfiltration via AI Inference API"},
        "sub_technique": {"uid": "AML.T0024.002", "name": "Extract AI Model"},
    }
    assert attack["version"] == taxonomy.ATLAS_VERSION


def test_a_campaign_names_pools_of_accounts_and_a_budget_no_technique() -> None:
    named = frameworks_of("campaign", "campaign")
    pool = finding(
        alert(1, kind="campaign", client_id=None, members=["a", "b"], campaign_id="c" * 32, frameworks=named)
    )
    spent = finding(alert(2, policy="exposure", frameworks=["OWASP-AISVS:C11.2.2"]))
    assert [row["technique"]["uid"] for row in detection_finding(pool)["attacks"]][3:] == ["AML.T0008", "AML.T0012"]
    assert detection_finding(spent)["attacks"] == []
    assert "ML05" not in json.dumps(detection_finding(spent))
    assert "AML.T0008.005" in document(pool)["threat"]["technique"]["subtechnique"]["id"]
    assert "threat" not in document(spent)
    assert "cs4=AML.T0024.002 AML.T0005.001 AML.T0040 AML.T0008.005 AML.T0012" in cef(pool)
    read = stix2.parse(stix.bundle([pool]), allow_custom=False)
    names = {thing.id: thing.name for thing in read.objects if thing.type == "attack-pattern"}
    ties = {names[thing.target_ref]: thing.relationship_type for thing in read.objects if thing.type == "relationship"}
    assert ties == {"Extract AI Model": "indicates", "AI Service Proxies": "related-to", "Valid Accounts": "related-to"}


def test_a_verdict_that_it_was_nothing_suppresses_the_finding() -> None:
    event = detection_finding(finding(alert(1, 3, verdict={"verdict": "false_positive", "by": "ann", "note": "ours"})))
    assert (event["status_id"], event["verdict_id"], event["comment"]) == (3, 1, "ours")
    assert event["assignee"] == {"name": "ann", "uid": "ann"}


# --- CloudEvents


@pytest.mark.parametrize("form", ["ocsf", "native"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_cloudevents_package_reads_our_messages(form: str, shape: str) -> None:
    found = finding(alert(1, **SHAPES[shape]))
    key, value, headers = kafka_message(found, form)
    message = KafkaMessage(headers=dict(headers), key=key, value=value)
    event = from_binary_event(message)
    assert event.get_id() == found.uid
    assert event.get_specversion() == "1.0"
    assert event.get_source() == "/querywarden/" + SHAPES[shape].get("tenant", "default")
    assert event.get_type() == f"io.querywarden.finding.{found.activity}.v1"
    assert event.get_subject() == found.alert_id
    told = event.get_time()
    assert told is not None
    assert round(told.timestamp() * 1000) == found.time_ms
    assert event.get_datacontenttype() == "application/json"
    data = event.get_data()
    if form == "ocsf":
        assert data == json.loads(json.dumps(detection_finding(found)))
        assert str(event.get_dataschema()).startswith("https://schema.ocsf.io/1.8.0/")
    else:
        assert data == json.loads(alert(1, **SHAPES[shape]).body)


def test_cloudevents_refuses_a_message_without_its_source() -> None:
    key, value, headers = kafka_message(finding(alert(1)), "ocsf")
    message = KafkaMessage(headers={k: v for k, v in headers if k != "ce_source"}, key=key, value=value)
    with pytest.raises(Exception, match="source"):
        from_binary_event(message)


# --- STIX


def test_the_bundle_is_stix_and_the_same_again() -> None:
    findings = [finding(a) for n in range(3) for a in life(n)]
    text = stix.bundle(findings)
    assert text == stix.bundle(reversed(findings))
    read = stix2.parse(text, allow_custom=False)
    kinds = [thing["type"] for thing in read.objects]
    assert {k: kinds.count(k) for k in set(kinds)} == {
        "identity": 1, "attack-pattern": 1, "user-account": 3, "observed-data": 3, "indicator": 3, "relationship": 3,
        "sighting": 3,
    }  # fmt: skip
    (attack,) = [thing for thing in read.objects if thing["type"] == "attack-pattern"]
    assert attack["external_references"][0]["external_id"] == "AML.T0024.002"
    ids = {thing["id"] for thing in read.objects}
    for thing in read.objects:
        for name, value in thing.items():
            refs = value if name.endswith("_refs") else [value] if name.endswith("_ref") else []
            assert set(refs) <= ids, "the bundle is closed"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_client_stays_inside_its_pattern(name: str) -> None:
    """The pattern's own grammar: one comparison, whose literal is the client as it may be shown."""
    text = stix.bundle([finding(alert(1, client_id=name, sources=["203.0.113.7", "2001:db8::1"]))])
    (indicator,) = [o for o in stix2.parse(text).objects if o["type"] == "indicator"]
    pattern = stix2.pattern_visitor.create_pattern_object(indicator["pattern"])
    assert pattern.operand.rhs.value.replace("\\'", "'").replace("\\\\", "\\") == visible(name)


def test_no_findings_is_an_empty_bundle() -> None:
    assert json.loads(stix.bundle([]))["objects"] == []


# --- what a finding is


@pytest.mark.parametrize(
    ("changes", "activity", "severity"),
    [
        ({}, "created", "high"),
        ({"update": 4}, "updated", "high"),
        ({"calibrated": False}, "created", "medium"),
        ({"state": "block"}, "created", "critical"),
        ({"state": "clear", "was": "block", "resolved": True, "update": 1}, "closed", "critical"),
        ({"state": "clear", "was": "throttle", "resolved": True, "update": 1}, "closed", "high"),
    ],
)
def test_severity_follows_the_decision_and_a_closed_finding_keeps_it(
    changes: dict[str, Any], activity: str, severity: str
) -> None:
    found = finding(alert(1, **changes))
    assert (found.activity, found.severity) == (activity, severity)


def test_a_body_that_is_no_alert_says_so_without_its_content() -> None:
    broken = alert(1, client_id=["canary"])
    with pytest.raises(Undeliverable) as refused:
        finding(broken)
    assert "canary" not in str(refused.value)
