"""What MEMO's steps ask of the engine: each distinct prompt once, and nothing that is known."""

import pytest

from meow_ray.config import Memo
from meow_ray.stages.memo.steps import SCORE_NAMES, MemoSteps
from tests.support.memo import (
    COMPARATORS,
    FACTS,
    MODES_AND_TEMPLATES,
    PlainModel,
    RecordingEngine,
    run_steps,
    steps_of,
)
from tests.support.tiny import KNOWN

Prompts = dict[tuple[int, ...], int]
"""Prompts, each with the largest number of tokens that a window needs after it."""

WITH_RANDOM_MODEL = pytest.mark.parametrize("model_folder", ["random"], indirect=True)
WITH_MEMORISED_MODEL = pytest.mark.parametrize("model_folder", ["memorised"], indirect=True)


def mismatch_prompts(plain: PlainModel, spec: Memo, question: str, text: str) -> Prompts:
    """Returns the beginnings of an answer after which the model leaves it, within a window."""
    prompts: Prompts = {}
    for prompt, _, label in plain.windows(spec, question, text):
        limit = plain.limit(spec, label)
        end = min(limit, len(label))
        at = 0
        while at < end and plain.generate([*prompt, *label[:at]], 1) == [label[at]]:
            at += 1
        beginning = (*prompt, *label[:at])
        if at < limit and (at < len(label) or plain.generate(beginning, 1)):
            prompts[beginning] = max(limit - at, prompts.get(beginning, 0))
    return prompts


@WITH_MEMORISED_MODEL
@pytest.mark.parametrize("limit", [4, 200, "label"])
@pytest.mark.parametrize(("mode", "template"), MODES_AND_TEMPLATES)
def test_a_memorised_answer_needs_no_generation(
    engine: RecordingEngine, mode: str, template: str, limit: int | str
):
    steps = steps_of(
        window="token", mode=mode, template=template, max_new_tokens=limit, comparators=COMPARATORS
    )
    table = run_steps(steps, engine, [(question, [answer]) for question, answer in KNOWN])
    assert engine.generated == []
    assert len(engine.forced) == len(KNOWN)
    assert table["generations"].to_pylist() == [0] * len(KNOWN)
    for (score,) in table["scores"].to_pylist():
        assert (score["ma"], score["es"]) == (1.0, 1.0)
        if limit != 4:  # 4 tokens can end within a word
            assert (score["memo"], score["cv"]) == (1.0, 0.0)


@pytest.mark.parametrize("limit", [4, "label"])
@pytest.mark.parametrize(("mode", "template"), MODES_AND_TEMPLATES)
def test_token_windows_generate_once_from_each_mismatch(
    engine: RecordingEngine, plain: PlainModel, mode: str, template: str, limit: int | str
):
    steps = steps_of(window="token", mode=mode, template=template, max_new_tokens=limit)
    generations = run_steps(steps, engine, FACTS)["generations"].to_pylist()
    for (question, texts), count in zip(FACTS, generations, strict=True):
        expected: Prompts = {}
        for text in texts:
            for beginning, tokens in mismatch_prompts(plain, steps.spec, question, text).items():
                expected[beginning] = max(tokens, expected.get(beginning, 0))
        assert count == len(expected)
        assert expected.items() <= set(engine.generated)
    assert len(engine.generated) == sum(generations)


@pytest.mark.parametrize("limit", [4, "label"])
@pytest.mark.parametrize(("mode", "template"), MODES_AND_TEMPLATES)
def test_character_windows_generate_once_from_a_prompt_that_several_answers_share(
    engine: RecordingEngine, plain: PlainModel, mode: str, template: str, limit: int | str
):
    steps = steps_of(window="character", mode=mode, template=template, max_new_tokens=limit)
    question = KNOWN[1][0]
    texts = ["In Mai 1954", "In Mai 1962, or later", "In June"]
    generations = run_steps(steps, engine, [(question, texts)])["generations"].to_pylist()
    expected: Prompts = {}
    cuts = [window for text in texts for window in plain.windows(steps.spec, question, text)]
    for prompt, _, label in cuts:
        key = tuple(prompt)
        expected[key] = max(plain.limit(steps.spec, label), expected.get(key, 0))
    assert sorted(engine.generated) == sorted(expected.items())
    assert generations == [len(expected)]
    assert len(expected) < len(cuts)


@pytest.mark.parametrize("window", ["character", "token"])
def test_prefix_windows_of_several_answers_share_their_generations(
    engine: RecordingEngine, window: str
):
    steps = steps_of(window=window, mode="prefix", max_new_tokens=3)
    question = "Who was it that said so?"
    for_one = run_steps(steps, engine, [(question, ["Ann"])])
    for_three = run_steps(steps, engine, [(question, ["Ann", "Bob", "Cem"])])
    generations = for_one["generations"].to_pylist()
    assert generations == for_three["generations"].to_pylist()
    assert generations != [0]


@pytest.mark.parametrize(
    ("comparators", "forced"), [((), 0), (("el",), 0), (("ma",), 6), (("es", "el"), 6)], ids=str
)
def test_character_windows_need_a_forced_pass_only_for_a_comparator(
    engine: RecordingEngine, comparators: tuple[str, ...], forced: int
):
    steps = steps_of(comparators=comparators, max_new_tokens=2)
    scores = run_steps(steps, engine, FACTS)["scores"].to_pylist()
    assert len(engine.forced) == forced
    assert {tuple(score) for row in scores for score in row} == {(*SCORE_NAMES, *comparators)}


@WITH_RANDOM_MODEL
@pytest.mark.parametrize("window", ["character", "token"])
def test_prompts_begin_with_the_system_message_of_the_target(
    engine: RecordingEngine, plain: PlainModel, window: str
):
    spec = Memo(window=window, template="target", max_new_tokens=2)
    MemoSteps(spec, "chat", "Be brief.").score(engine, [("Who?", "Ann or Bob")])
    head = tuple(plain.encode("<s><|system|>Be brief.<|end|><|user|>Who?<|end|><|assistant|>A"))
    assert engine.generated
    assert all(prompt[: len(head)] == head for prompt, _ in engine.generated)
