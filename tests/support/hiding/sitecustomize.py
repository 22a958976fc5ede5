"""Hides packages from every Python process that has this folder on its path.

The environment variable HIDDEN_PACKAGES names them, with commas.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

HIDDEN = frozenset(os.environ.get("HIDDEN_PACKAGES", "").split(","))


class Hiding(MetaPathFinder):
    """Finds no module of a hidden package, as if it were not installed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        """Raises the error of a package that is not installed."""
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Hiding())
