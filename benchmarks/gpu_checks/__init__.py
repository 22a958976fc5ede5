"""The checks of `python -m benchmarks.gpu`, one function each; `registry` has them in order."""
