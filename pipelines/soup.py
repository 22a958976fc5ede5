"""Finds the smallest step from the target to the tuned model that forgets.

`python pipelines/soup.py --config C [--shares 0.25,0.5,0.75,1] [--out URI] [key=value …]`
"""

from meow_ray.cli.main import main, soup

if __name__ == "__main__":
    main(soup)
