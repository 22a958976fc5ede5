"""Writes inverted facts with an offline language model."""
