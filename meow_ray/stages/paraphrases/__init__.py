"""Rewords the questions of the facts to forget, so that training sees several wordings."""
