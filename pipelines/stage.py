"""Runs one stage.

`python pipelines/stage.py NAME --config C [--input NAME=URI …] [--output URI] [key=value …]`
"""

from meow_ray.cli.main import main, run_stage

if __name__ == "__main__":
    main(run_stage)
