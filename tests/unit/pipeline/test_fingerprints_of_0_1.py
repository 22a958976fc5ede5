"""Fingerprints of version 0.1: a storage root of that version is still cached.

A stage whose results change gets a higher version, and then another value here.
"""

import pytest

from meow_ray.core import storage
from meow_ray.core.stage import Stage
from meow_ray.pipeline.graph import STAGES
from meow_ray.pipeline.pipeline import load_config

FINGERPRINTS = {
    "memorize": "9dd1b58f987e7eaa",
    "ingest": "bcfcebb8c1497a6d",
    "invert": "b274e7d33a3dc7f8",
    "memo": "c68020551fefa779",
    "select": "c91fa03d405557b1",
    "reference": "ebfc2b7fd56268fb",
    "train": "1bd4efdcc58201de",
    "remain": "224ebfa859064dda",
    "evaluate": "db90124ffd2b90bf",
    "report": "5342e469a8cf58c4",
}
"""The first 16 hex digits by stage, with made-up digests of the inputs."""


SINCE_0_1 = [stage for stage in STAGES if stage.name in FINGERPRINTS]
"""The stages of version 0.1."""


@pytest.mark.parametrize("stage", SINCE_0_1, ids=lambda stage: stage.name)
def test_the_fingerprint_of_the_default_settings_is_that_of_0_1(stage: Stage):
    config = load_config(None, ["memorize={}", "train.objective=altpo", "pipeline.rounds=2"])
    digests = {name: f"digest of {name}" for name in stage.input_names(config)}
    fingerprint = storage.json_digest(stage.ingredients(config, digests))
    assert fingerprint[:16] == FINGERPRINTS[stage.name]
