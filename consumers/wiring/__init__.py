"""Wiring: names adapters and puts the parts of each process together, as the settings say.

Rules:

* Nothing is decided here. The scheme of an address picks an adapter, settings become its arguments, an exit stack closes what was opened.
* An adapter, and a process that a command does not run, is imported when it is asked for: a replay needs no Kafka, a service no SQLite.
  This room is the only place of such imports (tests/test_house.py), apart from the table of commands in `cli.py`.
* Processes and commands get opened adapters; they never see an address or a password.

Files: `adapters` opens log and store; `sinks` has the table of alert sinks; `telemetry` starts heartbeats, metrics and traces;
`operators` builds what operators' commands work on; `credentials` builds what callers of the HTTP service are checked with; `watermark`
records the registry of canaries in the audit log; `serve` puts the HTTP service together; `processes` runs ingest, detect and all three.
"""
