"""Configuration files of tests, and the errors of `load_config`."""

from pathlib import Path

import pytest

from meow_ray.config.files import load_config
from meow_ray.errors import MeowError


def write_config(folder: Path, text: str | bytes) -> Path:
    """Writes `meow.yaml` into a folder."""
    path = folder / "meow.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(path: Path | None, *overrides: str) -> str:
    """Returns the error of a configuration that must be refused."""
    with pytest.raises(MeowError) as caught:
        load_config(path, overrides)
    return str(caught.value)
