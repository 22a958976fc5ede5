"""Makes facts that no model has seen, in the form of the facts to forget."""
