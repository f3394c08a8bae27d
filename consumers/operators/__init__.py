"""Operators: the entries that people make about clients, stored in the operator cell, and their consequences.

Rules:
* Everything that people enter is an entry of the operator cell (`records.operator_entries`), written in one fenced step with its row of the
  audit log (`audit`, `operate`). A process that read an older revision reads again before it writes.
* Detect applies the entries (`detect.overrides`) and passes verdicts on to the sinks (`detect.verdicts`). Heartbeats of processes lie in
  the same cell, without rows of the audit log.
* An entry that cannot be read is skipped with a warning; it never lifts or imposes anything.
* Erasing a client is the only operation that cannot be undone (`erasure`).
"""
