"""Detect: the process that assesses the clients that changed, and records decisions and alerts.

Rules:

* `loop` does the I/O. `step` is the pure half: what changed comes in, rows and alerts go out; times come in as `now_s`.
* What is computed again comes out the same: spans merge in one order, ids are hashes.
* A campaign is a merged profile, assessed like a client (`campaigns`).
* What operators decided is applied last (`overrides`), and their verdicts are passed on to the sinks (`verdicts`).
* Ingest and detect meet in the store only: the shapes of what lies there are in `records`.
"""
