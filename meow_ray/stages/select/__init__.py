"""Chooses the inverted facts to train on."""
