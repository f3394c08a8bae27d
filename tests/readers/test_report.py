"""The report: stands alone, escapes what it shows, and hides neither false alarms nor misses."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.seeded_api import decided

from consumers import replay as replaying
from consumers.errors import Refused
from consumers.readers import charts
from consumers.readers.models import Alert, Client
from consumers.readers.report import Coverage, Report, ReportedCampaign, ReportedClient, render, write_report
from consumers.records.alert import exposure_text
from consumers.replay import Replayed
from consumers.times import rfc3339
from detector.exposure import Exposure
from detector.policy import State
from detector.scoring import Evidence

EVIL = "\"><script>alert('x')</script>&<b>"
HOUR_MS = 3_600_000
START_MS = 1_772_409_600_000


class Page(HTMLParser):
    """Tags, attributes and text; raises on nothing, so the tests below look at nesting too."""

    VOID = ("meta", "br", "line", "circle", "rect", "polyline", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] == "script" else self.text).append(data)


def public(name: str, suspicion: float, state: State, model: str = "digits", **more: Any) -> Client:
    """A client in its public shape."""
    fields: dict[str, Any] = {
        "client_id": name, "client_key": "0" * 32, "model_id": model, "queries": 900, "distinct": 700.0, "suspicion": suspicion,
        "p_value": 1 - suspicion, "calibrated": True, "in_order": True, "state": state, "reason": f"odd: {name}", "enforced": "clear",
        "since_s": 0, "until_s": 0, "last_seen_ms": START_MS + 90 * HOUR_MS, "family": "knockoff",
        "extraction": Exposure(0.62, 0.4, 0.71), "campaign_id": None, "evidence": (),
    }  # fmt: skip
    return Client(**(fields | more))


def client(
    name: str, suspicion: float, state: State, thief: bool | None = None, model: str = "digits"
) -> ReportedClient:
    steps = [(q, suspicion * q / 900, START_MS + q * HOUR_MS // 10) for q in (1, 30, 300, 900)]
    evidence = (
        (Evidence("part mass", 431.5, 0.004, f"431 of 900 queries of {name} are odd."),) if suspicion > 0.9 else ()
    )
    truth = None if thief is None else ("jbda" if thief else "regular")
    return ReportedClient(
        client=public(name, suspicion, state, model, evidence=evidence), trajectory=steps, truth=truth, thief=thief,
        first_ms=START_MS,
    )  # fmt: skip


def campaign(members: tuple[str, ...] = ("a-1", EVIL), thieves: int | None = None) -> ReportedCampaign:
    whole = public(
        "5eed" * 8, 0.996, "throttle", queries=4305, reason="567 of 567 distinct queries are far",
        family="out-of-distribution queries", extraction=Exposure(0.9, 0.8, 0.95),
    )  # fmt: skip
    return ReportedCampaign(campaign=whole, members=members, thieves=thieves)


def alert(one: Client) -> Alert:
    return Alert(
        alert_id="a", time=rfc3339(START_MS + 5 * HOUR_MS), kind="client", client_id=one.client_id, client_key=None, members=(), links=(),
        campaign_id=None, model_id=one.model_id, state=one.state, suspicion=one.suspicion, queries_seen=300, extraction=None,
        family=one.family, evidence=(), update=0, calibrated=True, reason=one.reason, enforced="clear", resolved=False, frameworks=(),
        policy="detection",
    )  # fmt: skip


def report_of(*clients: ReportedClient, **more: object) -> Report:
    alerts = [alert(c.client) for c in clients if c.flagged]
    settings: dict[str, object] = {
        "title": f"Replay of {EVIL}", "models": [("digits", f"baseline {EVIL}")], "clients": clients, "campaigns": [], "budget": 0.01,
        "calibrated": True, "calibration": "On 300 honest clients.", "alerts": alerts,
    }  # fmt: skip
    return Report(**{**settings, **more})  # type: ignore[arg-type]


CELLS = [(0.0, 0.0), (1.0, 2.0), (-1.0, 0.5)]
FULL = report_of(
    client("caught", 0.9995, "block", True), client("wronged", 0.993, "throttle", False),
    client("slipped", 0.2, "clear", True), client("plain", 0.1, "clear", False), client(EVIL, 0.9999999, "block", True),
    campaigns=[campaign()],
    coverage=[Coverage("digits", CELLS, [0.5, 0.3, 0.2], {"caught": [0, 1, 0], "plain": [0.4, 0.4, 0.2]})],
    counters={"events": 4500}, dead_letters={"wrong_dimension": 3, EVIL: 1}, notes=[f"A note {EVIL}"],
)  # fmt: skip


def test_the_page_is_well_formed_and_loads_nothing_from_elsewhere() -> None:
    page = Page(render(FULL))
    assert page.open == []
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not {"src", "href", "action"} & set(attributes), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    assert "http" not in render(FULL).replace("http-equiv", "")
    assert not re.search(r"url\(|@import", render(FULL))


def test_only_our_own_script_may_run() -> None:
    page = Page(render(FULL))
    policy = next(
        a["content"] or "" for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256("".join(page.scripts).encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert [tag for tag, _ in page.tags].count("script") == 1


def test_names_from_the_log_are_escaped_everywhere() -> None:
    text = render(FULL)
    assert EVIL not in text
    assert text.count("alert(") == text.count("&lt;script&gt;alert(") > 5
    assert any(EVIL in part for part in Page(text).text)


def test_every_figure_is_valid_xml() -> None:
    drawings = re.findall(r"<svg.*?</svg>", render(FULL), re.DOTALL)
    assert len(drawings) == 2 + 2 + 2
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_false_alarms_and_misses_stand_beside_the_caught() -> None:
    page = re.sub(r"\s+", " ", "".join(Page(render(FULL)).text))
    assert "3 of 5 clients were flagged: 2 of 3 attacking accounts, and 1 of 2 honest clients." in page
    assert "honest, flagged" in page
    assert "thief, missed" in page
    assert "refused: wrong_dimension" in page


def test_without_truth_nothing_is_called_thief_or_honest() -> None:
    text = render(report_of(client("a", 0.999, "block"), client("b", 0.1, "clear")))
    page = re.sub(r"\s+", " ", "".join(Page(text).text))
    assert "1 of 2 clients were flagged." in page
    for words in ("thief,", "attacking", "honest, flagged", "Truth"):
        assert words not in page


def test_clients_are_ranked_by_state_then_suspicion() -> None:
    rows = [
        client("low", 0.5, "clear"),
        client("held", 0.2, "block"),
        client("high", 0.99, "throttle"),
        client("mid", 0.96, "watch"),
    ]
    order = re.findall(r'<td class="id">(\w+)</td>', render(report_of(*rows)))
    assert order == ["held", "high", "mid", "low"]


def test_uncalibrated_scores_say_so_at_the_top() -> None:
    text = render(report_of(client("a", 0.5, "clear"), calibrated=False, calibration="Only 12 honest clients."))
    assert re.search(r'class="note warn"><b>Not calibrated\.</b> Only 12 honest clients\.', text)
    assert "Not calibrated" not in render(FULL)


def test_a_long_table_is_cut_but_keeps_false_alarms_and_misses() -> None:
    many = [client(f"c{i:04d}", 0.3, "clear", False) for i in range(1500)] + [client("slipped", 0.01, "clear", True)]
    text = render(report_of(*many))
    assert "slipped</td>" in text
    assert text.count('<td class="id">') == 201
    assert "1,300 less suspicious clients are not listed" in text
    assert len(text) < 1_500_000


def test_an_empty_replay_gives_a_page() -> None:
    page = "".join(Page(render(report_of())).text)
    assert "None of 0 clients was flagged" in page
    assert "nobody was flagged" in page


@pytest.mark.parametrize("suspicion", [0.0, 0.5, 1.0, 1.0 - 1e-12])
def test_depth_is_finite_and_bounded(suspicion: float) -> None:
    assert 0.0 <= charts.depth(suspicion) <= 6.0


def test_a_client_says_what_it_could_copy() -> None:
    page = re.sub(r"\s+", " ", "".join(Page(render(report_of(client("a", 0.999, "block")))).text))
    assert "Exposure: 62 % of the answers (40 %–71 %, rough)." in page


def test_an_exposure_that_nobody_could_estimate_is_not_known_and_no_number() -> None:
    """As of models that write: zero would say that nothing can be copied."""
    row = decided("thief", 0.001, "block", extraction=None)
    report = replaying.report_of(Replayed({("digits", "0" * 32): row}, {}, []), {}, 0.01)
    page = re.sub(r"\s+", " ", "".join(Page(render(report)).text))
    assert "Exposure: not known." in page
    assert "of the answers (" not in page
    assert (exposure_text(None), exposure_text(Exposure(0.62, 0.4, 0.71))) == ("not known", "62% (40% to 71%, rough)")


def test_a_client_without_its_exposure_is_no_client() -> None:
    whole = client("a", 0.5, "clear")
    for kind, one, name in ((Client, whole.client, "extraction"), (ReportedClient, whole, "first_ms")):
        given = {field: getattr(one, field) for field in kind.__slots__ if field != name}
        with pytest.raises(TypeError, match=name):
            kind(**given)


def test_the_report_of_a_replay_has_the_exposure_and_the_first_query_of_each_row() -> None:
    """It once had neither: the replay passed on some fields of a row, and defaults hid that two were forgotten."""
    whole = {"fidelity": 0.62, "low": 0.4, "high": 0.71}
    client_row = decided("thief", 0.001, "block", extraction=whole, first_ms=START_MS)
    campaign_row = decided("5eed" * 8, 0.001, "throttle", members=["a", "b"], extraction=whole | {"fidelity": 0.9})
    result = Replayed({("digits", "0" * 32): client_row}, {("digits", "campaign:5eed"): campaign_row}, [])
    report = replaying.report_of(result, {}, 0.01)
    assert (report.clients[0].client.extraction, report.clients[0].first_ms) == (Exposure(0.62, 0.4, 0.71), START_MS)
    assert report.campaigns[0].campaign.extraction == Exposure(0.9, 0.4, 0.71)
    page = re.sub(r"\s+", " ", "".join(Page(render(report)).text))
    assert "Exposure: 62 % of the answers (40 %–71 %, rough)." in page
    assert "Exposure: 90 % of the answers (40 %–71 %, rough)." in page


def test_a_campaign_is_shown_with_its_accounts_and_its_exposure() -> None:
    page = re.sub(r"\s+", " ", "".join(Page(render(report_of(campaigns=[campaign(("a-1", "a-2"), thieves=2)]))).text))
    for words in (
        "Campaigns",
        "5eed" * 8,
        "2: a-1, a-2",
        "2 of 2 belong to an attacker",
        "Exposure: 90 % of the answers",
        "4,305",
    ):
        assert words in page
    assert "Campaigns" not in "".join(Page(render(report_of())).text)


def test_a_large_campaign_names_its_first_accounts_and_counts_the_rest() -> None:
    page = "".join(Page(render(report_of(campaigns=[campaign(tuple(f"a-{i}" for i in range(1200)))]))).text)
    assert "1,200: a-0, " in page
    assert "a-49 and 1,150 more" in page


def test_two_models_get_a_column() -> None:
    rows = [client("a", 0.5, "clear"), client("a", 0.6, "clear", model="adult")]
    text = render(report_of(*rows, models=[("digits", "x"), ("adult", "y")]))
    assert text.count('data-name="model"') == 2


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    write_report(target, FULL)
    assert target.read_text(encoding="utf-8") == render(FULL)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(Refused, match="No such file"):
        write_report(tmp_path / "nowhere" / "report.html", FULL)


def test_time_marks_are_round_and_few() -> None:
    for hours in (1, 7, 30, 24 * 14, 24 * 400):
        end_ms = START_MS + hours * HOUR_MS
        trace = charts.Trace("a", "", "caught", [(1, 0.1, START_MS)], [(START_MS, "block")], START_MS, end_ms)
        svg = charts.timeline_figure([trace], 900)
        assert 1 <= svg.count('class="tick"') <= 8
