"""Simulation: honest clients and thieves out of generators, and what is learned by rehearsing with them. No service imports this room."""
