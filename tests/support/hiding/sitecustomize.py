"""Hides packages from every Python process that has this folder on its path.

The environment variable HIDDEN_PACKAGES names them, with commas.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

HIDDEN = frozenset(os.environ.get("HIDDEN_PACKAGES", "").split(","))


class Hiding(PathFinder):
    """Finds no module of a hidden package, as if it were not installed."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns None for a hidden package; Python then raises its usual error."""
        if name.partition(".")[0] in HIDDEN:
            return None
        return super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
