"""Inputs from outside the pipeline: missing settings, and what the fingerprints depend on."""

import re
from pathlib import Path
from typing import Any

import pytest

from meow_ray.core import storage
from meow_ray.core.stage import Context, Stage
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


def test_a_model_that_is_not_configured_is_named():
    message = "`target.model` is not set. Name a model folder or a hub model."
    with pytest.raises(MeowError, match=f"^{re.escape(message)}$"):
        digest("target")
    assert digest("generator") == "none", "candidates may be given, and then nothing generates"


def test_a_target_may_be_the_storage_root_of_another_run(tmp_path: Path):
    run = tmp_path / "other"
    setting = f"target.model={run}"
    (run / "model").mkdir(parents=True)
    message = (
        f"`target.model`: the run at {run} has not finished its model. "
        "Finish that run, or name another model."
    )
    with pytest.raises(MeowError, match=f"^{re.escape(message)}$"):
        digest("target", setting)

    def export(context: Context) -> dict[str, Any]:
        storage.write_bytes(context.path("config.json"), b"{}")
        return {}

    other = Stage(name="train", artifact="model", version=1, sections=(), inputs=(), run=export)
    pipeline = Pipeline(load_config(None, [f"storage.root={run}"]), stages=[other])
    (state,) = pipeline.run([other], on_event=str)
    assert state.artifact is not None
    assert Pipeline(load_config(None, [setting])).artifact("target") == state.artifact


def test_a_missing_text_is_named_with_its_setting(tmp_path: Path):
    path = tmp_path / "absent.txt"
    message = f"`evaluate.text`: there is no such file or folder ({path}). Correct the path."
    with pytest.raises(MeowError, match=f"^{re.escape(message)}$"):
        digest("text", f"evaluate.text={path}")


def test_an_endpoint_is_identified_by_its_url_and_its_model():
    def digest_of(**settings: str) -> str:
        values = {"engine": "openai", "base_url": "http://a/v1", "model": "m"} | settings
        return digest("generator", *(f"invert.{key}={value}" for key, value in values.items()))

    assert digest_of() == digest_of(api_key_env="OTHER")
    assert digest_of() != digest_of(base_url="http://b/v1")
    assert digest_of() != digest_of(model="n")
    judge = {"judge": "endpoint", "judge_base_url": "http://j/v1", "judge_model": "k"}
    assert digest_of() != digest_of(**judge)
    assert digest_of(**judge) != digest_of(**judge | {"judge_model": "l"})


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
    with pytest.raises(MeowError, match=r"ds\.json is not valid JSON"):
        digest_of("{")
