"""The application: every resource of the API, its problems, its OpenAPI document, and the pages of the dashboard.

Rules: `build` fails for a route that is not in the table of access (`http.access`), so that none is open by accident.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.routing import BaseRoute

from consumers.http import problems
from consumers.http.access import methods_by_path
from consumers.http.api.alerts import alert_routes
from consumers.http.api.allowlist import allowlist_routes
from consumers.http.api.audit import audit_routes
from consumers.http.api.context import Api
from consumers.http.api.decisions import decision_routes
from consumers.http.api.indicators import indicator_routes
from consumers.http.api.keys import key_routes
from consumers.http.api.models import model_routes
from consumers.http.api.queries import query_routes
from consumers.http.api.references import reference_routes
from consumers.http.api.restrictions import restriction_routes
from consumers.http.api.schema_holds import schema_hold_routes
from consumers.http.routes import complete, document

ELSEWHERE = frozenset({("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"), ("ANY", "/v1/authz")})
"""Rows whose paths are answered before the API: see `http.middleware`."""

DESCRIPTION = "Clients whose prediction queries look like model extraction: scores, evidence, decisions."


def build(api: Api, pages: Sequence[BaseRoute] = ()) -> FastAPI:
    """The application, with the dashboard's pages. Raises ValueError when a route is not in the table of access."""
    version = importlib.metadata.version("querywarden")
    app = FastAPI(
        title="QueryWarden",
        version=version,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
    )
    problems.install(app, methods_by_path())
    model_routes(app, api)
    alert_routes(app, api)
    restriction_routes(app, api.feed)
    reference_routes(app, api.read)
    decision_routes(app, api)
    allowlist_routes(app, api)
    schema_hold_routes(app, api.operations)
    indicator_routes(app, api.operations)
    key_routes(app, api)
    audit_routes(app, api)
    query_routes(app, api)
    document(app, DESCRIPTION)
    complete(app, ELSEWHERE)
    app.router.routes.extend(pages)  # they ask for a session themselves
    return app
