"""Records: what processes leave for each other in the store. Read this room before changing a stored field.

| file | what it describes | written by | read by |
|---|---|---|---|
| `spans` | the windows of a client's profile, and which of them count | ingest | detect |
| `links`, `sample_events`, `refusals` | fields ``l``, ``x``, ``r`` of a profile | ingest | detect, readers |
| `ledger` | the counters of a profile cell | ingest | readers |
| `schema_watch` | columns that many clients begin to send otherwise | ingest | detect |
| `decision` | a decision row, an alert body, the key of a campaign | detect | serve, readers |
| `operator_entries`, `operator_cell` | what operators decide, and how it is written | serve, commands | detect, serve |
| `schema_holds`, `breaker`, `breaker_entries` | misfits that wait for an operator; the breaker | detect, serve | detect, serve |
| `heartbeat` | what each process says of itself every 15 s | all | serve |

Rules of this room

* Nothing here runs a process. A file holds the shape of a record, its codec, and how several of them are added up.
* Client ids are sealed before anything is stored.
* A record that cannot be read is passed over with a warning; it never lifts or imposes anything.
"""
