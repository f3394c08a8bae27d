"""Simulation: generates honest clients and thieves, and rehearses thefts to learn how exposure grows. No service imports this room.

Rules: what a client or a thief sends depends on the `rng` that the caller gives, and on nothing else.
"""
