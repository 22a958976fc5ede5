import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, pstdev, quantiles
from typing import Any
from zlib import crc32

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import Memo
from meow_ray.core import storage
from meow_ray.core.schema import SCHEMAS, TRUE_ANSWER
from meow_ray.models.text import ROUGE_TYPES, rouge
from meow_ray.stages.memo.score import (
    Score,
    assemble,
    branches,
    extraction_likelihood,
    extraction_strength,
    memorization_accuracy,
    score_answer,
    token_cuts,
    windows,
)
from meow_ray.stages.memo.summary import summarize

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
STRIDE = st.integers(1, 9)
LABELS, SAID = ["a b c d", "c d"], ["a b", "x"]
"""ROUGE-1 of the two windows: precision 1 and 0, recall 1/2 and 0, F1 2/3 and 0."""


# --- windows ------------------------------------------------------------------------------------


def test_suffix_windows_cut_the_answer_at_1_6_11():
    cuts = windows("Who?", "She wrote it.", Memo())
    assert [(w.prompt, w.label) for w in cuts] == [
        ("Who? S", "he wrote it."),
        ("Who? She wr", "ote it."),
        ("Who? She wrote i", "t."),
    ]


def test_prefix_windows_cut_the_question_and_leave_the_answer_to_the_label():
    cuts = windows("Who wrote?", "She.", Memo(mode="prefix"))
    assert [(w.prompt, w.label) for w in cuts] == [("W", "ho wrote? She."), ("Who wr", "ote? She.")]


def test_a_rendered_question_replaces_the_question_and_the_blank():
    cuts = windows("Who?", "She.", Memo(stride=2), rendered="<user>Who?<assistant>")
    assert [(w.prompt, w.label) for w in cuts] == [
        ("<user>Who?<assistant>S", "he."),
        ("<user>Who?<assistant>She", "."),
    ]


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, []), (1, []), (2, [1]), (6, [1]), (7, [1, 6]), (11, [1, 6]), (12, [1, 6, 11])],
)
@pytest.mark.parametrize("mode", ["suffix", "prefix"])
def test_cuts_stop_before_the_end(mode: str, length: int, expected: list[int]):
    text = "abcdefghijkl"[:length]
    cuts = windows("", text, Memo()) if mode == "suffix" else windows(text, "", Memo(mode="prefix"))
    assert [len(w.prompt.strip()) for w in cuts] == expected


@given(TEXT, TEXT, STRIDE)
def test_prompt_and_label_of_a_suffix_window_are_the_pair(question: str, answer: str, stride: int):
    cuts = windows(question, answer, Memo(stride=stride))
    assert {w.prompt + w.label for w in cuts} <= {f"{question} {answer}"}
    assert [len(w.label) for w in cuts] == [len(answer) - k for k in range(1, len(answer), stride)]
    assert all(w.label for w in cuts)


@given(TEXT, TEXT, STRIDE)
def test_prompt_and_label_of_a_prefix_window_are_the_pair(question: str, answer: str, stride: int):
    cuts = windows(question, answer, Memo(stride=stride, mode="prefix"))
    assert {w.prompt + w.label for w in cuts} <= {f"{question} {answer}"}
    assert [len(w.prompt) for w in cuts] == list(range(1, len(question), stride))


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statistic", "first"), [("precision", 1.0), ("recall", 1 / 2), ("f1", 2 / 3)]
)
def test_memo_is_the_mean_of_the_chosen_statistic(statistic: str, first: float):
    found = score_answer(LABELS, SAID, Memo(statistic=statistic))
    assert found.memo == found.rouge1 == found.rougeL == pytest.approx(first / 2)
    assert found.num_windows == 2


def test_the_rouge_of_memo_is_configured():
    labels, said = ["a b c d"], ["d c b a"]
    assert score_answer(labels, said, Memo()).memo == 1.0
    assert score_answer(labels, said, Memo(rouge="rouge2")).memo == 0.0
    assert score_answer(labels, said, Memo(rouge="rougeL")) == Score(0.25, 1.0, 0.0, 0.25, 0.0, 1)


def test_cv_is_the_standard_deviation_over_the_mean():
    assert score_answer(LABELS, SAID, Memo()).cv == pytest.approx(
        1.0
    )  # values 1 and 0: mean 1/2, deviation 1/2
    assert score_answer(["a", "a"], ["a", "a"], Memo()).cv == 0.0
    assert score_answer(["a b", "a b", "a b"], ["a b", "a b", "a x"], Memo()).cv == pytest.approx(
        2**0.5 / 5
    )


def test_cv_of_nothing_remembered_is_null():
    assert score_answer(["a", "b"], ["x", "y"], Memo()) == Score(0.0, 0.0, 0.0, 0.0, None, 2)


def test_an_answer_too_short_for_a_window_has_nulls():
    assert windows("Who?", "A", Memo()) == []
    assert score_answer([], [], Memo()) == Score(None, None, None, None, None, 0)


def test_a_memorised_answer_scores_1_from_any_cut():
    labels = [w.label for w in windows("Who?", "Basil Mahfouz Al-Kuwaiti wrote it.", Memo())]
    found = score_answer(labels, labels, Memo())
    assert (found.memo, found.rouge2, found.rougeL, found.cv, found.num_windows) == (
        1.0,
        6 / 7,
        1.0,
        0.0,
        7,
    )


# --- token windows ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "spec", "expected"),
    [
        (0, {}, []),
        (1, {}, []),
        (4, {}, [1, 2, 3]),
        (7, {"stride": 3}, [1, 4]),
        (8, {"stride": 3}, [1, 4, 7]),
        (3, {"stride": 9}, [1]),
    ],
)
def test_token_cuts_stop_before_the_end(length: int, spec: dict[str, int], expected: list[int]):
    assert list(token_cuts(length, Memo(window="token", **spec))) == expected


END = None


class Model:
    """Decodes greedily: the next token, 0 … 2 or END, is a function of all tokens before it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def next(self, prefix: Sequence[int]) -> int | None:
        drawn = crc32(bytes([*self.seed.to_bytes(4), *prefix])) // 7 % 7
        return END if drawn == 6 else drawn % 3

    def say(self, prefix: Sequence[int], limit: int) -> list[int]:
        """Returns the greedy continuation, one token after the other."""
        said: list[int] = []
        while len(said) < limit and (token := self.next([*prefix, *said])) is not END:
            said.append(token)
        return said

    def force(self, sequence: Sequence[int]) -> tuple[list[bool], bool]:
        """Returns which tokens of a sequence are the greedy ones, and whether the greedy end is behind it."""
        return [self.next(sequence[:i]) == token for i, token in enumerate(sequence)], self.next(
            sequence
        ) is END


@st.composite
def cut_answers(draw: st.DrawFn) -> tuple[Model, list[int], list[int], list[int]]:
    """A model, a sequence that follows it here and there, the positions of windows, their limits."""
    model, sequence = Model(draw(st.integers(0, 2**32 - 1))), []
    for token in draw(st.lists(st.none() | st.integers(0, 2), max_size=12)):
        follows = model.next(sequence) if token is None else token
        sequence.append(0 if follows is END else follows)
    cuts = sorted(draw(st.sets(st.integers(0, len(sequence)))))
    limits = draw(st.lists(st.integers(1, 14), min_size=len(cuts), max_size=len(cuts)))
    return model, sequence, cuts, limits


@given(cut_answers(), st.integers(0, 5))
def test_branches_and_the_answer_give_what_greedy_decoding_gives_from_every_cut(
    case: tuple[Model, list[int], list[int], list[int]], more: int
):
    model, sequence, cuts, limits = case
    greedy, ends = model.force(sequence)
    need = branches(greedy, ends, cuts, limits)
    said = {at: model.say(sequence[:at], tokens + more) for at, tokens in need.items()}
    expected = [model.say(sequence[:cut], limit) for cut, limit in zip(cuts, limits, strict=True)]
    assert assemble(sequence, greedy, cuts, limits, said) == expected


@given(cut_answers())
def test_the_model_speaks_only_where_it_leaves_the_answer_and_no_longer_than_a_window_needs(
    case: tuple[Model, list[int], list[int], list[int]],
):
    model, sequence, cuts, limits = case
    greedy, ends = model.force(sequence)
    for at, tokens in branches(greedy, ends, cuts, limits).items():
        assert at == len(sequence) or not greedy[at]
        assert at < len(sequence) or not ends
        windows_there = [
            (c, limit)
            for c, limit in zip(cuts, limits, strict=True)
            if c <= at and all(greedy[c:at])
        ]
        assert tokens == max(limit - (at - cut) for cut, limit in windows_there) > 0


@given(st.integers(0, 9), st.lists(st.integers(1, 20), min_size=9, max_size=9))
def test_a_memorised_answer_that_ends_needs_no_generation(length: int, limits: list[int]):
    assert branches([True] * length, True, range(length), limits[:length]) == {}


@given(st.integers(1, 9))
def test_a_memorised_answer_needs_no_generation_up_to_the_length_of_its_label(length: int):
    cuts = range(1, length)
    assert branches([True] * length, False, cuts, [length - cut for cut in cuts]) == {}


def test_branches_by_hand():
    greedy, cuts = [True, False, True, True, False, True], [1, 2, 3, 4, 5]
    assert branches(greedy, True, cuts, [9] * 5) == {1: 9, 4: 9}
    assert branches(greedy, False, cuts, [9] * 5) == {1: 9, 4: 9, 6: 8}
    assert branches(greedy, False, cuts, [2, 2, 3, 1, 1]) == {1: 2, 4: 2}
    said = {1: [7, 7, 7], 4: [8], 6: []}
    assert assemble([0, 1, 2, 3, 4, 5], greedy, cuts, [2, 9, 1, 9, 9], said) == [
        [7, 7],
        [2, 3, 8],
        [3],
        [8],
        [5],
    ]


# --- what the paper compares MEMO with ----------------------------------------------------------

GREEDY = [
    ("", None, None),
    ("1", 1.0, 1.0),
    ("0", 0.0, 0.0),
    ("1111", 1.0, 1.0),
    ("0000", 0.0, 0.0),
    ("1110", 3 / 4, 0.0),
    ("0111", 3 / 4, 3 / 4),
    ("1101", 3 / 4, 1 / 4),
    ("01101", 3 / 5, 1 / 5),
    ("10011", 3 / 5, 2 / 5),
]


@pytest.mark.parametrize(("greedy", "accuracy", "strength"), GREEDY)
def test_accuracy_counts_greedy_tokens_and_strength_those_of_the_end(
    greedy: str, accuracy: float | None, strength: float | None
):
    same = [mark == "1" for mark in greedy]
    assert memorization_accuracy(same) == accuracy
    assert extraction_strength(same) == strength


@given(st.lists(st.booleans(), min_size=1))
def test_strength_is_the_largest_suffix_that_is_said_from_its_beginning(greedy: list[bool]):
    least = min(k for k in range(len(greedy) + 1) if all(greedy[k:]))
    assert extraction_strength(greedy) == pytest.approx(1 - least / len(greedy))


@pytest.mark.parametrize(
    ("labels", "said", "n", "expected"),
    [
        pytest.param([[1, 2, 3, 4]], [[1, 2, 3, 4]], 2, 1.0, id="all"),
        pytest.param([[1, 2, 3, 4]], [[1, 2, 9, 3]], 2, 1 / 3, id="one of three"),
        pytest.param([[1, 2, 3, 4]], [[3, 4, 1, 2]], 2, 2 / 3, id="anywhere in the label"),
        pytest.param([[1, 2, 3]], [[1, 1, 9]], 1, 2 / 3, id="each time it is said"),
        pytest.param([[1, 2, 3, 4]], [[1, 2, 3, 4]], 4, 1.0, id="n is the length"),
        pytest.param([[1, 2, 3, 4]], [[1, 2, 3, 4]], 5, None, id="n is more than the length"),
        pytest.param([[1, 2, 3]], [[1, 2, 3, 9, 9, 9]], 2, 1.0, id="longer than the label"),
        pytest.param([[1, 2]], [[9, 9, 1, 2]], 2, 0.0, id="right behind the label's length"),
        pytest.param([[1, 2, 3, 4]], [[1, 2]], 2, 1.0, id="shorter than the label"),
        pytest.param([[1, 2, 3, 4]], [[1]], 2, 0.0, id="shorter than n"),
        pytest.param([[1, 2, 3, 4]], [[]], 2, 0.0, id="nothing said"),
        pytest.param(
            [[1, 2, 3], [2, 3], [3]],
            [[1, 2, 3], [9, 9], [3]],
            2,
            1 / 2,
            id="mean without a short label",
        ),
        pytest.param([[1, 2, 3], [3]], [[9, 9, 9], [3]], 3, 0.0, id="a short label that was said"),
        pytest.param([[3], []], [[3], []], 2, None, id="only short labels"),
        pytest.param([], [], 2, None, id="no window"),
    ],
)
def test_extraction_likelihood_by_hand(
    labels: list[list[int]], said: list[list[int]], n: int, expected: float | None
):
    assert extraction_likelihood(labels, said, n) == (
        None if expected is None else pytest.approx(expected)
    )


# --- figures over facts -------------------------------------------------------------------------

Scores = dict[str, list[float | None]]
"""MEMO by fact: the true answer's first, then those of candidates 0, 1, …"""
FACTS: Scores = {
    "a": [1.0, 0.5, 0.25],
    "b": [0.5, 0.5, None],
    "c": [0.0, 0.125],
    "d": [0.3, None],
    "e": [None, 0.9],
    "f": [0.75],
}
TRUE, OTHERS = [1.0, 0.5, 0.0, 0.3, 0.75], [0.5, 0.25, 0.5, 0.125, 0.9]


def memo_table(scores: Scores, **columns: list[Any]) -> pa.Table:
    rows = [
        {
            "fact_id": fact,
            "candidate_id": i,
            "memo": value,
            "num_windows": 0 if value is None else 3,
        }
        for fact, values in scores.items()
        for i, value in enumerate(values, start=TRUE_ANSWER)
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMAS["memo"])
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    return table


def expected_distribution(values: list[float]) -> dict[str, Any]:
    twentieths = [min(values), *quantiles(values, n=20, method="inclusive"), max(values)]
    levels = {"0.0": 0, "0.1": 2, "0.25": 5, "0.5": 10, "0.75": 15, "0.9": 18, "1.0": 20}
    return {
        "count": len(values),
        "mean": pytest.approx(fmean(values)),
        "std": pytest.approx(pstdev(values)),
        "cv": pytest.approx(pstdev(values) / fmean(values)),
        "quantiles": {level: pytest.approx(twentieths[i]) for level, i in levels.items()},
        "histogram": [
            sum(i / 20 <= v < (i + 1) / 20 or (i == 19 and v == 1) for v in values)
            for i in range(20)
        ],
    }


def test_a_summary_by_hand():
    found = summarize(memo_table(FACTS))
    assert {name: found[name] for name in ("answers", "windows", "too_short")} == {
        "answers": 13,
        "windows": 30,
        "too_short": 3,
    }
    assert found["true_answers"] == expected_distribution(TRUE)
    assert found["candidates"] == expected_distribution(OTHERS)
    assert found["gap"] == pytest.approx(fmean([1.0 - 0.375, 0.5 - 0.5, 0.0 - 0.125]))
    assert (found["facts_with_candidates"], found["facts_true_above_all_candidates"]) == (3, 1)


def test_a_distribution_has_a_bar_for_each_twentieth_and_the_last_holds_1():
    values = [0.0, 0.049, 0.05, 0.3, 0.999, 1.0, 1.0]
    bars = summarize(memo_table({str(i): [value] for i, value in enumerate(values)}))[
        "true_answers"
    ]["histogram"]
    assert bars == [2, 1, 0, 0, 0, 0, 1, *[0] * 12, 3]


def test_extremes_are_named_by_id_ties_in_order():
    scores: Scores = {
        **{f"f{i:02}": [i / 20] for i in range(14)},
        "z": [13 / 20],
        "y": [13 / 20],
        "x": [None],
    }
    found = summarize(memo_table(scores), most=3)
    assert [row["fact_id"] for row in found["most_memorised"]] == ["f13", "y", "z"]
    assert found["least_memorised"] == [{"fact_id": f"f{i:02}", "memo": i / 20} for i in range(3)]
    assert len(summarize(memo_table(scores))["most_memorised"]) == 10


def test_the_deviation_over_windows_is_the_mean_over_true_answers():
    table = memo_table({"a": [1.0, 0.5], "b": [0.5], "c": [0.0]}, cv=[0.5, 9.0, 0.25, None])
    assert summarize(table)["mean_cv_over_windows"] == pytest.approx(0.375)


@pytest.mark.parametrize("scores", [{}, {"a": [None, None]}], ids=["no rows", "all too short"])
def test_a_summary_of_nothing_has_no_figures(scores: Scores):
    found = summarize(memo_table(scores))
    nothing = {"count": 0, "mean": None, "std": None, "cv": None, "histogram": [0] * 20}
    for part in ("true_answers", "candidates"):
        assert found[part] == nothing | {"quantiles": dict.fromkeys(found[part]["quantiles"])}
    assert (found["windows"], found["gap"], found["mean_cv_over_windows"]) == (0, None, None)
    assert found["facts_with_candidates"] == found["facts_true_above_all_candidates"] == 0
    assert found["most_memorised"] == found["least_memorised"] == []


def test_nothing_remembered_has_no_relative_deviation():
    found = summarize(memo_table({"a": [0.0, 0.0], "b": [0.0, 0.0]}))
    assert (found["true_answers"]["mean"], found["true_answers"]["cv"], found["gap"]) == (
        0.0,
        None,
        0.0,
    )


def test_a_summary_can_be_written_as_json_and_is_the_same_from_files(tmp_path: Path):
    table, files = memo_table(FACTS), [str(tmp_path / f"{i}.parquet") for i in range(2)]
    for part, file in zip((table.slice(7), table.slice(0, 7)), files, strict=True):
        storage.write_table(part, file)
    assert json.loads(json.dumps(summarize(files))) == summarize(table)


# --- against the reference implementation -------------------------------------------------------


def check_against_rouge_score(pairs: list[tuple[str, str]]) -> None:
    module = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = module.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    found = rouge([reference for reference, _ in pairs], [prediction for _, prediction in pairs])
    for (reference, prediction), result in zip(pairs, found, strict=True):
        for name, expected in scorer.score(reference, prediction).items():
            assert result[name] == pytest.approx(
                (expected.precision, expected.recall, expected.fmeasure)
            ), (
                name,
                reference,
                prediction,
            )


def test_rouge_equals_the_reference_on_real_text(shared_data: Callable[[str], Path]):
    lines = shared_data("tofu/forget10_perturbed.jsonl").read_text().splitlines()[::12]
    pairs = []
    for row in map(json.loads, lines):
        pairs += [
            (row["answer"], row["paraphrased_answer"]),
            (row["paraphrased_answer"], row["perturbed_answer"][0]),
        ]
        cuts = windows(row["question"], row["answer"], Memo(stride=29))
        pairs += [(w.label, row["answer"][: len(w.label)]) for w in cuts]
    assert len(pairs) >= 200
    check_against_rouge_score(pairs)


def test_rouge_equals_the_reference_on_odd_text():
    odd = [
        "",
        " ",
        "...",
        "naïve café",
        "Родился в Москве",
        "北京",
        "a-b_c d's",
        "running runner ran",
        "1,000.5 m²",
        "A",
    ]
    check_against_rouge_score([(a, b) for a in odd for b in odd])
