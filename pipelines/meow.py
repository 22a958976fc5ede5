"""Runs the whole pipeline.

`ray job submit -- python pipelines/meow.py --config C [key=value …]`
"""

from meow_ray.cli.main import main, run

if __name__ == "__main__":
    main(run)
