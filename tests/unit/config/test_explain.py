"""The list of all keys that `meow config --explain` shows."""

import pytest
import yaml

from meow_ray.config import Config
from meow_ray.config.files import explain

ROWS = list(explain())
BY_KEY = {row[0]: row[1:4] for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_key_has_type_default_and_meaning(row: tuple[str, str, str, str, str]):
    _, kind, default, _, meaning = row
    assert kind
    assert default
    assert meaning
    assert "\n" not in meaning


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("select.top_k", ("int > 0", "3", "answers")),
        ("storage.root", ("str", '"runs/meow"', "")),
        ("report.show_text", ("bool", "false", "")),
        ("target.max_model_len", ("int > 0 | null", "null", "tokens")),
        ("invert.seed", ("int >= 0 | null", "0", "")),
        ("invert.top_p", ("float > 0 and <= 1", "0.95", "")),
        ("memo.max_new_tokens", ("int > 0 | label", "200", "tokens")),
        ("memo.comparators", ("list[ma | el | em | es | pz]", "[]", "")),
        ("ingest.forget", ("str | {path, subset, split, revision} | null", "null", "")),
        ("train.settings", ("dict[str, int | float]", "{}", "")),
        ("resources.memo.num_actors", ("int > 0 | [int > 0, int > 0]", "1", "actors")),
        ("resources.autoscaling", ("list[{cpus, gpus, max_nodes, labels}]", "[]", "")),
    ],
)
def test_type_bounds_default_and_unit_are_shown(key: str, expected: tuple[str, str, str]):
    assert BY_KEY[key] == expected


def test_defaults_are_those_of_an_empty_configuration():
    for key, (_, default, _) in BY_KEY.items():
        value = Config().model_dump(mode="json")
        for name in key.split("."):
            value = value[name] if value is not None else None
        if value is not None:
            assert yaml.safe_load(default) == value or float(default) == value, key
