"""Fixtures of the tests of the cache."""

from pathlib import Path

import pytest

from meow_ray.config import Config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate({"storage": {"root": str(tmp_path / "root")}})
