"""Enforcement: who is restricted, in the memory of the process that answers gateways.

Rules:

* An answer never waits for the store: one thread follows it (`refresher`), requests read dictionaries (`restrictions`).
* The store away, slow or paused: the last picture is answered from, as long as its entries last.
* When too many are newly restricted at once, nothing newly detected is enforced until an operator says so (`storm`).
* Nothing here decides about a client.
"""
