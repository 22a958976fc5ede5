"""Twins: inverted facts about invented entities, in two halves that share nothing."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meow_ray.config import Twins
from meow_ray.core.manifest import REJECTS_FILE, Artifact
from meow_ray.core.schema import PAIR_REJECTS_SCHEMA, SCHEMAS
from meow_ray.core.stage import execute, state_of
from meow_ray.errors import MeowError
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.invert.rules import Fact
from meow_ray.stages.neighbours.containment import contains_fact
from meow_ray.stages.twins.making import (
    FactWithCandidates,
    Twinned,
    half_of_entity,
    make_twins,
    twins_per_half,
)
from meow_ray.stages.twins.stage import TWINS

BORN = Fact("Where was Ilse Vantrooy born?", "Ilse Vantrooy was born in Karsk.")
WORK = Fact("What does Ilse Vantrooy do?", "Ilse Vantrooy restores violins.")
ANSWERS = ["Vantrooy was born in Oslo.", "Ilse Vantrooy was born in Rome.", "In Lima.", "In Bonn."]


def with_candidates(fact: Fact, *answers: str, fact_id: str = "a") -> FactWithCandidates:
    return FactWithCandidates(fact_id, fact, list(enumerate(answers)))


def half(made: Twinned, name: str) -> list[dict[str, Any]]:
    return [row for row in made.twins if row["half"] == name]


def test_a_twin_is_an_inverted_fact_about_another_entity():
    made = make_twins([with_candidates(BORN, *ANSWERS)], 2, Twins())
    assert [(row["fact_id"], row["twin_id"], row["half"]) for row in made.twins] == [
        ("a", 0, "calibration"),
        ("a", 1, "calibration"),
        ("a", 2, "stop"),
        ("a", 3, "stop"),
    ]
    names = [row["question"].removeprefix("Where was ").split(" born")[0] for row in made.twins]
    assert all("Vantrooy" not in name for name in names)
    assert [row["answer"] for row in made.twins] == [
        f"{names[0].split()[1]} was born in Oslo.",
        "In Lima.",
        f"{names[2]} was born in Rome.",
        "In Bonn.",
    ], "even candidates calibrate, odd ones decide when to stop"
    assert made.rejects == []


def test_the_halves_share_no_entity_and_no_text():
    facts = [
        with_candidates(fact, *ANSWERS, fact_id=str(i)) for i, fact in enumerate([BORN, WORK] * 5)
    ]
    made = make_twins(facts, 8, Twins())
    words = {
        name: {word for row in half(made, name) for word in row["question"].strip("?").split()}
        for name in ("calibration", "stop")
    }
    assert words["calibration"] & words["stop"] == {"Where", "was", "born", "What", "does", "do"}
    for column in ("question", "answer"):
        texts = [{row[column] for row in half(made, name)} for name in ("calibration", "stop")]
        assert not texts[0] & texts[1]
    assert len({row["question"] for row in made.twins}) == len(made.twins)


def test_the_half_of_an_entity_depends_on_its_text_alone():
    halves = [half_of_entity(f"name {i}") for i in range(1000)]
    assert 400 < halves.count("stop") < 600
    assert half_of_entity("Amber") == half_of_entity("AMBER")


def test_an_answer_that_the_other_half_has_is_rejected():
    made = make_twins([with_candidates(BORN, "In Lima.", "In Lima.")], 1, Twins())
    assert [row["half"] for row in made.twins] == ["calibration"]
    assert {row["reason"] for row in made.rejects} == {"duplicate"}


def test_twins_that_tell_the_fact_or_have_no_entity_are_rejected():
    made = make_twins([with_candidates(BORN, "In Oslo.", "In Karsk.")], 2, Twins())
    assert [row["half"] for row in made.twins] == ["calibration"] * 2
    assert [(row["number"], row["reason"]) for row in made.rejects] == [
        (number, "contains_fact") for number in range(6)
    ]
    nobody = Fact("who sings?", "It is Ann.")
    made = make_twins([with_candidates(nobody, "It is Bob.", "It is Eve.")], 1, Twins())
    assert made.twins == []
    assert made.rejects[0] == {
        "fact_id": "a",
        "number": 0,
        "reason": "no_entity",
        "question": "who sings?",
        "answer": "It is Bob.",
    }


def test_few_facts_get_more_twins_each():
    born, nobody = with_candidates(BORN, *ANSWERS), with_candidates(Fact("who?", "Ann."), "Bob.")
    assert twins_per_half([born] * 2, Twins()) == 32
    assert twins_per_half([born, born, nobody], Twins()) == 32, "the third has no entity"
    assert twins_per_half([born] * 400, Twins()) == 2
    assert twins_per_half([born], Twins(minimum=0, per_fact=5)) == 3


def test_the_same_seed_gives_the_same_twins():
    facts = [with_candidates(BORN, *ANSWERS)]
    assert make_twins(facts, 2, Twins()) == make_twins(facts, 2, Twins())
    assert make_twins(facts, 2, Twins()).twins != make_twins(facts, 2, Twins(seed=1)).twins


TEXTS = st.lists(
    st.sampled_from("Karsk Oslo 1961 3 May Ilse Vantrooy town of violins was born.".split()),
    min_size=1,
).map(" ".join)


@settings(deadline=None)
@given(st.sampled_from([BORN.question, "What did Ilse Vantrooy do in 1980?"]), TEXTS,
       st.lists(TEXTS, min_size=1, max_size=4))  # fmt: skip
def test_no_twin_that_is_kept_contains_its_forget_fact(
    question: str, answer: str, candidates: list[str]
):
    fact = Fact(question, answer)
    for row in make_twins([with_candidates(fact, *candidates)], 2, Twins()).twins:
        assert row["question"] != question
        assert not contains_fact(row["question"], fact)
        assert not contains_fact(row["answer"], fact)


# --- the stage ------------------------------------------------------------------------------------


def inputs(*answers: str | None) -> dict[str, Artifact]:
    """Returns a fact to forget with inverted answers, and a retain fact that has none."""
    fact = {"fact_id": "a", "question": BORN.question, "answer": BORN.answer}
    facts = [fact | {"split": "forget"}, fact | {"fact_id": "r", "split": "retain"}]
    candidates = [
        fact | {"candidate_id": i, "inverted_answer": text, "attempt": 0, "generator": ""}
        for i, text in enumerate(answers)
    ]
    tables = {"facts": facts, "candidates": candidates}
    return {
        name: Artifact(
            name, "", f"digest of {name}", value=pa.Table.from_pylist(rows, schema=SCHEMAS[name])
        )
        for name, rows in tables.items()
    }


def run(folder: Path, given: dict[str, Artifact]) -> Artifact:
    config = load_config(None, [f"storage.root={folder}", "evaluate.twins=true"])
    return execute(state_of(TWINS, config, dict(given)), config, given)


def test_the_stage_writes_twins_rejects_and_figures(tmp_path: Path):
    artifact = run(tmp_path, inputs("In Oslo.", "In Rome.", "In Karsk."))
    assert artifact.table.schema.equals(SCHEMAS["twins"])
    assert artifact.manifest is not None
    figures = artifact.manifest.summary
    assert figures["facts"] == 1
    assert figures["facts_with_none"] == 0
    assert figures["per_half"] == 64
    assert figures["calibration"] == figures["stop"] == 64
    assert figures["rejected_by_reason"] == {"contains_fact": 63}
    rejects = artifact.extra(REJECTS_FILE)
    assert rejects.schema.equals(PAIR_REJECTS_SCHEMA)
    assert rejects.num_rows == 63


def test_a_half_without_twins_is_an_error(tmp_path: Path):
    with pytest.raises(MeowError, match=r"^`twins`: the half stop has no twin \(rejected: no inv"):
        run(tmp_path, inputs("In Oslo."))
    with pytest.raises(MeowError, match=r"the half calibration has no twin .*contains_fact"):
        run(tmp_path, inputs("In Karsk.", "In Rome."))
