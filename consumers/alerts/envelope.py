"""The CloudEvents 1.0 envelope of a finding: attributes for Kafka headers (binary mode) and for a JSON object (structured mode).

Rules:
* `id` is the alert's uid, so that an alert that is sent again has the same id. `source` and `id` identify an event for good. `type` says
  what happened to the finding.
* An attribute is text without control characters. Client ids are never attributes.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Any

import msgspec

from consumers.alerts.finding import Finding
from consumers.alerts.ocsf import VERSION, detection_finding

TYPE = "io.querywarden.finding.{activity}.v1"
SCHEMAS = {"ocsf": f"https://schema.ocsf.io/{VERSION}/classes/detection_finding"}


def content(found: Finding, form: str) -> dict[str, Any]:
    """What the finding says, as ``native`` or ``ocsf``."""
    return detection_finding(found) if form == "ocsf" else dict(found.native)


def attributes(found: Finding, form: str) -> dict[str, str]:
    named = {
        "specversion": "1.0",
        "id": found.uid,
        "source": f"/querywarden/{urllib.parse.quote(found.tenant, safe='')}",
        "type": TYPE.format(activity=found.activity),
        "subject": found.alert_id,
        "time": found.time,
        "datacontenttype": "application/json",
    }
    return named | ({"dataschema": SCHEMAS[form]} if form in SCHEMAS else {})


def kafka_message(found: Finding, form: str) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """(key, value, headers) of the binary mode: attributes are ``ce_…``, the data is the value."""
    named: Mapping[str, str] = attributes(found, form)
    headers = [(f"ce_{name}", value.encode()) for name, value in named.items() if name != "datacontenttype"]
    headers.append(("content-type", named["datacontenttype"].encode()))
    return found.alert_id.encode(), msgspec.json.encode(content(found, form)), headers
