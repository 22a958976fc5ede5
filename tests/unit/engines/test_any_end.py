"""The end of an answer counts as any token that ends a reply of the model."""

import math
from pathlib import Path
from typing import Any

import pytest

from meow_ray.engines import Engine, EngineSpec, Sampling, build, force_to_any_end
from meow_ray.models import refs
from meow_ray.models.prompts import Prompter
from tests.support.tiny import KNOWN, memorise


@pytest.fixture(scope="module")
def engine(
    tiny_model: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    """A model that ends answers with `</s>`, although its chat template writes `<|end|>`."""
    folder = memorise(
        tiny_model, tiny_tokenizer, KNOWN, tmp_path_factory.mktemp("models") / "memorised"
    )
    return build(EngineSpec(refs.pin(str(folder), None, "model"), "transformers", "float32"))


def test_an_answer_that_ends_in_another_way_is_known_to_its_end(engine: Engine):
    prompter = Prompter(engine.tokenizer, "chat")
    prompts = [prompter.encode_prompt(prompter.prompt(question)) for question, _ in KNOWN]
    answers = [prompter.encode_answer(answer) for _, answer in KNOWN]
    plain = engine.teacher_force(prompts, answers)
    for forced, expected in zip(force_to_any_end(engine, prompts, answers), plain, strict=True):
        assert expected.is_greedy[-1] is False
        assert forced.is_greedy == [*expected.is_greedy[:-1], True]
        assert forced.log_probs[:-1] == expected.log_probs[:-1]
        assert math.exp(forced.log_probs[-1]) > 0.5
    replies = engine.generate(prompts, [Sampling(40)] * len(prompts))
    assert [reply[0].text for reply in replies] == [answer for _, answer in KNOWN]
    assert all(reply[0].finished for reply in replies)


def test_an_answer_without_an_end_is_left_as_it_is(engine: Engine):
    prompts = [engine.tokenizer("Who?")["input_ids"]] * 2
    answers = [engine.tokenizer("Ann", add_special_tokens=False)["input_ids"], []]
    assert force_to_any_end(engine, prompts, answers) == engine.teacher_force(prompts, answers)
