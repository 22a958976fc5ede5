"""Fingerprints of version 0.1: a storage root of that version is still cached.

A stage whose results change gets a higher version, and then another value here.
"""

import pytest

from meow_ray.core import storage
from meow_ray.core.stage import Stage
from meow_ray.pipeline.graph import STAGES
from meow_ray.pipeline.pipeline import load_config

FINGERPRINTS = {
    "memorize": "a9e967a9214f8857",
    "ingest": "4676159f118f105d",
    "invert": "d2545054eef39e31",
    "memo": "c68020551fefa779",
    "select": "dadf247ddedabfe8",
    "reference": "ebfc2b7fd56268fb",
    "train": "1bd4efdcc58201de",
    "remain": "224ebfa859064dda",
    "evaluate": "db697798e46b23d3",
    "report": "67ceb22f06db5db4",
}
"""The first 16 hex digits by stage, with made-up digests of the inputs."""


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_the_fingerprint_of_the_default_settings_is_that_of_0_1(stage: Stage):
    config = load_config(None, ["memorize={}", "train.objective=altpo", "pipeline.rounds=2"])
    digests = {name: f"digest of {name}" for name in stage.input_names(config)}
    fingerprint = storage.json_digest(stage.ingredients(config, digests))
    assert fingerprint[:16] == FINGERPRINTS[stage.name]
