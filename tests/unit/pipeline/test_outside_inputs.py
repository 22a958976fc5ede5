"""Inputs from outside the pipeline: missing settings, and what the fingerprints depend on."""

import re
from pathlib import Path

import pytest

from meow_ray.errors import MeowError
from meow_ray.pipeline.pipeline import Pipeline, load_config
from tests.support.world import World


def digest(name: str, *overrides: str) -> str:
    artifact = Pipeline(load_config(None, overrides)).artifact(name)
    assert artifact is not None
    return artifact.digest


def test_missing_settings_are_named(world: World):
    with pytest.raises(MeowError, match=r"`ingest\.forget` is not set"):
        Pipeline(load_config(None, [f"storage.root={world.root}"])).states()
    world.data.unlink()
    with pytest.raises(MeowError, match=r"facts\.jsonl: there is no such file"):
        world.states()


def test_a_target_is_memorised_or_configured_but_not_both(world: World):
    message = "`target.model` and `memorize` both name the target. Remove one of them."
    with pytest.raises(MeowError, match=f"^{re.escape(message)}$"):
        world.pipeline("target.model=x/y", "memorize.model=x/z")


def test_an_objective_is_identified_by_the_resolved_settings():
    npo, beta = "train.objective=npo", "train.settings={beta: 0.2}"
    defaults = ("train.settings={beta: 0.1}", "train.retain_weight=0")
    assert digest("objective", npo) == digest("objective", npo, *defaults)
    assert digest("objective", npo) != digest("objective", npo, beta)
    assert digest("roles", npo) == digest("roles", npo, beta), "scored once for all values of beta"


def test_refusals_belong_to_an_objective_only_if_it_reads_them():
    refusals = "train.idk_answers=[No.]"
    npo, dpo = "train.objective=npo", "train.objective=dpo"
    assert digest("objective", npo) == digest("objective", npo, refusals)
    assert digest("objective", dpo) != digest("objective", dpo, refusals)


def test_a_deepspeed_file_is_identified_by_its_content(tmp_path: Path):
    file = tmp_path / "ds.json"

    def digest_of(text: str) -> str:
        file.write_text(text)
        return digest("train_deepspeed", f"train.deepspeed={file}")

    assert digest_of('{"a": 1, "b": 2}') == digest_of('{"b": 2,   "a": 1}')
    assert digest_of('{"a": 1, "b": 2}') != digest_of('{"a": 1}')
    with pytest.raises(MeowError, match=r"ds\.json is no JSON"):
        digest_of("{")
