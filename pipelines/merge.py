"""Merges the adapters of several requests into one model.

`python pipelines/merge.py RUN RUN … --out URI [--method gram|linear|ties] [--config C]`
"""

from meow_ray.cli.main import main, merge

if __name__ == "__main__":
    main(merge)
