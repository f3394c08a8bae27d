"""The dashboard's pages over HTTP: access, rendering, and the headers of every answer.

Rules:
* Deny by default: a visitor without a session is sent to the login page, unless the service is open to this machine.
* Every answer carries the content security policy and is never cached. Static files are cached by their hash.
* Autoescape is on, undefined names are errors, and only our own drawings are printed as they are.
* If the store does not answer, the page says so (503), without a stack trace.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import logging
import secrets as entropy
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from consumers.errors import Unavailable
from consumers.http.auth import Authenticator, Credential
from consumers.http.dashboard import campaign_page, client_page, decision_page, model_page, queue_page
from consumers.http.dashboard.health_page import Pulse, health_page
from consumers.http.dashboard.queue_page import Filters
from consumers.http.dashboard.session import COOKIE, HOURS, ROLES, Session, Sessions, Visitor
from consumers.http.dashboard.site import Site
from consumers.legible import legible
from consumers.operators.audited_write import Actor
from consumers.operators.views import Views
from consumers.readers.queries import Reader
from consumers.times import day_and_minute, rfc3339, short
from detector.baseline import Baseline
from detector.query import ClientKey

log = logging.getLogger("querywarden.dashboard")

PAGES = (
    ("/", "Suspects"), ("/campaigns", "Campaigns"), ("/models", "Models"), ("/decisions", "Decisions"), ("/alerts", "Alerts"),
    ("/health", "Health"),
)  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
SAID: Mapping[str, tuple[str, str]] = {
    "block": ("good", "Blocked. Gateways follow within two seconds."),
    "throttle": ("good", "Throttled. Gateways follow within two seconds."),
    "degrade": ("good", "Degraded: answers with less detail. Gateways follow within two seconds."),
    "proposed": ("", "Proposed. Nothing is enforced until another person confirms it on this page."),
    "confirmed": ("good", "Confirmed. Gateways follow within two seconds."),
    "clear": ("good", "Released. Gateways follow within two seconds."),
    "allow": ("good", "Added to the allowlist. Gateways let this client through until the entry ends."),
    "dry": ("", "Dry run: the decision is stored as simulated and is not enforced."),
    "undone": ("good", "Undone. The detected decision is in force again."),
    "gone": ("", "That entry had already ended."),
    "true_positive": ("good", "Saved: true positive."),
    "false_positive": ("good", "Saved: false positive. The client is on the allowlist for 30 days."),
    "worked": ("good", "Saved."),
    "judged": ("good", "Saved. The receivers of the campaign's alert are informed."),
    "changed": (
        "bad",
        "Not done: somebody else decided about this client or campaign after the page was loaded, or its accounts changed.",
    ),
    "conflict": (
        "bad",
        "Not done: a decision is in force that a dry run would replace (undo it first), or the proposal is your own.",
    ),
    "noted": ("good", "The note is saved."),
    "wrong-key": ("bad", "This key is unknown or expired, or its role has no access to the dashboard."),
    "signed-out": ("", "Signed out."),
    "refused": ("bad", "Not done: the form was incomplete, or you are not allowed to do that."),
}
"""Codes that a redirect carries, and what they say: no text of a request is ever shown back."""
TTLS = ((900, "15 minutes"), (3600, "one hour"), (14_400, "4 hours"), (86_400, "one day"), (604_800, "one week"))
"""How long a decision made here may hold; the first three also suit an allowlisting by hand."""
ACTS = (
    ("block", "Block", "block"), ("throttle", "Throttle", "throttle"), ("degrade", "Degrade", "throttle"),
    ("clear", "Release", "clear"), ("allow", "Allowlist", "clear"),
)  # fmt: skip
"""What the form of a client offers: (act, label, look)."""
CAMPAIGN_ACTS = tuple(act for act in ACTS if act[0] != "allow")
"""What the form of a campaign offers."""
MOST_COOKIE_BYTES = 8192
"""Ours has a tenth; more are not taken apart for a stranger."""
_STATIC = {"dashboard.css": "text/css", "dashboard.js": "text/javascript", "mark.svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Everything the pages need.

    auth     who calls; a service without any credential may be looked at from its own machine
    pulse    what `serve` knows of itself, for a tenant
    views    where looks at a client are recorded; None: nowhere
    """

    reader: Reader
    auth: Authenticator
    sessions: Sessions
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    budget: float = 0.01
    pulse: Callable[[str], Pulse] = lambda tenant: Pulse()
    now_s: Callable[[], float] = time.time
    views: Views | None = None
    environment: Environment = field(default_factory=lambda: templates())

    def visitor(self, request: Request) -> Visitor:
        """Who asks: by session, by certificate or token, or from this machine; with an empty role when nobody is known."""
        now = int(self.now_s())
        session = self.sessions.read(request.cookies.get(COOKIE), now)
        who = self._holder(session)
        if who is not None and session is not None:
            return Visitor(who.name, who.role, who.tenant, session)
        if session is None or session.key_id:
            session = self.sessions.open("", now)
        who = self.auth.credential(request.scope)
        if who is not None and who.role in ROLES:
            return Visitor(who.name, who.role, who.tenant, session)
        return Visitor("nobody", "", self.auth.tenant, session)

    def holder(self, scope: MutableMapping[str, Any]) -> str | None:
        """Id of the key whose session a request carries, None without a good one. It says whose limits count, and lets nobody in."""
        if not 0 < sum(len(value) for name, value in scope["headers"] if name == b"cookie") <= MOST_COOKIE_BYTES:
            return None
        who = self._holder(self.sessions.read(Request(scope).cookies.get(COOKIE), int(self.now_s())))
        return who.id if who is not None else None

    def _holder(self, session: Session | None) -> Credential | None:
        return self.auth.keys.of_prefix(session.key_id) if session is not None and session.key_id else None

    def site(self, visitor: Visitor) -> Site:
        return Site(self.reader.of(visitor.tenant), self.baselines, self.budget)

    # ---------------------------------------------------------------------------------------------------- answers

    def page(
        self,
        request: Request,
        visitor: Visitor,
        template: str,
        title: str,
        values: Mapping[str, Any],
        status: int = 200,
    ) -> Response:
        look, text = SAID.get(request.query_params.get("said", ""), ("", ""))
        token = Markup('<input type="hidden" name="csrf" value="{}">').format(self.sessions.token(visitor.session))
        here = request.url.path or "/"
        body = self.environment.get_template(template).render(
            title=title,
            here=here,
            pages=PAGES,
            session=visitor,
            said={"look": look, "text": text} if text else None,
            csrf=lambda: token,
            may={"decide": visitor.may("operator"), "judge": visitor.may("analyst")},
            hours=HOURS,
            **values,
        )
        return self.dressed(request, HTMLResponse(body, status), visitor.session)

    def problem(self, request: Request, visitor: Visitor, status: int, heading: str, words: str) -> Response:
        return self.page(request, visitor, "problem.html.j2", heading, {"heading": heading, "words": words}, status)

    def dressed(self, request: Request, response: Response, session: Session | None = None) -> Response:
        """The answer with the headers that all carry and, if given, the session's cookie."""
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if session is not None and request.cookies.get(COOKIE) != (cookie := self.sessions.cookie(session)):
            response.set_cookie(
                COOKIE, cookie, max_age=HOURS * 3600, path="/", httponly=True, samesite="strict",
                secure=request.url.scheme == "https",
            )  # fmt: skip
        return response

    def sent_to(self, request: Request, path: str, session: Session | None = None) -> Response:
        return self.dressed(request, RedirectResponse(path, 303), session)


Handler = Callable[[Dashboard, Request, Visitor], Response]


def routes(dashboard: Dashboard) -> list[Route]:
    """The pages that are read. Every handler runs in a thread: the store's client blocks."""

    def seen(path: str, handler: Handler) -> Route:
        async def answer(request: Request) -> Response:
            return await run_in_threadpool(_guarded, dashboard, request, handler)

        return Route(path, answer, methods=["GET"], include_in_schema=False)

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _STATIC:
            return dashboard.dressed(request, Response(status_code=404))
        body, tag = _FILES[name]
        headers = {"etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return dashboard.dressed(request, Response(status_code=304, headers=headers))
        return dashboard.dressed(request, Response(body, media_type=_STATIC[name], headers=headers))

    return [
        Route("/static/{name}", static, methods=["GET"], include_in_schema=False),
        seen("/", _queue),
        seen("/client", _client),
        seen("/appeal", _appeal),
        seen("/campaigns", _simple("campaigns.html.j2", "Campaigns", campaign_page.campaigns)),
        seen("/campaign", _named("campaign.html.j2", "Campaign", campaign_page.campaign, _campaign_form)),
        seen("/models", _simple("models.html.j2", "Models", model_page.models)),
        seen("/model", _named("model.html.j2", "Model", model_page.model)),
        seen("/decisions", _simple("decisions.html.j2", "Decisions", decision_page.decisions)),
        seen("/alerts", _alerts),
        seen("/health", _health),
        seen("/login", _login),
        seen("/live/queue", _live_queue),
        seen("/live/client", _live_client),
    ]


def _guarded(dashboard: Dashboard, request: Request, handler: Handler) -> Response:
    """The handler's answer, for somebody who may look; else the login page, and a page for what went wrong."""
    try:
        visitor = dashboard.visitor(request)
        if not visitor.may("viewer") and handler is not _login:
            if "/live/" in request.url.path:
                return dashboard.dressed(request, JSONResponse({"error": "signed out"}, 401))
            back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return dashboard.sent_to(request, f"/login?next={quote(back, safe='')}")
        return handler(dashboard, request, visitor)
    except Unavailable as error:
        log.warning("store unavailable", extra={"why": str(error)})
        nobody = Visitor("nobody", "", dashboard.auth.tenant, dashboard.sessions.open("", int(dashboard.now_s())))
        answer = dashboard.problem(
            request, nobody, 503, "The store does not answer",
            "Nothing is lost: ingest and detect wait for it, and gateways go on with what they know. Try again in a few seconds.",
        )  # fmt: skip
        del answer.headers["set-cookie"]
        answer.headers["retry-after"] = "5"
        return answer


def _filters(request: Request) -> Filters:
    asked = request.query_params
    page = asked.get("page", "0")
    return Filters(
        q=asked.get("q", "").strip()[:256],
        state=asked.get("state") or "suspects",
        model=asked.get("model", "")[:256],
        page=min(int(page), 10_000) if page.isascii() and page.isdecimal() and len(page) < 10 else 0,
    )


def _queue(d: Dashboard, request: Request, visitor: Visitor) -> Response:
    return d.page(request, visitor, "queue.html.j2", "Suspects", queue_page.queue(d.site(visitor), _filters(request)))


def _live_queue(d: Dashboard, request: Request, visitor: Visitor) -> Response:
    return d.dressed(request, JSONResponse(queue_page.queue_live(d.site(visitor), _filters(request))))


def _client(d: Dashboard, request: Request, visitor: Visitor) -> Response:
    found = client_page.client(
        d.site(visitor), request.query_params.get("model", ""), request.query_params.get("client", "")
    )
    if found is None:
        return d.problem(request, visitor, 404, "No such client", "It was never assessed, or was erased since.")
    if d.views is not None:
        ip = request.client.host if request.client else ""
        key = ClientKey(visitor.tenant, request.query_params["model"], found["key"])
        d.views.note(Actor(visitor.name, visitor.role, visitor.tenant, ip), key, "page")
    values = {"c": found, "ttls": TTLS, "acts": ACTS, "once": entropy.token_urlsafe(18)}
    return d.page(request, visitor, "client.html.j2", legible(found["client_id"]), values)


def _appeal(d: Dashboard, request: Request, visitor: Visitor) -> Response:
    if not visitor.may("analyst"):
        return d.problem(request, visitor, 403, "Not for this role", "This page needs the role analyst.")
    model, key = request.query_params.get("model", ""), request.query_params.get("client", "")
    site = d.site(visitor)
    one, pack = site.reader.client(model, key), site.reader.appeal(model, key)
    if one is None or pack is None:
        return d.problem(request, visitor, 404, "No such client", "It was never assessed, or was erased since.")
    values = {"pack": pack, "name": one.client.client_id, "back": site.client_address(one.client.client_key, model)}
    return d.page(request, visitor, "appeal.html.j2", f"Appeal of {legible(one.client.client_id)}", values)


def _live_client(d: Dashboard, request: Request, visitor: Visitor) -> Response:
    one = d.reader.of(visitor.tenant).client(
        request.query_params.get("model", ""), request.query_params.get("client", "")
    )
    if one is None:
        return d.dressed(request, JSONResponse({"error": "no such client"}, 404))
    return d.dressed(request, JSONResponse({"mark": client_page.mark(one)}))


def _simple(template: str, title: str, values: Callable[[Site], Mapping[str, Any]]) -> Handler:
    return lambda d, request, visitor: d.page(request, visitor, template, title, values(d.site(visitor)))


def _alerts(d: Dashboard, request: Request, visitor: Visitor) -> Response:
    values = decision_page.alerts(d.site(visitor), request.query_params.get("cursor", "")[:2048])
    return d.page(request, visitor, "alerts.html.j2", "Alerts", values)


def _campaign_form() -> Mapping[str, Any]:
    """What the form of a campaign needs."""
    return {"ttls": TTLS, "acts": CAMPAIGN_ACTS, "once": entropy.token_urlsafe(18)}


def _named(
    template: str,
    title: str,
    values: Callable[[Site, str], Mapping[str, Any] | None],
    form: Callable[[], Mapping[str, Any]] = dict,
) -> Handler:
    def answer(d: Dashboard, request: Request, visitor: Visitor) -> Response:
        name = request.query_params.get("id", "")
        found = values(d.site(visitor), name)
        if found is None:
            return d.problem(request, visitor, 404, f"No such {title.lower()}", "It is not known, or not any more.")
        return d.page(request, visitor, template, f"{title} {legible(name)}", {**found, **form()})

    return answer


def _health(d: Dashboard, request: Request, visitor: Visitor) -> Response:
    values = health_page(
        d.reader.of(visitor.tenant), d.pulse(visitor.tenant), d.reader.modes.mode, int(d.now_s() * 1000)
    )
    return d.page(request, visitor, "health.html.j2", "Health", values, 200 if values["answers"] else 503)


def _login(d: Dashboard, request: Request, visitor: Visitor) -> Response:
    return d.page(request, visitor, "login.html.j2", "Sign in", {"next": request.query_params.get("next", "/")[:2000]})


def templates() -> Environment:
    """Jinja with autoescape, strict undefined, and the filters of the pages."""
    made = Environment(
        loader=PackageLoader("consumers.http.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        legible=legible,
        thousands=lambda n: f"{n:,.0f}",
        share=lambda s: f"{100 * s:.2g}\N{NO-BREAK SPACE}%" if s < 0.1 else f"{100 * s:.0f}\N{NO-BREAK SPACE}%",
        brief=short,
        when=lambda ms: day_and_minute(ms) if ms else "–",
        iso=rfc3339,
    )
    return made


def _file(name: str) -> tuple[bytes, str]:
    body = importlib.resources.files("consumers.http.dashboard").joinpath("static", name).read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:20]}"'


_FILES = {name: _file(name) for name in _STATIC}
