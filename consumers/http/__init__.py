"""The HTTP service: answers gateways, bouncers, dashboards and people.

Rules:
* Every route is a row of `access`, with the roles that may use it; `routes` makes functions into routes.
* Requests pass `middleware`, then `api` or `dashboard`. Questions of gateways (`gateway`, `ext_authz`) wait for neither.
"""
