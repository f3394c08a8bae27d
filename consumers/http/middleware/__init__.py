"""Middleware: the steps that every request passes before the API, one file each, outermost first. Plain ASGI.

    lifetime      the service's end lets go of who follows events; a body that nobody reads is bounded (`unread_bodies`)
    routing       gateways' questions go straight to their own application
    headers       the request's id; security headers on every answer
    probes        /healthz, /readyz, /metrics
    observation   every answer is counted by route and status, with its time; a failure that nobody foresaw is answered with a problem
    limits        the caller's credential, its token bucket, its address, its body

Rules:

* Neither gateways' questions nor probes wait for anything else, and they take no tokens.
* A middleware knows the application behind it and nothing of those before it. What it learns of a request goes into the scope's state:
  ``request_id``, ``credential``.
* No access log: an address may hold a client's id.

`stack` puts them in their order.
"""
