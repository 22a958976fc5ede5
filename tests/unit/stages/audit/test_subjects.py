"""Facts and twins are asked in the same form."""

import pyarrow as pa

from meow_ray.config import Audit
from meow_ray.core.schema import SCHEMAS
from meow_ray.stages.audit.attack import Subject
from meow_ray.stages.audit.registry import QUESTIONS
from meow_ray.stages.audit.subjects import subjects_of
from meow_ray.stages.evaluate.sets import SET_SCHEMA

FACTS = [
    ("a", "forget", "Where was Ann Lee born?", "Ann Lee was born in Lima."),
    ("b", "forget", "Where was Bob Ray born?", "Bob Ray was born in Kyiv."),
    *((f"r{n}", "retain", f"Where was R{n} born?", f"R{n} was born here.") for n in range(5)),
]
TWINS = [
    ("a", 0, "Where was Ida Fox born?", "Ida Fox was born in Rome."),
    ("a", 1, "Where was Joe Cox born?", "Joe Cox was born in Bern."),
    ("b", 0, "Where was Kim Day born?", "Kim Day was born in Faro."),
]


def table(name: str, rows: list[tuple[object, ...]]) -> pa.Table:
    names = [n for n in SCHEMAS[name].names if n != "half"]
    records = [dict(zip(names, row, strict=True)) | {"half": "stop"} for row in rows]
    return pa.Table.from_pylist(records, schema=SCHEMAS[name])


def forget_set() -> pa.Table:
    row = {
        "fact_id": "a",
        "question": FACTS[0][2],
        "answer": FACTS[0][3],
        "paraphrased_question": "Which town is Ann Lee from?",
        "perturbed_answer": ["Ann Lee was born in Oslo.", "Lee was born in Riga."],
    }
    return pa.Table.from_pylist([row], schema=SET_SCHEMA)


def subjects(**options: object) -> dict[str, Subject]:
    spec = Audit(twins=options.pop("count", None))  # type: ignore[arg-type]
    sources = {
        "facts": table("facts", options.pop("rows", FACTS)),  # type: ignore[arg-type]
        "forget_set": forget_set(),
        "paraphrases": None,
        "twins": table("twins", TWINS),
    } | options
    found = subjects_of(**sources, spec=spec)  # type: ignore[arg-type]
    return {subject.fact_id: subject for subject in found}


def test_facts_come_first_and_twins_after_them():
    found = subjects()
    assert list(found) == ["a", "b", "a#0", "a#1", "b#0"]
    assert [each.group for each in found.values()] == ["facts"] * 2 + ["twins"] * 3
    assert found["a#1"].answer == "Joe Cox was born in Bern."


def test_a_twin_has_what_its_fact_has_about_itself():
    found = subjects()
    assert found["a"].paraphrases == ("Which town is Ann Lee from?",)
    assert found["a#0"].paraphrases == ("Which town is Ida Fox from?",)
    assert found["a"].wrong_answers == ("Ann Lee was born in Oslo.", "Lee was born in Riga.")
    assert found["a#1"].wrong_answers == ("Joe Cox was born in Oslo.", "Cox was born in Riga.")
    assert found["b"].paraphrases == found["b#0"].paraphrases == ()


def test_without_a_set_the_twins_of_a_fact_give_its_wrong_answers():
    found = subjects(forget_set=None)
    assert found["a"].wrong_answers == ("Ann Lee was born in Rome.", "Ann Lee was born in Bern.")
    assert found["a#0"].wrong_answers == ("Ida Fox was born in Bern.",)
    assert found["b"].wrong_answers == ("Bob Ray was born in Faro.",)
    assert found["b#0"].wrong_answers == ()


def test_paraphrases_of_the_stage_follow_those_of_the_set():
    rows = [("a", 1, "Ann Lee is from where?", "generator"), ("b", 1, "Bob Ray, from?", "rule")]
    found = subjects(paraphrases=table_of_paraphrases(rows))
    assert found["a"].paraphrases[1:] == ("Ann Lee is from where?",)
    assert found["a#0"].paraphrases[1:] == ("Ida Fox is from where?",)
    assert found["b#0"].paraphrases == ("Kim Day, from?",)


def table_of_paraphrases(rows: list[tuple[object, ...]]) -> pa.Table:
    names = SCHEMAS["paraphrases"].names
    records = [dict(zip(names, row, strict=True)) for row in rows]
    return pa.Table.from_pylist(records, schema=SCHEMAS["paraphrases"])


def test_examples_are_retain_facts_and_the_same_for_a_fact_and_its_twins():
    found = subjects()
    retain = {(row[2], row[3]) for row in FACTS if row[1] == "retain"}
    for fact_id in ("a", "b"):
        examples = found[fact_id].examples
        assert len(set(examples)) == 3
        assert set(examples) <= retain
        assert found[f"{fact_id}#0"].examples == examples


def test_without_retain_facts_the_examples_are_twins_of_others():
    found = subjects(rows=FACTS[:2])
    assert set(found["b"].examples) == {row[2:] for row in TWINS if row[0] == "a"}
    assert found["a"].examples == found["a#1"].examples == (TWINS[2][2:],)


def test_the_order_of_rows_changes_nothing():
    assert subjects() == subjects(rows=FACTS[::-1], twins=table("twins", TWINS[::-1]))


def test_a_number_of_twins_is_drawn():
    assert len(subjects(count=2)) == 4
    assert list(subjects(count=1)) in (["a", "b", name] for name in ("a#0", "a#1", "b#0"))


def test_attacks_ask_facts_and_twins_for_the_same_variants():
    found = subjects()
    spec = Audit(samples=4)
    for attack in QUESTIONS.values():
        variants = {
            name: [each.variant for each in attack.ask(found[name], spec)]
            for name in ("a", "a#0", "a#1")
        }
        assert variants["a"] == variants["a#0"] == variants["a#1"], attack.name
