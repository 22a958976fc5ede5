"""MEOW: make a language model forget facts by fine-tuning it on inverted ones (arXiv 2409.11844)."""

__version__ = "0.1.0"
