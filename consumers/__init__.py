"""The shell: all code that touches the world (log, store, network, files, clock) around the pure `detector`.

Rules:
* The shell may import ``detector``, never the reverse.
* Only ``consumers.commands`` and ``consumers.wiring`` read settings, and only ``consumers.wiring`` names adapters.
"""
