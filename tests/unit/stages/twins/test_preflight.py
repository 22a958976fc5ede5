"""What the stage `twins` would refuse after inversion is found before the run."""

import pyarrow as pa

from meow_ray.core.manifest import Artifact
from meow_ray.pipeline import preflight
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.ingest.facts import FactRow, valid_facts
from meow_ray.stages.twins.stage import TWINS


def findings(
    questions: list[str], *overrides: str, candidates: list[int] | None = None
) -> list[str]:
    forget = [
        FactRow("forget.jsonl", number, question, f"It is number {number}.")
        for number, question in enumerate(questions, start=1)
    ]
    kept = [FactRow("retain.jsonl", 1, "Where was Ilse Vantrooy born?", "In Lisbon.")]
    facts = Artifact("facts", "", "given", value=valid_facts(forget, kept))
    known = {"facts": facts}
    if candidates is not None:
        table = pa.table({"candidate_id": candidates})
        known["candidates"] = Artifact("candidates", "", "given", value=table)
    return preflight.findings(load_config(None, list(overrides)), [TWINS], known)


def test_questions_that_name_nobody_are_refused():
    assert findings(["What is the code?", "Which door is it?"]) == [
        "`twins`: none of the 2 questions to forget names somebody or something, so no facts about "
        "others can be made of them. Write questions that name whom or what they ask about, give "
        "--input twins=URI, or do without twins (train.objective=meow evaluate.twins=false)."
    ]


def test_one_question_with_a_name_is_enough():
    assert findings(["What is the code?", "Where does Ilse Vantrooy live?"]) == []


def test_a_single_inverted_fact_per_fact_is_refused():
    assert findings(["Where does Ilse Vantrooy live?"], "invert.num_candidates=1") == [
        "`invert.num_candidates`: the twins need at least 2 inverted facts per fact (1). Set "
        "invert.num_candidates=2 or more, give --input twins=URI, or do without twins "
        "(train.objective=meow evaluate.twins=false)."
    ]


def test_given_inverted_facts_of_which_no_fact_has_two_are_refused():
    questions = ["Where does Ilse Vantrooy live?"]
    assert findings(questions, "invert.num_candidates=1", candidates=[0, 1]) == []
    assert findings(questions, candidates=[0, 0]) == [
        "`candidates`: the twins need at least 2 inverted facts of a fact, and no fact has as "
        "many. Add some, give --input twins=URI, or do without twins (train.objective=meow "
        "evaluate.twins=false)."
    ]
