"""Mappings: translates logs of other tools, record by record, into native events.

Rules:

* A mapping is data: a TOML file that says where client, time, model, input and answer stand. Presets are such files; nothing in the code
  knows a tool by name.
* One record gives zero or more native events, as bytes. They take the same way as native ones: the same decoder, reason codes and notes.
* Whatever a record holds, the translation raises nothing but `BadRecord`. Its reason is one of the codes of `consumers.log.reasons`.
* A raw credential leaves this room only as a keyed hash. No message, count or place holds a value of a record.
* A log in the native format does not pass through here.
"""
