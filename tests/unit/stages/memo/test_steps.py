"""The scores that MEMO's steps give a batch equal those of one window at a time."""

from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Memo
from meow_ray.stages.memo.extraction import samples_to_extract
from meow_ray.stages.memo.steps import SCORE_NAMES, score_type
from tests.support.memo import (
    COMPARATORS,
    FACTS,
    MODES_AND_TEMPLATES,
    Facts,
    PlainModel,
    RecordingEngine,
    batch_of,
    run_steps,
    steps_of,
)
from tests.support.tiny import KNOWN


@pytest.mark.parametrize("limit", [4, "label"])
@pytest.mark.parametrize(("mode", "template"), MODES_AND_TEMPLATES)
@pytest.mark.parametrize(
    ("window", "stride"), [("token", 1), ("token", 3), ("character", 5), ("character", 2)]
)
def test_each_score_is_that_of_one_window_at_a_time(
    engine: RecordingEngine,
    plain: PlainModel,
    window: str,
    stride: int,
    mode: str,
    template: str,
    limit: int | str,
):
    steps = steps_of(
        window=window,
        stride=stride,
        mode=mode,
        template=template,
        max_new_tokens=limit,
        statistic="f1",
        comparators=COMPARATORS,
        el_n=2,
    )
    scores_of_facts = run_steps(steps, engine, FACTS)["scores"].to_pylist()
    for (question, texts), scores in zip(FACTS, scores_of_facts, strict=True):
        for text, score in zip(texts, scores, strict=True):
            assert score == pytest.approx(plain.score(steps.spec, question, text)), (question, text)


@pytest.mark.parametrize(("window", "stride"), [("token", 1), ("character", 3)])
def test_facts_that_share_a_question_do_not_disturb_each_other(
    engine: RecordingEngine, plain: PlainModel, window: str, stride: int
):
    question, answer = KNOWN[1]
    steps = steps_of(window=window, stride=stride, max_new_tokens="label", statistic="f1")
    facts = [(question, [answer]), (question, ["In Mai"]), (question, ["In Mai 1962", answer])]
    scores_of_facts = run_steps(steps, engine, facts)["scores"].to_pylist()
    for (_, texts), scores in zip(facts, scores_of_facts, strict=True):
        assert scores == [pytest.approx(plain.score(steps.spec, question, text)) for text in texts]


@pytest.mark.parametrize("template", ["raw", "target"])
def test_pairs_are_scored_as_facts_of_one_answer(engine: RecordingEngine, template: str):
    steps = steps_of(window="token", template=template, max_new_tokens=4, comparators=COMPARATORS)
    pairs = [(question, text) for question, texts in FACTS for text in texts]
    table = run_steps(steps, engine, [(question, [text]) for question, text in pairs])
    assert steps.score(engine, pairs) == [scores[0] for scores in table["scores"].to_pylist()]


@pytest.mark.parametrize(("mode", "template"), MODES_AND_TEMPLATES)
def test_pz_is_the_log_probability_of_the_answer(
    engine: RecordingEngine, plain: PlainModel, mode: str, template: str
):
    import torch

    question, text = FACTS[1][0], FACTS[1][1][1]
    steps = steps_of(
        mode=mode, template=template, window="token", max_new_tokens=1, comparators=("pz",)
    )
    (score,) = steps.score(engine, [(question, text)])
    prompt, answer = plain.prompt_and_answer(steps.spec, question, text)
    ids = torch.tensor([[*prompt, *answer]], device=plain.model.device)
    with torch.no_grad():
        log_probs = plain.model(ids).logits[0].log_softmax(-1)
    expected = sum(float(log_probs[len(prompt) + i - 1, token]) for i, token in enumerate(answer))
    assert score["pz"] == pytest.approx(expected, abs=1e-3)
    assert score["pz_samples"] == samples_to_extract(score["pz"])


@pytest.mark.parametrize(
    ("question", "answer", "spec"),
    [
        ("Who?", "7", {"window": "character"}),
        ("Who?", "7", {"window": "character", "template": "target"}),
        ("Who?", "7", {"window": "token", "template": "target"}),
        ("?", "A long answer", {"window": "character", "mode": "prefix"}),
        ("?", "A long answer", {"window": "token", "mode": "prefix"}),
    ],
)
def test_a_text_too_short_for_a_window_has_nulls(
    engine: RecordingEngine, question: str, answer: str, spec: dict[str, Any]
):
    steps = steps_of(**spec, comparators=COMPARATORS)
    table = run_steps(steps, engine, [(question, [answer])])
    (score,) = table["scores"].to_pylist()[0]
    expected = dict.fromkeys(SCORE_NAMES) | {"num_windows": 0, "el": None}
    assert {name: score[name] for name in expected} == expected
    assert None not in (score["ma"], score["em"], score["es"])
    assert engine.generated == []
    assert table["generations"].to_pylist() == [0]


@pytest.mark.parametrize("window", ["character", "token"])
@pytest.mark.parametrize("comparators", [(), COMPARATORS], ids=["plain", "comparators"])
def test_the_result_has_the_columns_of_the_rows_and_no_tokens(
    engine: RecordingEngine, window: str, comparators: tuple[str, ...]
):
    steps = steps_of(window=window, comparators=comparators, max_new_tokens=2)
    columns: dict[str, list[Any]] = {
        "fact_id": ["b", "a"],
        "candidate_ids": [[-1, 0, 1], [-1, 4, 7]],
    }
    table = run_steps(steps, engine, FACTS, **columns)
    assert table.column_names == ["question", "texts", *columns, "scores", "generations"]
    assert table.select(["question", "texts", *columns]).equals(batch_of(FACTS, **columns))
    assert table["scores"].type == pa.list_(score_type(steps.spec))
    assert table["generations"].type == pa.int32()


@pytest.mark.parametrize("window", ["character", "token"])
@pytest.mark.parametrize("facts", [[], [("Who?", [])]], ids=["no facts", "no answers"])
def test_a_batch_without_answers_gives_no_scores(
    engine: RecordingEngine, window: str, facts: Facts
):
    table = run_steps(steps_of(window=window, comparators=COMPARATORS), engine, facts)
    assert table["scores"].to_pylist() == [[] for _ in facts]
    assert table["scores"].type == pa.list_(score_type(Memo(comparators=COMPARATORS)))
