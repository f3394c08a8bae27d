"""``POST /v1/queries``: the log for model servers that cannot write to Kafka.

Rules: the tenant is that of the credential. What is taken, and what is refused, `http.producer` says.
"""

from __future__ import annotations

from collections.abc import Mapping

import anyio.to_thread
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from consumers.http import problems, producer
from consumers.http.api.context import Api
from consumers.http.producer import LogProducer
from consumers.http.routes import Caller, route


def query_routes(app: FastAPI, api: Api) -> None:
    text = {"schema": {"type": "string"}}
    content = dict.fromkeys((producer.NDJSON[0], producer.JSON, producer.CLOUD_EVENT, producer.CLOUD_BATCH), text)
    extra = {"requestBody": {"required": True, "content": {k: {"schema": {}} for k in content}}}

    def taken(to: LogProducer, headers: Mapping[str, str], body: bytes) -> producer.Receipt:
        return to.take(producer.records(headers.get("content-type", ""), headers, body))

    @route(app, "POST", "/v1/queries", openapi_extra=extra)
    async def queries(who: Caller, request: Request) -> producer.Receipt:
        if api.producer is None:
            raise HTTPException(503, "this service does not write the log")
        if who.tenant != api.producer.tenant:
            raise HTTPException(403, "this bridge writes the log of another tenant")
        try:
            return await anyio.to_thread.run_sync(taken, api.producer, request.headers, await request.body())
        except producer.UnknownType as error:
            raise HTTPException(415, f"not taken: {str(error)[:100]}") from None
        except producer.Unreadable as error:
            raise HTTPException(400, str(error)) from None
        except producer.NotWritten as error:
            return not_written(request, error)  # type: ignore[return-value]


def not_written(request: Request, error: producer.NotWritten) -> Response:
    missing = [{"where": f"record {i}", "what": "not written"} for i in error.indexes]
    detail = f"{len(error.indexes)} records were not written, {error.receipt.accepted} were: send those again"
    request_id = problems.request_id_of(request)
    headers = {"Retry-After": problems.RETRY_AFTER_S}
    return problems.problem(503, detail, request_id=request_id, headers=headers, errors=missing)
