"""A chat template that writes the date: the prompt's text is part of the fingerprints."""

import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from meow_ray.config import Config
from meow_ray.core.manifest import Artifact
from meow_ray.core.stage import Stage, differences, state_of
from meow_ray.models import refs
from meow_ray.pipeline.graph import STAGES
from meow_ray.pipeline.pipeline import load_config
from tests.support.tiny import CHAT_TEMPLATE

DATED = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }} " + CHAT_TEMPLATE
EAST, WEST = "UTC-13", "UTC+12"
"""Time zones a day and an hour apart."""
MODELS = ("target", "base", "generator", "model")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets the time zone of this process."""

    def set_zone(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


def ingredients(stage: Stage, config: Config, folder: Path) -> dict[str, Any]:
    """Returns the ingredients of a stage whose models are in one folder."""
    ref = refs.ModelRef(str(folder), digest=str(folder))
    model = Artifact("model", ref.uri, ref.digest, value=ref)
    inputs = {
        name: model if name in MODELS else Artifact(name, "", f"digest of {name}")
        for name in stage.input_names(config)
    }
    return state_of(stage, config, inputs).ingredients


def changes(clock: Any, folder: Path, root: Path, *overrides: str) -> dict[str, list[str]]:
    """Returns, by stage, what differs a day later."""
    settings = ["memorize={}", "train.objective=npo", "pipeline.rounds=2", f"storage.root={root}"]
    config = load_config(None, [*settings, *overrides])
    changed = {}
    for stage in STAGES:
        clock(WEST)
        today = ingredients(stage, config, folder)
        clock(EAST)
        changed[stage.name] = differences(today, ingredients(stage, config, folder))
    return {name: found for name, found in changed.items() if found}


@pytest.fixture
def dated(tiny_tokenizer: Any, tmp_path: Path) -> Path:
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = DATED
    folder = tmp_path / "dated"
    tokenizer.save_pretrained(folder)
    return folder


def test_stages_whose_prompts_hold_the_date_are_stale_on_another_day(
    clock: Any, dated: Path, tmp_path: Path
):
    names = (
        "memorize",
        "invert",
        "paraphrases",
        "neighbours",
        "guesses",
        "reference",
        "fila",
        "train",
        "evaluate",
        "audit",
    )
    stale = {name: ["prompt text changed"] for name in names}
    assert changes(clock, dated, tmp_path) == stale
    through_template = changes(clock, dated, tmp_path, "memo.template=target")
    assert set(through_template) == {*stale, "memo", "remain"}


def test_a_date_that_is_given_does_not_change(clock: Any, dated: Path, tmp_path: Path):
    given = [
        f"{section}.template_variables.date_string=10 Apr 2025" for section in ("target", "invert")
    ]
    assert changes(clock, dated, tmp_path, *given) == {}
    assert set(changes(clock, dated, tmp_path, "target.template=raw")) == {
        "invert",
        "paraphrases",
        "guesses",
    }


def test_a_template_without_the_date_adds_nothing(
    clock: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def load(ref: refs.ModelRef) -> Any:
        raise AssertionError("no tokenizer is needed")

    monkeypatch.setattr(refs, "load_tokenizer", load)
    assert changes(clock, tiny_model, tmp_path) == {}
