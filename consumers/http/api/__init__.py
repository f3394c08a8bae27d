"""The HTTP API: one file for each resource, with its routes, parameters and answers.

Who may use a route is in `http.access`, what it reads in `readers.queries`, what it changes in `operators.operate`.

Rules:

* A route parses, asks one thing of the layer below, and answers a typed value. Nothing is decided here.
* Everything is read for the caller's tenant; what belongs to another looks like what isn't there.
* A client is named by its id or by its `client_key`, the keyed hash that every answer carries: put that into addresses.
* A page holds at most 1,000 rows. Where the list is an object, `next` is the cursor of the next page; where it is an array, the
  header ``Link`` names the next page (RFC 8288).
* Changes take an ``Idempotency-Key``: the same key, the same answer, one effect, for a day.

Files: `application` puts the resources together; `parameters` has what several routes take; `context` what they stand on.
"""
