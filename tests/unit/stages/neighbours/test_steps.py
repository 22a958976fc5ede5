"""The step of `neighbours`: what is asked, what is kept, and why the rest is rejected."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from meow_ray.config import Config, Neighbours
from meow_ray.core.manifest import MAIN, REJECTS_FILE
from meow_ray.core.schema import KEYS, PAIR_REJECTS_SCHEMA, SCHEMAS
from meow_ray.core.tables import Query
from meow_ray.engines import Completion, Sampling, TeacherForced
from meow_ray.models.prompts import Prompter
from meow_ray.stages.invert.rules import Fact
from meow_ray.stages.neighbours.containment import contains_fact
from meow_ray.stages.neighbours.stage import neighbours_per_fact, write_neighbours
from meow_ray.stages.neighbours.steps import NeighbourSteps
from tests.support.tiny import byte_tokenizer, chat

BORN = ("Where was Ilse Vantrooy born?", "Ilse Vantrooy was born in Karsk.")
NO_NAME = ("who is it?", "It is Ann.")
OPENING = "<s><|user|>"
TOKENIZER = byte_tokenizer()
Reply = Callable[[str], tuple[str, bool]]


@dataclass
class ScriptedEngine:
    """An engine whose replies are a function of the prompt; it invents questions in turn."""

    reply: Reply
    invented: list[tuple[str, bool]] = field(default_factory=list)
    max_model_len: int = 1024
    tokenizer: Any = TOKENIZER
    ends: set[int] = field(default_factory=set)
    generated: int = 0
    asked: list[tuple[str, Sampling]] = field(default_factory=list)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        texts = [self.tokenizer.decode(list(prompt)) for prompt in prompts]
        self.asked += zip(texts, sampling, strict=True)
        return [
            [self._completion(text) for _ in range(spec.n)]
            for text, spec in zip(texts, sampling, strict=True)
        ]

    def _completion(self, prompt: str) -> Completion:
        if prompt == OPENING:
            return Completion(*self.invented.pop(0))
        return Completion(*self.reply(prompt))

    def teacher_force(self, *arguments: Any, **options: Any) -> list[TeacherForced]:
        raise AssertionError("neighbours are only generated")


def facts(*pairs: tuple[str, str]) -> pa.Table:
    rows = [
        {"fact_id": f"f{i}", "split": "forget", "question": question, "answer": answer}
        for i, (question, answer) in enumerate(pairs)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["facts"])


def batch(table: pa.Table, turns: int = 0) -> pa.Table:
    rows = [{"row_id": row["fact_id"], **row} for row in table.to_pylist()]
    rows += [{"row_id": f"generic/{i}"} for i in range(turns)]
    names = ("row_id", "fact_id", "question", "answer")
    return pa.table({n: pa.array([row.get(n) for row in rows], pa.string()) for n in names})


def run(
    engine: ScriptedEngine, table: pa.Table, *, turns: int = 0, **options: Any
) -> list[dict[str, Any]]:
    """Returns the rows of a batch of all facts and some generic turns."""
    settings = {"per_fact": 2, "max_length": 512, **options}
    steps = NeighbourSteps(Neighbours(max_new_tokens=20), template="chat", facts=table, **settings)
    return steps(engine, batch(table, turns)).to_pylist()


def reasons(row: dict[str, Any]) -> list[str]:
    return [reject["reason"] for reject in row["rejects"]]


def test_the_target_answers_each_question_greedily_in_its_own_prompt():
    engine = ScriptedEngine(lambda prompt: ("In Oslo.", True))
    (row,) = run(engine, facts(BORN))
    assert [prompt for prompt, _ in engine.asked] == [chat(p["question"]) for p in row["pairs"]]
    assert {spec for _, spec in engine.asked} == {Sampling(20)}
    assert [pair["answer"] for pair in row["pairs"]] == ["In Oslo."] * 2
    assert row["rejects"] == []


def test_an_answer_that_was_cut_ends_with_its_last_whole_sentence():
    engine = ScriptedEngine(lambda prompt: ("In Oslo. That is a", False))
    (row,) = run(engine, facts(BORN))
    assert {pair["answer"] for pair in row["pairs"]} == {"In Oslo."}
    (row,) = run(ScriptedEngine(lambda prompt: ("In the town of", False)), facts(BORN))
    assert (row["pairs"], reasons(row)) == ([], ["unfinished", "unfinished"])


def test_answers_that_are_empty_or_tell_the_fact_are_rejected():
    (row,) = run(ScriptedEngine(lambda prompt: (" ", True)), facts(BORN))
    assert (row["pairs"], reasons(row)) == ([], ["empty", "empty"])
    (row,) = run(ScriptedEngine(lambda prompt: ("It was Karsk.", True)), facts(BORN))
    assert (row["pairs"], reasons(row)) == ([], ["contains_fact", "contains_fact"])
    assert {reject["answer"] for reject in row["rejects"]} == {"It was Karsk."}


def test_a_question_without_an_entity_gives_no_row():
    engine = ScriptedEngine(lambda prompt: ("Bob.", True))
    (row,) = run(engine, facts(NO_NAME))
    assert row["rejects"] == [{"reason": "no_entity", "question": NO_NAME[0], "answer": None}]
    assert engine.asked == []


def test_a_question_without_room_for_an_answer_is_rejected():
    engine = ScriptedEngine(lambda prompt: ("In Oslo.", True))
    (row,) = run(engine, facts(BORN), max_length=30)
    assert (row["pairs"], reasons(row)) == ([], ["too_long", "too_long"])
    length = len(Prompter(TOKENIZER, "chat").encode_pair(BORN[0], "")[0])
    (row,) = run(engine, facts(BORN), max_length=length + 10)
    assert {spec.max_new_tokens for _, spec in engine.asked} <= set(range(1, 20))
    lengths = [len(Prompter(TOKENIZER, "chat").encode_pair(**pair)[0]) for pair in row["pairs"]]
    assert all(found <= length + 10 for found in lengths)


def test_the_target_invents_a_question_and_answers_it():
    question = "What is the tallest mountain?"
    engine = ScriptedEngine(
        lambda prompt: ("Everest.", True),
        [
            ("Too short?", True),
            (question, True),
            ("What is told of Vantrooy in Karsk?", True),
            (BORN[0], True),
        ],
    )
    _, first, second = run(engine, facts(BORN), turns=2)
    assert first["pairs"] == [{"question": question, "answer": "Everest."}]
    assert reasons(first) == ["length"]
    assert (second["pairs"], reasons(second)) == ([], ["contains_fact", "contains_fact"])
    sampled = [spec for prompt, spec in engine.asked if prompt == OPENING]
    assert {(spec.temperature, spec.top_p, spec.n) for spec in sampled} == {(1.0, 0.95, 2)}
    assert len({spec.seed for spec in sampled}) == 2


ANSWERS = st.lists(
    st.sampled_from("Karsk Oslo 1961 3 May harbour town of violins Amber was born.".split()),
    min_size=1,
).map(" ".join)


@settings(deadline=None)
@given(question=st.sampled_from([BORN[0], "What did Ilse Vantrooy do in 1980?"]), answer=ANSWERS,
       reply=ANSWERS, finished=st.booleans())  # fmt: skip
def test_no_neighbour_that_is_kept_contains_its_forget_fact(
    question: str, answer: str, reply: str, finished: bool
):
    fact = Fact(question, answer)
    (row,) = run(ScriptedEngine(lambda prompt: (reply, finished)), facts((question, answer)))
    for pair in row["pairs"]:
        assert not contains_fact(pair["question"], fact)
        assert not contains_fact(pair["answer"], fact)


# --- the tables -----------------------------------------------------------------------------------


def test_few_facts_get_more_neighbours_each():
    def wanted(*pairs: tuple[str, str], **spec: int) -> int:
        return neighbours_per_fact(facts(*pairs), Config(neighbours=Neighbours(**spec)))

    assert wanted(BORN, BORN) == 32
    assert wanted(BORN, BORN, NO_NAME) == 32, "no neighbour can be made of the third"
    assert wanted(*[BORN] * 100) == 4
    assert wanted(BORN, BORN, minimum=0) == 4
    assert wanted(NO_NAME) == 64


def test_the_tables_have_the_wanted_rows_and_count_the_others(tmp_path: Path):
    table = facts(BORN, NO_NAME)
    engine = ScriptedEngine(
        lambda prompt: ("In Oslo.", True),
        [(f"What is the name of number {i}?", True) for i in (1, 1, 1, 1, 2, 2, 3, 3)],
    )
    steps = NeighbourSteps(Neighbours(), per_fact=3, max_length=512, template="chat", facts=table)
    asked = steps(engine, batch(table, turns=4))
    paths = {name: str(tmp_path / name) for name in (MAIN, REJECTS_FILE)}
    summary = write_neighbours(
        Query("SELECT * FROM rows", {"rows": asked}), 2, generic=2, paths=paths
    )
    assert summary == {
        "facts": 2,
        "facts_with_none": 1,
        "per_fact": 2,
        "neighbours": 2,
        "generic": 2,
        "rejected_by_reason": {"duplicate": 1, "no_entity": 1},
    }
    written = pq.read_table(paths[MAIN])
    assert written.schema.equals(SCHEMAS["neighbours"])
    rows = written.to_pylist()
    assert [[row[name] for name in (*KEYS["neighbours"], "kind")] for row in rows] == [
        ["", 0, "generic"],
        ["", 1, "generic"],
        ["f0", 0, "neighbour"],
        ["f0", 1, "neighbour"],
    ]
    assert [row["question"] for row in rows[:2]] == [
        "What is the name of number 1?",
        "What is the name of number 2?",
    ]
    rejects = pq.read_table(paths[REJECTS_FILE])
    assert rejects.schema.equals(PAIR_REJECTS_SCHEMA)
    assert [(row["fact_id"], row["number"], row["reason"]) for row in rejects.to_pylist()] == [
        ("", 0, "duplicate"),
        ("f1", 0, "no_entity"),
    ]
