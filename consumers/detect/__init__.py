"""Detect: the process that assesses the clients that changed, and records decisions and alerts.

Rules:
* `loop` does the I/O. `step` is the pure half: changed clients come in, rows and alerts go out. Times come in as `now_s`.
* A repeated computation gives the same result: spans are merged in one order, and ids are hashes.
* A campaign is a merged profile that is assessed like a client (`campaigns`).
* Operators' decisions are applied last (`overrides`). Their verdicts are passed on to the sinks (`verdicts`).
* Ingest and detect meet only in the store. `records` describes what they leave there.
"""
