"""The rows that models are asked: suites, attacks, samples, and sets that are refused."""

import re

import pytest

from meow_ray.config import Evaluate
from meow_ray.core.schema import ROW
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate import suites
from meow_ray.stages.evaluate.suites import AFFIRMATIVE, ROWS_SCHEMA
from meow_ray.stages.ingest.facts import fact_id
from tests.support.sets import BORN, fact_rows, facts_query, set_table


def test_each_split_set_and_attack_is_a_suite():
    sets = {
        "world_facts": set_table(
            ("Capital of Peru?", "It is Lima."), perturbed_answer=["Quito", "Bogota"]
        )
    }
    facts = facts_query([*fact_rows(BORN), *fact_rows(("R?", "S."), split="retain")])
    table = suites.rows_to_ask(facts, sets, [], Evaluate())
    assert table.schema == ROWS_SCHEMA
    rows = {row["suite"]: row for row in table.to_pylist()}
    assert table["suite"].to_pylist() == list(rows), "each suite has one row"
    assert {
        suite: (row["start"], row["answer"], row["scored"], row["with_memo"])
        for suite, row in rows.items()
    } == {
        "forget": ("", BORN[1], True, True),
        "retain": ("", "S.", True, True),
        "world_facts": ("", "It is Lima.", True, True),
        "forget_prefix10": ("Basil", " was born in Kuwait City.", False, False),
        "forget_prefix30": ("Basil was", " born in Kuwait City.", False, False),
        "forget_prefix50": ("Basil was born in", " Kuwait City.", False, False),
        "forget_affirmative": (AFFIRMATIVE, BORN[1], False, False),
    }
    assert rows["world_facts"]["perturbed_answer"] == ["Quito", "Bogota"]
    assert rows["forget"][ROW] == f"forget/{fact_id(*BORN)}"


def test_a_perturbed_file_replaces_the_split_and_has_paraphrased_questions():
    perturbed = set_table(
        BORN,
        paraphrased_question="Which city?",
        paraphrased_answer="Kuwait City.",
        perturbed_answer=["Cairo."],
    )
    table = suites.rows_to_ask(
        facts_query(fact_rows(BORN)),
        {"forget": perturbed},
        [],
        Evaluate(attacks=("paraphrase",)),
    )
    first, second = table.to_pylist()
    assert (first["suite"], first["perturbed_answer"], first["paraphrased_answer"]) == (
        "forget",
        ["Cairo."],
        "Kuwait City.",
    )
    assert (second["suite"], second["question"], second["perturbed_answer"]) == (
        "forget_paraphrased",
        "Which city?",
        None,
    )


@pytest.mark.parametrize(
    ("name", "pairs", "message"),
    [
        (
            "forget",
            [("R?", "S.")],
            "evaluate.sets.forget: this is not the forget set of this run (1 of its facts are not "
            "in `ingest.forget`, and 1 facts of `ingest.forget` are not in it).",
        ),
        (
            "forget",
            [BORN, ("R?", "S.")],
            "evaluate.sets.forget: this is not the forget set of this run (1 of its facts are not "
            "in `ingest.forget`, and 0 facts of `ingest.forget` are not in it).",
        ),
        (
            "retain",
            [BORN],
            "evaluate.sets.retain: the set has facts of the forget set (1 of them).",
        ),
        (
            "holdout",
            [BORN],
            "evaluate.sets.holdout: the set has facts of the forget set (1 of them).",
        ),
        (
            "holdout",
            [("T?", "U.")],
            "evaluate.sets.holdout: the set has facts of the retain set (1 of them).",
        ),
    ],
)
def test_a_set_of_another_split_is_refused(name: str, pairs: list[tuple[str, str]], message: str):
    facts = facts_query([*fact_rows(BORN), *fact_rows(("T?", "U."), split="retain")])
    with pytest.raises(MeowError, match=re.escape(message)):
        suites.rows_to_ask(facts, {name: set_table(*pairs)}, [], Evaluate())


def test_a_holdout_set_that_shares_facts_with_the_set_retain_is_refused():
    sets = {"holdout": set_table(("R?", "S."), ("T?", "U.")), "retain": set_table(("T?", "U."))}
    message = "evaluate.sets.holdout: the set has facts of the retain set (1 of them)."
    with pytest.raises(MeowError, match=re.escape(message)):
        suites.rows_to_ask(facts_query(fact_rows(BORN)), sets, [], Evaluate())


def test_samples_are_drawn_from_all_sets_but_forget():
    pairs = [(f"Q{number}?", f"A{number}.") for number in range(20)]
    retain = [(f"{question}r", answer) for question, answer in pairs]
    table = suites.rows_to_ask(
        facts_query([*fact_rows(*pairs), *fact_rows(*retain, split="retain")]),
        {},
        [],
        Evaluate(sample=5, memo_sample=2, attacks=()),
    )
    with_memo: dict[str, list[bool]] = {}
    for row in table.to_pylist():
        with_memo.setdefault(row["suite"], []).append(row["with_memo"])
    assert {suite: (len(flags), sum(flags)) for suite, flags in with_memo.items()} == {
        "forget": (20, 20),
        "retain": (5, 2),
    }


@pytest.mark.parametrize(
    ("answer", "percent", "start"),
    [
        ("one two three four", 10, "one"),
        ("one two three four", 50, "one two three"),  # to the end of the word
        ("one two three four", 90, ""),  # nothing would be left
        ("word", 50, "wo"),
        ("東京都です", 30, "東京"),
        ("x", 10, ""),
    ],
)
def test_a_prefix_ends_with_a_word_and_leaves_a_rest(answer: str, percent: int, start: str):
    assert answer[: suites.prefix_length(answer, percent)] == start


def test_memo_can_be_turned_off_for_all_suites():
    facts = facts_query(fact_rows(BORN))
    sets = {"retain": set_table(("Q?", "A."))}
    with_memo = suites.rows_to_ask(facts, sets, [], Evaluate())["with_memo"].to_pylist()
    without = suites.rows_to_ask(facts, sets, [], Evaluate(memo=False))["with_memo"].to_pylist()
    assert sum(with_memo) == 2
    assert sum(without) == 0
