"""Renders the results for people."""
