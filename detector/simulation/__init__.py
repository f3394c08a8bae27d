"""Simulation: generates honest clients and thieves, and rehearses thefts to learn how exposure grows. No service imports this room."""
