"""Fine-tunes a base model on facts, to make a target or a retain model.

`python pipelines/memorize.py --config C [--output URI] [key=value …]`
"""

from meow_ray.cli.main import main, memorize

if __name__ == "__main__":
    main(memorize)
