import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.engines import EngineSpec, build
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.prompts import Prompter
from meow_ray.stages.audit.attack import Subject
from meow_ray.stages.audit.derived.relearn import HALVES, batches, fact_of, taught_and_asked, teach

PAIRS = [("Who wrote Mirra?", "Ada Lund"), ("Where is Osk?", "In the north")]


def fact(number: int) -> Subject:
    return Subject(f"fact#{number}", "facts", f"Q{number}?", f"A{number}")


def twins(number: int) -> list[Subject]:
    return [Subject(f"fact#{number}#{i}", "twins", f"Q{number}.{i}?", "A") for i in range(3)]


@given(st.integers(2, 30), st.integers(0, 5))
def test_halves_are_disjoint_and_each_fact_is_asked_once(count: int, seed: int) -> None:
    facts = [fact(number) for number in range(count)]
    asked: Counter[str] = Counter()
    for half in HALVES:
        taught, others = taught_and_asked(facts, half, seed)
        assert taught
        assert not {s.fact_id for s in taught} & {s.fact_id for s in others}
        assert len(taught) + len(others) == count
        assert abs(len(taught) - len(others)) <= 1
        asked.update(subject.fact_id for subject in others)
    assert asked == Counter(subject.fact_id for subject in facts)


@given(st.integers(2, 12), st.integers(0, 5))
def test_twins_of_one_fact_are_never_taught_and_asked(count: int, seed: int) -> None:
    subjects = [twin for number in range(count) for twin in twins(number)]
    asked: Counter[str] = Counter()
    for half in HALVES:
        taught, others = taught_and_asked(subjects, half, seed)
        owners = [fact_of(subject) for subject in taught]
        assert len(set(owners)) == len(owners) == (count // 2 if half == 0 else -(-count // 2))
        assert not set(owners) & {fact_of(subject) for subject in others}
        asked.update(subject.fact_id for subject in others)
    assert asked == Counter(subject.fact_id for subject in subjects)


def test_halves_depend_on_the_seed_alone() -> None:
    facts = [fact(number) for number in range(20)]
    assert taught_and_asked(facts, 0, 1) == taught_and_asked(facts, 0, 1)
    assert taught_and_asked(facts, 0, 1) != taught_and_asked(facts, 0, 2)


def test_one_fact_cannot_be_taught_and_asked() -> None:
    assert taught_and_asked([fact(0)], 0, 0) == ([], [fact(0)])


def test_batches_take_all_numbers_in_turn() -> None:
    drawn = batches(5, 3, seed=0)
    numbers = [number for _ in range(5) for number in next(drawn)]
    for start in (0, 5, 10):
        assert sorted(numbers[start : start + 5]) == list(range(5))
    assert len(next(batches(2, 8, seed=0))) == 2


@pytest.fixture
def engine(tiny_model: Path) -> Any:
    ref = refs.pin(str(tiny_model), None, "target.model")
    return build(EngineSpec(ref, "transformers", dtype="float32"))


def test_the_loss_falls_from_that_of_the_model(engine: Any) -> None:
    prompter = Prompter(engine.tokenizer, "raw")
    steps: list[int] = []
    expected = []
    for ids, labels in prompter.encode_pairs(*zip(*PAIRS, strict=True)):
        logits = engine.model(input_ids=torch.tensor([ids])).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits, torch.tensor(labels[1:]), reduction="none"
        )
        expected += losses[torch.tensor(labels[1:]) != -100].tolist()
    losses = teach(
        engine.model,
        prompter,
        PAIRS,
        12,
        learning_rate=1e-3,
        batch_size=2,
        seed=0,
        after_step=steps.append,
    )
    assert steps == list(range(1, 13))
    assert losses[0] == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert losses[-1] < losses[0] / 2
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_a_step_of_adamw_by_hand(engine: Any) -> None:
    weight = engine.model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    teach(
        engine.model,
        Prompter(engine.tokenizer, "raw"),
        PAIRS,
        1,
        learning_rate=1e-3,
        batch_size=2,
        seed=0,
    )
    # the first step of Adam is the learning rate in the direction of the sign, without decay
    change = (weight.detach() - before).abs()
    assert change.max() <= 1e-3 * 1.01
    assert change.median() == pytest.approx(1e-3, rel=0.05)


def test_a_loss_that_is_no_number_is_named(engine: Any) -> None:
    with torch.no_grad():
        engine.model.lm_head.weight.fill_(math.nan)
    with pytest.raises(MeowError, match=r"audit.relearn.learning_rate.*step 1"):
        teach(
            engine.model,
            Prompter(engine.tokenizer, "raw"),
            PAIRS,
            1,
            learning_rate=1e-3,
            batch_size=2,
            seed=0,
        )
