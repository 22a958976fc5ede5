"""Asks the target about other entities, for a retain set that needs no data of the user."""
