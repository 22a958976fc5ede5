"""The stage `audit`: attacks on the tuned model, with controls."""
