"""Measures forgetting and utility, before and after."""
