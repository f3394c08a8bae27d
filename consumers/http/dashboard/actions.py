"""The forms of the dashboard: sign in and out, decide about clients and campaigns, undo, judge, note.

Rules:
* A post is refused (403) before anything else if it comes from another origin, carries no token of its session, or the role may not do it.
* The body is a small form. Clients are named by hash; the id that is stored sealed with a decision is read from the store.
* Every change goes through `operate`, which writes it with its audit row in one step. A form that is sent twice has one effect (``once``).
* The answer is a redirect with a code from `pages.SAID`. No text of the request is shown back.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from consumers.errors import Conflict, Missing, Refused, Stale, Unavailable, WrongUse
from consumers.http.dashboard.handlers import ACTS, CAMPAIGN_ACTS, Dashboard
from consumers.http.dashboard.session import COOKIE, ROLES, Visitor, local_path, mark_of, same_origin
from consumers.operators.audited_write import Actor, Subject
from consumers.operators.campaign_decisions import CampaignSubject
from consumers.operators.operate import Operations, assignee_of
from consumers.records.decision import campaign_key

log = logging.getLogger("querywarden.dashboard")

MAX_FORM_BYTES = 16_384
_ACTS = tuple(act for act, _, _ in ACTS)
_CAMPAIGN_ACTS = tuple(act for act, _, _ in CAMPAIGN_ACTS)

Form = Mapping[str, str]
Act = Callable[[Dashboard, Operations, Actor, Form], tuple[str, str]]
"""(dashboard, operations, who, form) → (path to go to, code of what to say)."""


def routes(dashboard: Dashboard, operations: Operations) -> list[Route]:
    """The posts."""

    def post(path: str, answer: Callable[[Request, Form], Response]) -> Route:
        async def handler(request: Request) -> Response:
            form = await _form(request)
            return await run_in_threadpool(answer, request, form)

        return Route(path, handler, methods=["POST"], include_in_schema=False)

    def guarded(role: str, act: Act) -> Callable[[Request, Form], Response]:
        return lambda request, form: _acted(dashboard, operations, request, form, role, act)

    return [
        post("/login", lambda request, form: _login(dashboard, operations, request, form)),
        post("/logout", lambda request, form: _logout(dashboard, operations, request, form)),
        post("/act/decide", guarded("operator", _decide)),
        post("/act/undo", guarded("operator", _undo)),
        post("/act/campaign-decide", guarded("operator", _decide_campaign)),
        post("/act/campaign-confirm", guarded("operator", _confirm_campaign)),
        post("/act/campaign-undo", guarded("operator", _undo_campaign)),
        post("/act/verdict", guarded("analyst", _record_verdict)),
        post("/act/campaign-verdict", guarded("analyst", _judge_campaign)),
        post("/act/note", guarded("analyst", _note)),
        post("/act/case", guarded("analyst", _work_on)),
    ]


async def _form(request: Request) -> Form:
    """The fields of a small form; empty for anything else."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        return {}
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_FORM_BYTES:
                return {}
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=20, errors="replace"))
    except (ValueError, ClientDisconnect):
        return {}


def _acted(d: Dashboard, operations: Operations, request: Request, form: Form, role: str, act: Act) -> Response:
    try:
        visitor = d.visitor(request)
        if not _trusted(d, request, form, visitor):
            return _forbidden(
                d,
                request,
                visitor,
                "This form is invalid or too old. Go back, reload the page, and try again.",
            )
        if not visitor.may(role):
            return _forbidden(d, request, visitor, f"This needs the role {role}.")
        path, said = act(d, operations, _actor(request, visitor), form)
    except Missing:
        path, said = _back(form), "gone"
    except Stale:
        path, said = _back(form), "changed"
    except Conflict:
        path, said = _back(form), "conflict"
    except (WrongUse, Refused, KeyError) as error:
        log.info("refused", extra={"why": type(error).__name__})
        path, said = _back(form), "refused"
    except Unavailable as error:
        log.warning("store unavailable", extra={"why": str(error)})
        return d.dressed(
            request,
            Response(
                "The store does not answer. The change may not have been made. Try again.", 503, media_type="text/plain"
            ),
        )
    mark = "&" if "?" in path else "?"
    return d.sent_to(request, f"{path}{mark}said={said}")


def _decide(d: Dashboard, operations: Operations, who: Actor, form: Form) -> tuple[str, str]:
    act, reason, ttl_s = form["act"], form.get("reason", "").strip(), _seconds(form.get("ttl_s", ""))
    if act not in _ACTS or not reason:
        raise WrongUse("give an act and a reason")
    subject, once, seen = _subject(d, who, form), form.get("once") or None, form.get("seen") or None
    dry = form.get("dry_run") == "1"
    if act == "allow":
        if dry:
            raise WrongUse("allowlisting has no dry run")
        operations.allow(who, subject, ttl_s=ttl_s, reason=reason, once=once, seen=seen)
    else:
        operations.decide(who, subject, act, ttl_s=ttl_s, reason=reason, simulated=dry, once=once, seen=seen)
    return _client_path(form), "dry" if dry else act


def _undo(d: Dashboard, operations: Operations, who: Actor, form: Form) -> tuple[str, str]:
    subject, seen = Subject(form["client"], form["model"]), form.get("seen") or None
    if form["kind"] == "allow":
        operations.disallow(who, subject, seen=seen)
    elif form["kind"] == "decision":
        operations.withdraw(who, subject, seen=seen)
    else:
        raise WrongUse("kind: allow or decision")
    return "/decisions", "undone"


def _decide_campaign(d: Dashboard, operations: Operations, who: Actor, form: Form) -> tuple[str, str]:
    act, reason, ttl_s = form["act"], form.get("reason", "").strip(), _seconds(form.get("ttl_s", ""))
    if act not in _CAMPAIGN_ACTS or not reason:
        raise WrongUse("give an act and a reason")
    found = d.reader.of(who.tenant).campaign(form["campaign"])
    if found is None:
        raise Missing("no such campaign")
    subject = CampaignSubject(found.campaign_id, found.model_id, tuple(m.client_key for m in found.members))
    dry = form.get("dry_run") == "1"
    made = operations.decide_campaign(
        who, subject, act, ttl_s=ttl_s, reason=reason, simulated=dry, once=form.get("once") or None,
        seen=form.get("seen") or None,
    )  # fmt: skip
    return _campaign_path(form), "dry" if dry else "proposed" if operations.waits(made) else act


def _confirm_campaign(d: Dashboard, operations: Operations, who: Actor, form: Form) -> tuple[str, str]:
    operations.confirm_campaign(who, _decided_campaign(d, who, form))
    return _campaign_path(form), "confirmed"


def _undo_campaign(d: Dashboard, operations: Operations, who: Actor, form: Form) -> tuple[str, str]:
    operations.withdraw_campaign(who, _decided_campaign(d, who, form))
    return "/decisions", "undone"


def _decided_campaign(d: Dashboard, who: Actor, form: Form) -> CampaignSubject:
    """The campaign of a form, as it was decided about. Raises Missing."""
    for one in d.reader.of(who.tenant).campaign_decisions():
        if one.campaign_id == form["campaign"]:
            return CampaignSubject(one.campaign_id, one.model_id, one.confirmed)
    raise Missing("no decision about this campaign")


def _record_verdict(d: Dashboard, operations: Operations, who: Actor, form: Form) -> tuple[str, str]:
    subject = _subject(d, who, form)
    found = d.reader.of(who.tenant).client(form["model"], form["client"])
    if found is None or found.alert_id != form["alert"]:
        raise Missing("this client has no such alert")
    operations.record_verdict(who, form["alert"], form["verdict"], subject, note=form.get("note", "").strip())
    return _client_path(form), form["verdict"]


def _judge_campaign(d: Dashboard, operations: Operations, who: Actor, form: Form) -> tuple[str, str]:
    found = d.reader.of(who.tenant).alert(form["alert"])
    if found is None or found.campaign_id is None or found.campaign_id != form["campaign"]:
        raise Missing("this campaign has no such alert")
    key = campaign_key(who.tenant, found.model_id, found.campaign_id)
    operations.record_verdict(
        who, found.alert_id, form["verdict"], None, campaign=key, note=form.get("note", "").strip()
    )
    return _campaign_path(form), "judged"


def _note(d: Dashboard, operations: Operations, who: Actor, form: Form) -> tuple[str, str]:
    reader = d.reader.of(who.tenant)
    if reader.client(form["model"], form["client"]) is None:
        raise Missing("no such client")
    operations.note(who, reader.key_of(form["model"], form["client"]), form["text"])
    return _client_path(form), "noted"


def _work_on(d: Dashboard, operations: Operations, who: Actor, form: Form) -> tuple[str, str]:
    act = form["act"]
    if d.reader.of(who.tenant).alert(form["alert"]) is None:
        raise Missing("no such alert")
    if act == "take":
        operations.work_on(who, form["alert"], assignee=assignee_of(who.name))
    elif act in ("closed", "open"):
        operations.work_on(who, form["alert"], state="closed" if act == "closed" else "open")
    else:
        raise WrongUse("act: take, closed or open")
    return "/alerts", "worked"


def _login(d: Dashboard, operations: Operations, request: Request, form: Form) -> Response:
    visitor = d.visitor(request)
    if not _trusted(d, request, form, visitor):
        return _forbidden(d, request, visitor, "This form is invalid or too old. Reload the page and try again.")
    who = d.auth.keys.check(form.get("key", "").strip())
    if who is None or who.role not in ROLES:
        return d.sent_to(request, "/login?said=wrong-key")
    key_id = who.id.removeprefix("key:")
    session = d.sessions.open(key_id, int(d.now_s()))
    known = Visitor(who.name, who.role, who.tenant, session)
    operations.record(_actor(request, known), "dashboard.login", f"key:{key_id}")
    return d.sent_to(request, local_path(form.get("next", "/")), session)


def _logout(d: Dashboard, operations: Operations, request: Request, form: Form) -> Response:
    visitor = d.visitor(request)
    if not _trusted(d, request, form, visitor):
        return _forbidden(d, request, visitor, "This form is invalid or too old.")
    if visitor.signed_in:
        d.sessions.end(visitor.session)
        try:
            operations.end_session(_actor(request, visitor), mark_of(visitor.session), visitor.session.ends_s)
        except Unavailable as error:
            log.warning("a sign-out is known to this service only", extra={"why": str(error)})
    answer = d.sent_to(request, "/login?said=signed-out")
    answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return answer


def _trusted(d: Dashboard, request: Request, form: Form, visitor: Visitor) -> bool:
    headers = request.headers
    here = same_origin(headers.get("origin"), headers.get("sec-fetch-site"), headers.get("host", ""))
    kept = d.sessions.read(request.cookies.get(COOKIE), int(d.now_s()))
    return here and kept is not None and kept == visitor.session and d.sessions.token_fits(kept, form.get("csrf", ""))


def _forbidden(d: Dashboard, request: Request, visitor: Visitor, words: str) -> Response:
    return d.problem(request, visitor, 403, "Not done", words)


def _actor(request: Request, visitor: Visitor) -> Actor:
    ip = request.client.host if request.client else ""
    return Actor(visitor.name, visitor.role, visitor.tenant, ip, uuid.uuid4().hex)


def _subject(d: Dashboard, who: Actor, form: Form) -> Subject:
    """The client of a form, with the id as the store has it. Raises Missing."""
    found = d.reader.of(who.tenant).client(form["model"], form["client"])
    if found is None:
        raise Missing("no such client")
    return Subject(found.client.client_key, found.client.model_id, found.client.client_id)


def _client_path(form: Form) -> str:
    return "/client?" + urlencode({"client": form["client"], "model": form["model"]}, errors="surrogatepass")


def _campaign_path(form: Form) -> str:
    return "/campaign?" + urlencode({"id": form["campaign"]}, errors="surrogatepass")


def _back(form: Form) -> str:
    if "campaign" in form:
        return _campaign_path(form)
    return _client_path(form) if "client" in form and "model" in form and "kind" not in form else "/decisions"


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise WrongUse("ttl_s: it must be a number of seconds")
    return int(text)
