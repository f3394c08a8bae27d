"""Alerts as OCSF Detection Findings, schema 1.8.0.

Rules:
* Only attributes of the official schema are used; other content goes to `unmapped`. The tests validate every form.
* A finding keeps one `finding_info.uid`: activity 1 Create, 2 Update, 3 Close; status 1 New, 2 In Progress, 4 Resolved.
* The profile `security_control` is always present (`action_id`, `disposition_id` and `attacks` need it); `incident` is present with a
  verdict.
* Severity: medium 3, high 4, critical 5; a closed finding is 1, informational.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from consumers.alerts import taxonomy
from consumers.alerts.finding import Finding

VERSION = "1.8.0"
CLASS_UID = 2004
ACTIVITIES = {"created": (1, "Create"), "updated": (2, "Update"), "closed": (3, "Close")}
STATUSES = {"created": (1, "New"), "updated": (2, "In Progress"), "closed": (4, "Resolved")}
SEVERITIES = {"medium": (3, "Medium"), "high": (4, "High"), "critical": (5, "Critical")}
CONTROLS = {
    "block": (2, "Denied", 2, "Blocked"),
    "throttle": (4, "Modified", 14, "Delayed"),
    "watch": (3, "Observed", 19, "Alert"),
    "clear": (3, "Observed", 19, "Alert"),
}
"""What gateways do → action id and name, disposition id and name."""
VERDICTS = {"false_positive": (1, "False Positive"), "true_positive": (2, "True Positive")}
CLOSED_BY_VERDICT = {"false_positive": (3, "Suppressed")}
USER_UID, CAMPAIGN_UID = 31, 99


def detection_finding(found: Finding) -> dict[str, Any]:
    """The event, ready to be written as JSON."""
    activity_id, activity = ACTIVITIES[found.activity]
    judged = found.judged
    status_id, status = STATUSES[found.activity]
    if judged is not None and judged.verdict in CLOSED_BY_VERDICT:
        status_id, status = CLOSED_BY_VERDICT[judged.verdict]
    severity_id, severity = (1, "Informational") if found.resolved else SEVERITIES[found.severity]
    action_id, action, disposition_id, disposition = CONTROLS[found.enforced]
    score = round(100 * min(1.0, max(0.0, found.suspicion)))
    event: dict[str, Any] = {
        "activity_id": activity_id,
        "activity_name": activity,
        "category_uid": 2,
        "category_name": "Findings",
        "class_uid": CLASS_UID,
        "class_name": "Detection Finding",
        "type_uid": CLASS_UID * 100 + activity_id,
        "type_name": f"Detection Finding: {activity}",
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status_id,
        "status": status,
        "time": found.time_ms,
        "message": found.text,
        "is_alert": not found.resolved,
        "metadata": _metadata(found),
        "finding_info": _finding_info(found),
        "attacks": attacks(found),
        "confidence_score": score,
        "confidence_id": 3 if found.calibrated else 1,
        "confidence": "High" if found.calibrated else "Low",
        "risk_score": score,
        "risk_level_id": severity_id - 1,
        "risk_level": {0: "Info", 2: "Medium", 3: "High", 4: "Critical"}[severity_id - 1],
        "action_id": action_id,
        "action": action,
        "disposition_id": disposition_id,
        "disposition": disposition,
        "evidences": [_evidence(found)],
        "observables": _observables(found),
        "resources": [{"uid": found.model_id, "name": found.model_id, "type": "AI Model"}],
        "unmapped": _unmapped(found),
    }
    if found.evidence:
        event["anomaly_analyses"] = [_anomalies(found)]
    if judged is not None:
        verdict_id, verdict = VERDICTS.get(judged.verdict, (99, judged.verdict))
        event |= {"verdict_id": verdict_id, "verdict": verdict}
        if judged.by:
            event["assignee"] = {"name": judged.by, "uid": judged.by}
        if judged.note:
            event["comment"] = judged.note
    return event


def attacks(found: Finding) -> list[dict[str, Any]]:
    """The rows of ATLAS, the finding itself first."""
    return [
        {
            "version": taxonomy.ATLAS_VERSION,
            "tactic": {"uid": row.tactic_uid, "name": row.tactic},
            "technique": {"uid": row.uid, "name": row.name},
        }
        | ({"sub_technique": {"uid": row.sub_uid, "name": row.sub}} if row.sub_uid else {})
        for row in taxonomy.techniques(found)
    ]


def product_version() -> str:
    try:
        return metadata.version("querywarden")
    except metadata.PackageNotFoundError:
        return "0"


def _metadata(found: Finding) -> dict[str, Any]:
    described: dict[str, Any] = {
        "version": VERSION,
        "product": {"name": "QueryWarden", "vendor_name": "QueryWarden", "version": product_version()},
        "profiles": ["security_control", *(["incident"] if found.judged else [])],
        "uid": found.uid,
        "sequence": found.update,
        "tenant_uid": found.tenant,
    }
    return described | ({"correlation_uid": found.campaign_id} if found.campaign_id else {})


def _finding_info(found: Finding) -> dict[str, Any]:
    tags = [{"name": name, "values": list(ids)} for name, ids in taxonomy.tags(found)]
    return {
        "uid": found.alert_id,
        "title": found.title,
        "desc": found.text,
        "types": ["Model Extraction"],
        "attacks": attacks(found),
        "tags": tags,
        "analytic": {
            "uid": found.family or "extraction",
            "name": found.family or "extraction",
            "type_id": 2,
            "type": "Behavioral",
            "version": product_version(),
        },
        ("created_time" if found.activity == "created" else "modified_time"): found.time_ms,
        "last_seen_time": found.time_ms,
    }


def _evidence(found: Finding) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "actor": {"user": {"uid": found.subject}},
        "api": {"operation": "predict", "service": {"name": found.model_id}},
        "data": {"queries_seen": found.queries_seen, "signals": found.evidence},
    }
    return shown | ({"src_endpoint": {"ip": found.sources[0]}} if found.sources else {})


def _observables(found: Finding) -> list[dict[str, Any]]:
    kind = (USER_UID, "User Object: uid") if found.kind == "client" else (CAMPAIGN_UID, "Campaign")
    seen = [{"type_id": kind[0], "type": kind[1], "name": "evidences[].actor.user.uid", "value": found.subject}]
    seen += [{"type_id": USER_UID, "type": "User Object: uid", "name": "members", "value": m} for m in found.members]
    return seen + [{"type_id": 2, "type": "IP Address", "name": "sources", "value": ip} for ip in found.sources]


def _anomalies(found: Finding) -> dict[str, Any]:
    return {
        "analysis_targets": [{"name": found.model_id, "type": "AI Model"}],
        "anomalies": [_observation(e, e.get("statistic"), e.get("text")) for e in found.evidence],
        "baselines": [_observation(e, f"lifetime p-value {e.get('p_value')}", None) for e in found.evidence],
    }


def _observation(evidence: dict[str, Any], value: Any, pattern: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "observation_parameter": str(evidence.get("signal", "signal")),
        "observations": [{"value": str(value)}],
    }
    return shown | ({"observed_pattern": str(pattern)} if pattern else {})


def _unmapped(found: Finding) -> dict[str, Any]:
    return {
        "state": found.state,
        "was": found.was,
        "enforced": found.enforced,
        "reason": found.reason,
        "kind": found.kind,
        "family": found.family,
        "calibrated": found.calibrated,
        "suspicion": found.suspicion,
        "extraction": found.extraction,
        "members": found.members,
    }
