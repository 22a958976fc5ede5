"""The stage `invert`: a language model writes inverted facts."""
