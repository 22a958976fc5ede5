"""Estimates memory, work and time before anything runs."""
