"""Estimates of a run's memory, work and time, made before anything runs."""
