"""Records: the data that processes leave for each other in the store. Read this room before you change a stored field.

| file | what it describes | written by | read by |
|---|---|---|---|
| `spans` | the windows of a client's profile, and which of them count | ingest | detect, recalibrate, readers |
| `links`, `sample_events`, `refusals`, `usage` | fields ``l``, ``x``, ``r``, ``u`` of a profile | ingest | detect |
| `ledger` | the counters of a profile cell, and the overflow client | ingest | recalibrate, replay |
| `schema_watch` | columns that many clients begin to send otherwise | ingest | detect |
| `client` | the record of one client: all of the fields above, read and put together | – | detect |
| `decision` | a decision row, and the key of a campaign | detect | readers, serve, commands |
| `alert` | a finding as it is told: the body of an alert | detect | sinks, readers, commands |
| `operator_entries`, `operator_cell` | what operators decide, and how it is written | serve, commands | detect, serve, commands |
| `schema_holds` | columns whose misfits wait for an operator | detect, serve, commands | detect, serve, commands |
| `breaker_entries` | when the breaker opened, and when somebody closed it | detect, serve | detect, serve |
| `indicators` | what peers reported, and which clients match it | commands | detect, readers |
| `heartbeat` | what each process says of itself every 15 s | ingest, detect, serve | serve, commands |

Rules:

* A finding has three shapes. **Stored**: `decision.StoredDecision`, with its alert's body. **Public**: `readers.models`, made by
  `readers.public`. **Sink**: `alerts.finding`. Each is made from the one before it in one place; nobody else copies its fields.
* A file holds the shape of a record, its codec, and how several of them are added up. Two hold a little more, because several
  processes share it: `heartbeat` the thread that writes heartbeats, `breaker` the pure count of new restrictions.
* Client ids are sealed before anything is stored (`sealing`).
* A record that cannot be read is set aside with a warning (`damaged.readable`); it never lifts or imposes anything.
"""
