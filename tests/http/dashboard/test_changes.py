"""What changed since a page was loaded is not decided over; a campaign is judged from its page; exposure is drawn over queries."""

from __future__ import annotations

import re
from dataclasses import replace

from support import seeded_dashboard
from support.dashboard_people import BLOCK, SUBJECT, World, token
from support.seeded_dashboard import MODEL, SECRETS, TENANT

from consumers.http.dashboard.site import MOST_ROWS
from consumers.operators.audited_write import Actor
from consumers.records.alert import packed_alert
from consumers.records.decision import ExposureMeasured, campaign_key, exposures_of, packed_decision
from consumers.records.operator_entries import StoredVerdict, unpacked
from consumers.store import DECISION_CELLS, Outcome, decision_cell
from detector.baseline import Baseline
from detector.exposure import Exposure

PAGE = f"/client?client={SUBJECT['client']}&model={MODEL}"
CAMPAIGN = "c-2f9a61"


def test_a_tab_that_is_over_decides_nothing(world: World) -> None:
    tabs = [world.browser("operator") for _ in range(2)]
    forms = []
    for tab in tabs:
        found = re.search(r'name="seen" value="([0-9a-f]{32})"', tab.get(PAGE).text)
        assert found is not None
        forms.append(BLOCK | {"csrf": token(tab, PAGE), "seen": found[1]})
    before = world.rulings()
    assert tabs[0].post("/act/decide", data=forms[0] | {"act": "clear"}).headers["location"].endswith("said=clear")
    late = tabs[1].post("/act/decide", data=forms[1])
    assert late.headers["location"].endswith("said=changed")
    assert "somebody else decided about this client" in tabs[1].get(late.headers["location"]).text
    assert world.rulings() == before + 1
    dry = tabs[0].post("/act/decide", data=BLOCK | {"csrf": forms[0]["csrf"], "dry_run": "1"})
    assert dry.headers["location"].endswith("said=conflict")


def keep_campaign(world: World, baseline: Baseline) -> str:
    """The seeded accounts' own finding. Returns its alert's id."""
    names = [one[0] for one in seeded_dashboard.SUSPECTS if one[0].startswith("key-5d1f0")]
    row = seeded_dashboard.row(CAMPAIGN, "throttle", "suspicious", 1e-6, 5_000, "margin_roots", baseline)
    assert row.alert is not None
    alert = row.alert | {"kind": "campaign", "campaign_id": CAMPAIGN, "members": names}
    del alert["client_id"]
    key = campaign_key(TENANT, MODEL, CAMPAIGN)
    outcome = Outcome(decision_cell(key, DECISION_CELLS))
    outcome.rows[key] = packed_decision(
        replace(row, members=tuple(names), alert=alert),
        SECRETS,
        TENANT,
    )
    outcome.alerts.append(packed_alert(alert, row.last_ms, SECRETS))
    claim = world.store.claim_decisions(outcome.cell, "seed", "0" * 32, 60_000)
    world.store.record("0" * 32, claim.revision, outcome, "seed", 60_000)
    world.store.release_decisions(outcome.cell, "seed")
    return str(alert["alert_id"])


def member_page() -> str:
    """Address of one of the campaign's accounts."""
    name = next(one[0] for one in seeded_dashboard.SUSPECTS if one[0].startswith("key-5d1f0"))
    return f"/client?client={SECRETS.client_hash(TENANT, name)}&model={MODEL}"


def test_a_campaign_is_judged_from_its_page_by_those_who_may(world: World, baseline: Baseline) -> None:
    alert = keep_campaign(world, baseline)
    form = {"campaign": CAMPAIGN, "alert": alert, "verdict": "true_positive", "note": "one card"}
    viewer, analyst = world.browser("viewer"), world.browser("analyst")
    assert "campaign-verdict" not in viewer.get(f"/campaign?id={CAMPAIGN}").text
    refused = viewer.post("/act/campaign-verdict", data=form | {"csrf": token(viewer, "/")})
    assert refused.status_code == 403
    page = f"/campaign?id={CAMPAIGN}"
    assert "campaign-verdict" in analyst.get(page).text
    wrong = analyst.post("/act/campaign-verdict", data=form | {"csrf": token(analyst, page), "campaign": "c-other"})
    assert wrong.headers["location"].endswith("said=gone")
    assert world.store.operator_entries("verdict", TENANT)[1] == []
    done = analyst.post("/act/campaign-verdict", data=form | {"csrf": token(analyst, page)})
    assert done.headers["location"] == f"{page}&said=judged"
    (entry,) = world.store.operator_entries("verdict", TENANT)[1]
    said = unpacked(entry, StoredVerdict)
    assert (said.alert_id, said.client, said.note) == (alert, campaign_key(TENANT, MODEL, CAMPAIGN).client, "one card")
    assert "true positive" in analyst.get(page).text


def test_a_campaign_is_decided_about_confirmed_and_undone_from_its_page(world: World, baseline: Baseline) -> None:
    keep_campaign(world, baseline)
    page = f"/campaign?id={CAMPAIGN}"
    assert "campaign-decide" not in world.browser("analyst").get(page).text
    _, text = world.operations.create_key(Actor("setup", "admin", TENANT), "otto", "operator")
    world.keys["otto"] = str(text)
    world.ring.refresh(world.store)
    operator, other = world.browser("operator"), world.browser("otto")
    found = re.search(r'name="seen" value="([0-9a-f]{32})"', operator.get(page).text)
    assert found is not None
    form = {"campaign": CAMPAIGN, "act": "degrade", "reason": "one theft", "ttl_s": "900", "seen": found[1]}
    done = operator.post("/act/campaign-decide", data=form | {"csrf": token(operator, page)})
    assert done.headers["location"] == f"{page}&said=degrade"
    assert "its campaign c-2f9a61" in operator.get(member_page()).text
    late = other.post("/act/campaign-decide", data=form | {"csrf": token(other, page)})
    assert late.headers["location"].endswith("said=changed")
    world.operations.confirm_above = 1
    for act, seen in (("block", ""), ("allow", "")):
        form |= {"act": act, "seen": seen}
        answer = operator.post("/act/campaign-decide", data=form | {"csrf": token(operator, page)})
        assert answer.headers["location"].endswith("said=proposed" if act == "block" else "said=refused")
    assert "waits for a second person" in operator.get("/decisions").text
    own = operator.post("/act/campaign-confirm", data={"campaign": CAMPAIGN, "csrf": token(operator, page)})
    assert own.headers["location"].endswith("said=conflict")
    confirmed = other.post("/act/campaign-confirm", data={"campaign": CAMPAIGN, "csrf": token(other, page)})
    assert confirmed.headers["location"].endswith("said=confirmed")
    gone = other.post("/act/campaign-undo", data={"campaign": CAMPAIGN, "csrf": token(other, page)})
    assert gone.headers["location"] == "/decisions?said=undone"
    assert world.dashboard.reader.campaign_decisions() == ()


def test_exposure_is_drawn_over_queries(world: World, baseline: Baseline) -> None:
    row = seeded_dashboard.row("acct-90114", "block", "extraction", 2.4e-4, 6_120, "step_roots", baseline)
    kept: tuple[ExposureMeasured, ...] = ()
    for queries in (10, 11, 40, 160, 161, 640, 2_560):
        share = Exposure(0.3 + queries / 10_000, 0.2, 0.9)
        kept = exposures_of(replace(row, exposures=kept), share, queries, queries * 1000)
    assert [int(point.queries) for point in kept] == [10, 40, 160, 640, 2_560], "one for each half octave"
    extraction = {"fidelity": 0.8, "low": 0.7, "high": 0.9}
    more = seeded_dashboard.row("acct-90114", "block", "extraction", 2.4e-4, 6_120, "step_roots", baseline,
                      extraction=extraction, exposures=kept)  # fmt: skip
    seeded_dashboard.keep(world.store, [(MODEL, more)])
    text = world.browser("viewer").get(PAGE).text
    figure = text[text.index("Exposure over queries") :]
    curve = re.search(r'<polyline class="curve" points="([^"]+)"', figure)
    assert curve is not None
    assert len(curve[1].split()) >= 6, "five that were kept, and now"


def test_older_alerts_have_a_page(world: World, baseline: Baseline) -> None:
    rows = [
        seeded_dashboard.row(f"many-{n}", "throttle", "suspicious", 0.001, 500, "part_roots", baseline)
        for n in range(MOST_ROWS)
    ]
    seeded_dashboard.keep(world.store, [(MODEL, one) for one in rows])
    viewer = world.browser("viewer")
    first = viewer.get("/alerts").text
    older = re.search(r'href="(/alerts\?cursor=[^"]+)"', first)
    assert older is not None
    second = viewer.get(older[1]).text
    assert 'href="/alerts"' in second
    shown = [len(re.findall(r"<tr><td", text)) for text in (first, second)]
    assert shown[0] == MOST_ROWS
    assert 0 < shown[1] < MOST_ROWS
    assert viewer.get("/alerts?cursor=nonsense").status_code == 200
