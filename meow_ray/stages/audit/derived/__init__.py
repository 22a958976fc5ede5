"""Attacks that derive a model from the weights and ask it: quantised, pruned, taught again."""
