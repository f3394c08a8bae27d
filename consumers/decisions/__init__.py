"""Decisions: what is said of a client, and on what. `detect` is the process that says it.

Rules of this room

* A decision and an alert are values (`findings`); client ids in them are sealed before anything is stored.
* What is computed again comes out the same: spans merge in one order (`horizon`), ids are hashes, times come in as `now_s`.
* A campaign is a merged profile, assessed like a client (`campaigns`); the breaker counts, and never lifts anything (`breaker`).
* Nothing here knows operators, gateways or readers: what people said is honoured by who calls.
"""
