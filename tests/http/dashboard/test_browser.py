"""The dashboard in a real Chromium: every page at two widths in light and dark, keys, live updates, hostile names, buttons by role."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Dialog, Page, expect
from support import seeded_dashboard
from support.seeded_dashboard import MODEL, SECRETS, TENANT, Served

from consumers.legible import legible
from consumers.records import operator_entries
from detector.baseline import Baseline
from detector.query import ClientKey

WATCHED = """
window.violations = [];
document.addEventListener('securitypolicyviolation', e => violations.push(e.violatedDirective + ' ' + e.blockedURI));
"""
INJECTED = r"""() => {
  const all = [...document.querySelectorAll('*')];
  const never = 'iframe, object, embed, base, img, video, audio, style, [style], link:not([rel=stylesheet]):not([rel=icon])';
  const ours = /^(http:\/\/127|[\/#?]|$)/;
  const bad = a => /^on/i.test(a.name) || (/href|src|action/i.test(a.name) && !ours.test(a.value));
  return {
    violations: window.violations,
    scripts: [...document.scripts].map(s => s.getAttribute('src')),
    never: document.querySelectorAll(never).length,
    handlers: all.filter(e => [...e.attributes].some(bad)).length,
    pwned: window.pwned === undefined ? 0 : 1,
  };
}"""


def client_address(client_id: str, model: str = MODEL) -> str:
    return "/client?" + urlencode({"client": SECRETS.client_hash(TENANT, client_id), "model": model})


PAGES = {
    "queue": "/",
    "everyone": "/?state=all",
    "nobody": "/?q=no-such-client",
    "client": client_address("partner-eu-7f21"),
    "quiet client": client_address("acct-20037"),
    "client without baseline": client_address("acct-77", "fraud-v3"),
    "campaigns": "/campaigns",
    "campaign": "/campaign?id=c-2f9a61",
    "models": "/models",
    "model": f"/model?id={MODEL}",
    "model without baseline": "/model?id=fraud-v3",
    "decisions": "/decisions",
    "alerts": "/alerts",
    "health": "/health",
}


class Seen(list[str]):
    """Everything a page complained of."""


@contextlib.contextmanager
def opened(browser: Browser, site: Served, role: str = "", **options: Any) -> Iterator[tuple[Page, Seen]]:
    """A page of a fresh browser profile, signed in if a role is given."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)

    def dialog(asked: Dialog) -> None:
        seen.append(f"dialog: {asked.message}")
        asked.dismiss()

    context.add_init_script(WATCHED)
    page, seen = context.new_page(), Seen()
    page.on("console", lambda m: seen.append(f"{m.type}: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: seen.append(f"error: {e}"))
    page.on("dialog", dialog)
    page.set_default_timeout(15_000)
    if role:
        page.goto(f"{site.url}/login")
        page.get_by_label("API key").fill(site.keys[role])
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{site.url}/")
    try:
        yield page, seen
    finally:
        context.close()


UNSEEN = """() => [...document.querySelectorAll("nav[aria-label=Pages] a")].filter(a => {
  const link = a.getBoundingClientRect(), nav = a.closest("nav").getBoundingClientRect();
  return link.left < nav.left - 1 || link.right > nav.right + 1 || link.right > innerWidth;
}).map(a => a.textContent)"""
"""Links of the navigation that one must scroll to see."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_is_quiet_and_obeys_its_policy(browser: Browser, site: Served, width: int, scheme: Any) -> None:
    size = {"width": width, "height": 844}
    with opened(browser, site, "operator", viewport=size, color_scheme=scheme) as (page, seen):
        for name, path in PAGES.items():
            answer = page.goto(site.url + path)
            assert answer is not None
            assert answer.status == 200, name
            assert "script-src 'self'" in answer.headers["content-security-policy"]
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{name} scrolls sideways by {wide} px at {width}"
            assert page.evaluate(f"({UNSEEN})()") == [], f"{name} hides pages of the navigation at {width}"
            assert page.evaluate("document.querySelectorAll('h1').length") == 1, name
            assert page.evaluate("window.violations") == [], name
        page.goto(site.url + "/client?client=none&model=none")
    assert [line for line in seen if "404" not in line] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_that_axe_knows_of_is_wrong(browser: Browser, site: Served, scheme: Any) -> None:
    """Contrast, names, labels, landmarks, order of headings: all rules of WCAG 2.2 A and AA that can be checked by machine."""
    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}
    with opened(browser, site, "operator", color_scheme=scheme) as (page, _):
        for name in ("queue", "client", "model", "campaign", "decisions", "health")[: 6 if scheme == "light" else 3]:
            page.goto(site.url + PAGES[name])
            found = Axe().run(page, options=rules)
            told = [(v["id"], [n["html"][:120] for n in v["nodes"]][:3]) for v in found.response["violations"]]
            assert told == [], name
            assert len(found.response["passes"]) > 10, "axe has looked"


def test_the_pages_can_be_walked_by_keyboard(browser: Browser, site: Served) -> None:
    with opened(browser, site, "operator") as (page, _):
        page.goto(site.url + "/")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) == "solid", "the focus can be seen"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.textContent") == "partner-eu-7f21"
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("k")
        assert page.evaluate("document.activeElement.textContent") == "acct-90114"
        page.keyboard.press("Enter")
        page.wait_for_url("**/client?**")
        assert page.locator("h1").inner_text() == "acct-90114"
        page.keyboard.press("u")
        page.wait_for_url(f"{site.url}/")
        page.keyboard.press("/")
        page.keyboard.type("jukjk?")
        assert page.locator("#q").input_value() == "jukjk?", "keys are letters while somebody types"
        page.locator("#q").fill("")
        page.locator("h1").click()
        page.keyboard.press("?")
        expect(page.locator("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("dialog")).to_be_hidden()


def test_filters_narrow_the_queue(browser: Browser, site: Served) -> None:
    with opened(browser, site, "viewer") as (page, _):
        page.goto(site.url + "/")
        assert page.locator("table.queue tbody tr").count() == 10
        page.locator("#state").select_option("block")
        page.wait_for_url("**/?*state=block*")
        assert page.locator("tbody .pill").all_inner_texts() == ["block", "block"]
        page.goto(site.url + "/?state=all&q=acct-9")
        assert page.locator("tbody .id").all_inner_texts() == ["acct-90114"]
        page.goto(site.url + "/?model=fraud-v3")
        assert page.locator("tbody .id").all_inner_texts() == ["acct-77"]
        page.goto(site.url + "/?state=all")
        assert page.locator("tbody tr").count() == 50
        page.get_by_role("link", name="Next").click()
        page.wait_for_url("**page=1*")
        assert page.locator("tbody tr").count() == 24


def test_the_queue_is_live_and_keeps_the_focus(browser: Browser, tmp_path: Path, baseline: Baseline) -> None:
    with seeded_dashboard.served(tmp_path, baseline) as site, opened(browser, site, "viewer") as (page, seen):
        page.goto(site.url + "/")
        expect(page.locator(".live.on")).to_be_visible()
        page.keyboard.press("j")
        page.keyboard.press("j")
        new = seeded_dashboard.row("newcomer-1", "block", "extraction", 1e-6, 900, "mix_roots", baseline)
        seeded_dashboard.keep(site.store, [(MODEL, new)])
        expect(page.locator("tbody tr").first).to_contain_text("newcomer-1", timeout=15_000)
        assert page.evaluate("document.activeElement.textContent") == "acct-90114"
        assert page.locator("tbody tr").count() == 11
        expect(page.locator("[data-fact=block]")).to_have_text("3", timeout=15_000)
        page.locator("tbody tr").first.click()
        page.wait_for_url("**/client?**")
        assert page.locator("h1").inner_text() == "newcomer-1"
        assert seen == []


HOSTILE: list[str] = json.loads(Path(__file__).with_name("hostile_ids.json").read_text(encoding="ascii"))


def test_fifty_hostile_client_ids_are_text_and_nothing_else(
    browser: Browser, tmp_path: Path, baseline: Baseline
) -> None:
    assert len(set(HOSTILE)) == 50
    with seeded_dashboard.served(tmp_path, baseline) as site:
        rows = [
            seeded_dashboard.row(
                h, "block", "extraction", 1e-7 * (n + 1), 900, "mix_roots", baseline, campaign_id="<b>c", links=["z"]
            )
            for n, h in enumerate(HOSTILE)
        ]
        seeded_dashboard.keep(site.store, [(MODEL, one) for one in rows])
        for n, h in enumerate(HOSTILE[:12]):  # words of people are no safer
            operations, subject = site.operations, site.operations.subject(TENANT, MODEL, h)
            operations.decide(seeded_dashboard.ADMIN, subject, "block", reason=HOSTILE[-n - 1])
            operations.note(seeded_dashboard.ADMIN, ClientKey(TENANT, MODEL, subject.client), h)
        with opened(browser, site, "operator") as (page, seen):
            page.goto(site.url + "/?state=block")
            shown = page.locator("table.queue tbody tr .id").all_inner_texts()
            assert shown[:50] == [legible(h) for h in HOSTILE]
            page.locator(".live.on").wait_for(
                state="attached"
            )  # no wait_for_function: it needs eval, which the policy forbids
            assert page.locator("table.queue tbody tr .id").all_inner_texts()[:50] == [legible(h) for h in HOSTILE]
            attack = quote('"><script>alert(1)</script>', safe="")
            addresses = ["/decisions", "/alerts", "/campaigns", "/campaign?id=%3Cb%3Ec"]
            addresses += [f"/?q={attack}&state={attack}&model={attack}", f"/?said={attack}", f"/model?id={attack}"]
            addresses += [f"/client?client={attack}&model={attack}", f"/login?next={attack}"]
            for path in [*addresses, *map(client_address, HOSTILE)]:
                page.goto(site.url + path, wait_until="domcontentloaded")
                found = page.evaluate(INJECTED)
                assert found["scripts"] == ["/static/dashboard.js"], path
                assert found["never"] == found["handlers"] == found["pwned"] == 0, path
                assert found["violations"] == [], path
                assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
                if attack in path:
                    continue
                if path.startswith("/client"):
                    name = HOSTILE[[*map(client_address, HOSTILE)].index(path)]
                    assert page.locator("h1 .id").text_content() == legible(name)
            assert [line for line in seen if "404" not in line] == []


def test_buttons_are_there_for_those_who_may_press_them(browser: Browser, site: Served) -> None:
    wanted = {
        "viewer": set(),
        "analyst": {"True positive", "False positive", "Save the note"},
        "operator": {
            "True positive",
            "False positive",
            "Save the note",
            "Block",
            "Throttle",
            "Degrade",
            "Release",
            "Allowlist",
        },
    }
    for role, buttons in wanted.items():
        with opened(browser, site, role) as (page, _):
            page.goto(site.url + client_address("acct-90114"))
            assert set(page.locator("aside button").all_inner_texts()) == buttons, role
            page.goto(site.url + "/decisions")
            assert page.get_by_role("button", name="Undo").count() == (2 if role == "operator" else 0)


def test_a_block_is_in_the_store_with_its_audit_row_and_can_be_undone(browser: Browser, site: Served) -> None:
    client = SECRETS.client_hash(TENANT, "svc-pricing-batch")

    def kept() -> list[operator_entries.StoredOperatorDecision]:
        rulings = [operator_entries.operator_decision(e) for e in site.store.operator_entries("decision", TENANT)[1]]
        return [r for r in rulings if r.client == client]

    with opened(browser, site, "operator") as (page, seen):
        page.goto(site.url + client_address("svc-pricing-batch"))
        page.get_by_role("button", name="Block").click()
        assert kept() == [], "without a reason the browser does not even send the form"
        page.get_by_label("Reason").fill("looks <b>bad</b>")
        page.get_by_label("For", exact=True).select_option("3600")
        page.get_by_label("Dry run").check()
        page.get_by_role("button", name="Block").click()
        page.wait_for_url("**said=dry")
        assert [r.simulated for r in kept()] == [True]
        # a dry run changes nothing that is in force
        expect(page.locator("#gateways")).to_contain_text("let it through")
        page.get_by_label("Reason").fill("looks <b>bad</b>")
        page.get_by_label("For", exact=True).select_option("3600")
        page.get_by_role("button", name="Block").click()
        page.wait_for_url("**said=block")
        (made,) = kept()
        assert (made.state, made.reason, made.actor, made.simulated) == (
            "block",
            "looks <b>bad</b>",
            "operator-key",
            False,
        )
        assert made.until_s - made.at_s == 3600
        assert b'"decision.block"' in site.store.audit_rows(0, 1000)[-1][1]
        assert client.encode() in site.store.audit_rows(0, 1000)[-1][1]
        expect(page.locator(".timeline li.hand").first).to_contain_text(
            "operator-key decided: block – looks <b>bad</b>"
        )
        page.goto(site.url + "/decisions")
        page.get_by_role("button", name="Undo for svc-pricing-batch").click()
        page.wait_for_url("**said=undone")
        assert kept() == []
        assert b'"decision.withdraw"' in site.store.audit_rows(0, 1000)[-1][1]
        assert seen == []


def test_verdicts_and_notes_are_kept(browser: Browser, site: Served) -> None:
    with opened(browser, site, "analyst") as (page, _):
        page.goto(site.url + client_address("key-5d1f0c"))
        page.get_by_label("Note for your colleagues").fill("Ask the sales team")
        page.get_by_role("button", name="Save the note").click()
        page.wait_for_url("**said=noted")
        expect(page.locator("aside")).to_contain_text("Ask the sales team")
        page.get_by_role("button", name="False positive").click()
        page.wait_for_url("**said=false_positive")
        expect(page.locator(".title")).to_contain_text("allowlisted")
        page.goto(site.url + "/alerts")
        expect(page.locator("tbody tr", has_text="key-5d1f0c")).to_contain_text("false positive")


def test_an_empty_dashboard_says_what_to_do_next(browser: Browser, tmp_path: Path, baseline: Baseline) -> None:
    with seeded_dashboard.served(tmp_path, baseline, fill=False) as site, opened(browser, site) as (page, seen):
        for path, words in {
            "/": "querywarden ingest",
            "/campaigns": "metadata",
            "/decisions": "Add the scanners",
            "/alerts": "alerts.*",
            "/health": "querywarden ingest",
        }.items():
            page.goto(site.url + path)
            expect(page.locator("main")).to_contain_text(words)
        assert seen == []


def test_it_works_without_its_script(browser: Browser, site: Served) -> None:
    with opened(browser, site, "operator", java_script_enabled=False) as (page, _):
        page.get_by_role("link", name="acct-90114").click()
        assert page.locator("h1 .id").text_content() == "acct-90114"
