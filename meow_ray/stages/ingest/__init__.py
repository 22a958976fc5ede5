"""Reads and checks the user's facts."""
