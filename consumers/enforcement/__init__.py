"""Enforcement: the restrictions in the memory of the process that answers gateways.

Rules:
* An answer never waits for the store: one thread follows the store (`refresher`), requests read dictionaries (`restrictions`).
* While the store is away, slow or paused, answers come from the last state that was read, as long as its entries last.
"""
