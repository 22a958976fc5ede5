"""Measures what one model knows, without unlearning.

`python pipelines/evaluate.py --config C [--input NAME=URI …] [key=value …]`
"""

from meow_ray.cli.main import evaluate, main

if __name__ == "__main__":
    main(evaluate)
