"""MEMO refuses a window that leaves no room in the target's context."""

import re

import pytest

from meow_ray.errors import MeowError
from tests.support.memo import (
    FACTS,
    MODES_AND_TEMPLATES,
    PlainModel,
    RecordingEngine,
    batch_of,
    steps_of,
)


def refusal(tokens: int) -> str:
    return (
        f"`memo`: a window of {tokens} tokens leaves no room in the target's context "
        f"({tokens} tokens). Remove long facts, or raise `target.max_model_len`."
    )


@pytest.mark.parametrize(("mode", "template"), MODES_AND_TEMPLATES)
@pytest.mark.parametrize("window", ["character", "token"])
def test_a_window_that_fills_the_context_is_refused(
    engine: RecordingEngine,
    plain: PlainModel,
    window: str,
    mode: str,
    template: str,
    monkeypatch: pytest.MonkeyPatch,
):
    steps = steps_of(window=window, mode=mode, template=template)
    question, texts = FACTS[0]
    lengths = [
        len(prompt) for text in texts for prompt, _, _ in plain.windows(steps.spec, question, text)
    ]
    if window == "token":
        for text in texts:
            head, tail = plain.prompt_and_answer(steps.spec, question, text)
            lengths.append(len(head) + len(tail))
    longest = max(lengths)
    prepared = steps.prepare(engine.tokenizer, batch_of(FACTS))
    monkeypatch.setattr(engine, "max_model_len", longest)
    with pytest.raises(MeowError, match=f"^{re.escape(refusal(longest))}$"):
        steps.generate(engine, prepared)
    assert not engine.generated
    monkeypatch.setattr(engine, "max_model_len", longest + 1)
    assert steps.generate(engine, prepared).num_rows == len(FACTS)


def test_an_answer_that_only_a_comparator_reads_is_refused_if_it_fills_the_context(
    engine: RecordingEngine, plain: PlainModel, monkeypatch: pytest.MonkeyPatch
):
    batch = batch_of([("Who?", ["Ann or Bob or Cem"])])
    length = len(plain.encode("Who? Ann or Bob or Cem", special=True))
    monkeypatch.setattr(engine, "max_model_len", length)
    with_comparator = steps_of(comparators=("ma",), stride=100)
    with pytest.raises(MeowError, match=f"^{re.escape(refusal(length))}$"):
        with_comparator.generate(engine, with_comparator.prepare(engine.tokenizer, batch))
    without = steps_of(stride=100)
    assert without.generate(engine, without.prepare(engine.tokenizer, batch)).num_rows == 1
