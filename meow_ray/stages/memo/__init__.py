"""Measures with MEMO how well the target has memorised each answer."""
