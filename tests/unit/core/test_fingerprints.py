"""Fingerprints of stages: what they depend on, and their differences in words."""

from typing import Any

import pytest

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.differences import differences
from tests.support.stages import DATA, make_stage, state


def test_ingredients_are_name_version_schema_spec_and_digests(config: Config):
    assert make_stage().ingredients(config, {"data": "d"}) == {
        "stage": "ingest",
        "version": 1,
        "schema": {
            "fact_id": "string",
            "split": "string",
            "question": "string",
            "answer": "string",
        },
        "spec": {
            "ingest": {
                "question_columns": ["question"],
                "answer_columns": ["answer", "undesired_answer"],
                "encoding": None,
                "on_reject": "fail",
            },
            "target.max_model_len": None,
        },
        "inputs": {"data": "d"},
    }


def test_a_stage_without_a_table_has_no_schema_among_its_ingredients(config: Config):
    page = make_stage(artifact="report", schema=None, key=())
    assert page.ingredients(config, {"data": "d"})["schema"] is None


def test_a_fingerprint_is_the_digest_of_the_ingredients(config: Config):
    ingredients = make_stage().ingredients(config, {"data": DATA.digest})
    assert state(make_stage(), config).fingerprint == storage.json_digest(ingredients)


@pytest.mark.parametrize(
    "change", [{"name": "other"}, {"version": 2}, {"sections": ("ingest",)}, {"schema": None}]
)
def test_a_change_of_the_stage_changes_its_fingerprint(config: Config, change: dict[str, Any]):
    changed = make_stage(**change)
    assert state(changed, config).fingerprint != state(make_stage(), config).fingerprint


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"version": 1}, {"version": 2}, ["code version: 1 → 2"]),
        (
            {"spec": {"select": {"top_k": 3}}},
            {"spec": {"select": {"top_k": 2}}},
            ["select.top_k: 3 → 2"],
        ),
        ({"inputs": {"facts": "x"}}, {"inputs": {"facts": "y"}}, ["input facts changed"]),
        ({"schema": {"a": "string"}}, {"schema": {"a": "int32"}}, ["schema changed"]),
        ({"spec": {"memo": {"stride": 5}}}, {"spec": {"memo": {}}}, ["memo.stride: 5 → None"]),
        (
            {"spec": {"target.template": "raw"}},
            {"spec": {"target.template": "chat"}},
            ["target.template: 'raw' → 'chat'"],
        ),
        ({"version": 1}, {"version": 1}, []),
    ],
)
def test_differences_are_described_in_words(
    old: dict[str, Any], new: dict[str, Any], expected: list[str]
):
    assert differences(old, new) == expected
