"""Tests of the steps of `invert` with scripted generators."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Invert
from meow_ray.core.schema import SCHEMAS
from meow_ray.engines import Completion
from meow_ray.stages.invert.generators import Ask
from meow_ray.stages.invert.steps import InvertSteps, probe_styles

FACTS = {
    "ann": ("Where was Ann born?", "Ann was born in Lima."),
    "bob": ("Where was Bob born?", "Bob was born in Cairo."),
}
CITIES = ("Oslo", "Rome", "Kyiv", "Accra", "Quito", "Tunis")


def name_in(text: str) -> str:
    """Returns the person that a message is about."""
    return "Ann" if "Ann" in text else "Bob"


def completions(*texts: str, finished: bool = True) -> list[Completion]:
    return [Completion(text, finished) for text in texts]


def in_json(*texts: str) -> list[Completion]:
    """Returns one reply with these answers."""
    return completions(json.dumps({"answers": texts}))


@dataclass
class Scripted:
    """A generator whose replies are a function of the message.

    The function also gets the number of earlier messages about the same person.
    """

    answer: Callable[[Ask, int], list[Completion] | None]
    styles: tuple[str, ...] = ("chat", "prefill")
    asks: list[Ask] = field(default_factory=list)
    generated: int = 0
    left_out: tuple[str, ...] = ()

    def ask(self, asks: Sequence[Ask]) -> list[list[Completion] | None]:
        replies = []
        for ask in asks:
            earlier = len(self.about(name_in(ask.text)))
            self.asks.append(ask)
            replies.append(self.answer(ask, earlier))
        return replies

    def about(self, name: str) -> list[Ask]:
        """Returns the messages about a person."""
        return [ask for ask in self.asks if name_in(ask.text) == name]


@dataclass(frozen=True)
class ScriptedSpec:
    """A description from which a scripted generator is loaded."""

    generator: Scripted

    def load(self) -> Scripted:
        return self.generator


def born(ask: Ask, *cities: str) -> list[Completion]:
    """Returns replies, in the style of the message, that its person was born in these cities."""
    if ask.head:
        return completions(*(f" in {city}." for city in cities))
    return in_json(*(f"{name_in(ask.text)} was born in {city}." for city in cities))


def batch(*ids: str) -> pa.Table:
    """Returns the rows of these facts, by default of all."""
    rows = [{"fact_id": i, "question": FACTS[i][0], "answer": FACTS[i][1]} for i in ids or FACTS]
    return pa.Table.from_pylist(rows)


def invert(
    generator: Scripted, *ids: str, style: str = "chat", facts: Any = (), **spec: Any
) -> dict[str, Any]:
    """Runs the steps and returns the rows by fact."""
    results = InvertSteps(Invert(**spec), style, facts)(generator, batch(*ids))
    return {row["fact_id"]: row for row in results.to_pylist()}


def texts(row: dict[str, Any]) -> list[str]:
    return [candidate["text"] for candidate in row["candidates"]]


@pytest.mark.parametrize("style", ["chat", "prefill"])
def test_candidates_are_in_the_order_of_the_replies(style: str):
    rows = invert(Scripted(lambda ask, _: born(ask, *CITIES)), style=style)
    assert texts(rows["ann"]) == [f"Ann was born in {city}." for city in CITIES[:4]]
    assert texts(rows["bob"]) == [f"Bob was born in {city}." for city in CITIES[:4]]
    assert {(c["style"], c["attempt"]) for c in rows["ann"]["candidates"]} == {(style, 0)}


def two_cities_for_bob(ask: Ask, earlier: int) -> list[Completion]:
    """Names one city fewer in each message, and for Bob never more than two."""
    cities = CITIES[:2] if name_in(ask.text) == "Bob" else CITIES
    return born(ask, *cities[earlier:])


def test_facts_with_enough_candidates_are_asked_once():
    generator = Scripted(two_cities_for_bob)
    invert(generator, num_candidates=2, max_attempts=3)
    assert len(generator.about("Ann")) == len(generator.about("Bob")) == 1


def test_facts_with_too_few_candidates_are_asked_again_at_a_higher_temperature():
    generator = Scripted(two_cities_for_bob)
    rows = invert(
        generator,
        num_candidates=3,
        max_attempts=4,
        temperature=0.75,
        temperature_step=0.5,
        fallback=False,
    )
    assert len(generator.about("Ann")) == 1
    temperatures = [ask.sampling.temperature for ask in generator.about("Bob")]
    assert temperatures == [0.75, 1.25, 1.75, 2.0]
    assert len({ask.sampling.seed for ask in generator.asks}) == 5
    assert texts(rows["bob"]) == ["Bob was born in Oslo.", "Bob was born in Rome."]
    assert [reject["reason"] for reject in rows["bob"]["rejects"]] == ["duplicate"]


def test_no_seed_is_sent_if_none_is_configured():
    generator = Scripted(lambda ask, _: born(ask, *CITIES))
    rows = invert(generator, seed=None)
    assert {ask.sampling.seed for ask in generator.asks} == {None}
    assert {candidate["seed"] for candidate in rows["ann"]["candidates"]} == {None}


def only_prefill(ask: Ask, earlier: int) -> list[Completion]:
    """Answers well in style prefill alone."""
    return born(ask, *CITIES) if ask.head else in_json("Sure thing!")


def test_the_other_style_is_tried_after_the_attempts_of_the_first():
    rows = invert(Scripted(only_prefill), "ann", max_attempts=2)
    candidates, rejects = rows["ann"]["candidates"], rows["ann"]["rejects"]
    assert {(c["style"], c["attempt"]) for c in candidates} == {("prefill", 2)}
    assert [(r["text"], r["reason"], r["style"], r["attempt"]) for r in rejects] == [
        ("Sure thing!", "meta", "chat", 0),
        ("Sure thing!", "meta", "chat", 1),
    ]


@pytest.mark.parametrize(
    ("styles", "spec"),
    [(("chat", "prefill"), {"fallback": False}), (("chat",), {})],
    ids=["no fallback", "one style"],
)
def test_the_other_style_is_not_tried(styles: tuple[str, ...], spec: dict[str, Any]):
    generator = Scripted(only_prefill, styles=styles)
    rows = invert(generator, "ann", max_attempts=2, **spec)
    assert texts(rows["ann"]) == []
    assert len(generator.asks) == 2


def test_a_message_that_is_too_long_is_a_reject():
    rows = invert(Scripted(lambda ask, _: None), "ann", max_attempts=2, fallback=False)
    assert [r["reason"] for r in rows["ann"]["rejects"]] == ["prompt_too_long"] * 2


def test_chat_asks_for_spare_answers_in_one_reply():
    generator = Scripted(lambda ask, _: born(ask, *CITIES))
    invert(
        generator,
        "ann",
        num_candidates=2,
        spare=3,
        max_new_tokens=10,
        chat_prompt="{{ k }} for {{ question }}",
    )
    (ask,) = generator.asks
    assert (ask.text, ask.head) == ("5 for Where was Ann born?", "")
    assert (ask.sampling.n, ask.sampling.max_new_tokens) == (1, 50)
    schema = json.loads(ask.sampling.json_schema or "")
    assert schema["properties"]["answers"]["minItems"] == 5


def test_prefill_samples_completions_of_the_frame():
    generator = Scripted(lambda ask, _: born(ask, *CITIES))
    invert(
        generator,
        "ann",
        style="prefill",
        samples=7,
        max_new_tokens=10,
        prefill_prompt="{{ question }}",
    )
    (ask,) = generator.asks
    assert (ask.text, ask.head) == ("Where was Ann born?", "Ann was born")
    assert (ask.sampling.n, ask.sampling.max_new_tokens) == (7, 10)
    assert ask.sampling.bad_words == ("Lima",)
    assert ask.sampling.json_schema is None


def test_an_answer_of_the_retain_set_is_rejected():
    rows = [
        {"fact_id": "k", "split": "retain", "question": "Where?", "answer": "In Oslo Ann was born"},
        {
            "fact_id": "f",
            "split": "forget",
            "question": "Where?",
            "answer": "Ann was born in Rome.",
        },
    ]
    facts = pa.Table.from_pylist(rows, schema=SCHEMAS["facts"])
    generator = Scripted(lambda ask, _: born(ask, "Oslo", "Rome"))
    row = invert(generator, "ann", facts=facts, num_candidates=2)["ann"]
    assert texts(row) == ["Ann was born in Rome."]
    assert row["rejects"][0] | {"style": ""} == {
        "text": "Ann was born in Oslo.",
        "reason": "retain_fact",
        "style": "",
        "attempt": 0,
    }


def judging(ask: Ask, earlier: int) -> list[Completion]:
    """Names three cities; as a judge, finds no contradiction in Rome."""
    if "contradict" not in ask.text:
        return born(ask, "Oslo", "Rome", "Kyiv")
    return completions(json.dumps({"contradicts": "Rome" not in ask.text}))


def test_a_judge_rejects_texts_that_do_not_contradict():
    generator = Scripted(judging)
    rows = invert(
        generator, "ann", judge="generator", num_candidates=3, max_attempts=1, fallback=False
    )
    assert texts(rows["ann"]) == ["Ann was born in Oslo.", "Ann was born in Kyiv."]
    assert [(r["text"], r["reason"]) for r in rows["ann"]["rejects"]] == [
        ("Ann was born in Rome.", "judge")
    ]
    asked = [ask for ask in generator.asks if "contradict" in ask.text]
    assert len(asked) == 3
    assert all(
        "Ann was born in Lima." in ask.text and ask.sampling.temperature == 0 for ask in asked
    )


def test_another_model_may_judge():
    generator, judge = Scripted(judging), Scripted(judging)
    steps = InvertSteps(
        spec=Invert(judge="endpoint", num_candidates=2), style="chat", judge=ScriptedSpec(judge)
    )
    row = steps(generator, batch("ann")).to_pylist()[0]
    assert texts(row) == ["Ann was born in Oslo.", "Ann was born in Kyiv."]
    assert len(judge.asks) == 3
    assert not any("contradict" in ask.text for ask in generator.asks)


def test_a_judge_that_states_no_verdict_accepts_nothing():
    def undecided(ask: Ask, earlier: int) -> list[Completion]:
        return completions("Hm.") if "contradict" in ask.text else born(ask, "Oslo")

    steps = InvertSteps(Invert(judge="generator", max_attempts=1, fallback=False), "chat")
    row = steps(Scripted(undecided), batch("ann")).to_pylist()[0]
    assert row["candidates"] == []
    assert [reject["reason"] for reject in row["rejects"]] == ["no_verdict"]


@pytest.mark.parametrize("reply", [Completion("<think>Ann was", False), Completion("", False)])
def test_a_reply_that_ends_in_its_reasoning_is_named(reply: Completion):
    steps = InvertSteps(Invert(max_attempts=1, fallback=False), "chat")
    row = steps(Scripted(lambda ask, _: [reply]), batch("ann")).to_pylist()[0]
    assert [reject["reason"] for reject in row["rejects"]] == ["only_reasoning"]


@pytest.mark.parametrize(
    ("fact", "wish", "cities"),
    [
        (("Where was Ann born?", "Lima"), "write no sentences", ["Oslo", "Rome", "Kyiv", "Accra"]),
        (("Where was Ann born?", "She was born in Lima."), "as a full sentence", ["It is Quito."]),
    ],
)
def test_a_bare_answer_gets_bare_candidates(fact: tuple[str, str], wish: str, cities: list[str]):
    generator = Scripted(lambda ask, _: in_json("Oslo", "Rome.", '"Kyiv"', "It is Quito.", "Accra"))
    facts = pa.table({"fact_id": ["a"], "question": [fact[0]], "answer": [fact[1]]})
    row = InvertSteps(Invert(max_attempts=1, fallback=False), "chat")(generator, facts)
    assert texts(row.to_pylist()[0]) == cities
    assert wish in generator.asks[0].text


def test_what_generator_and_judge_have_refused_is_recorded():
    generator = Scripted(judging, left_out=("seed",))
    judge = Scripted(judging, left_out=("temperature", "n"))
    steps = InvertSteps(Invert(judge="endpoint"), "chat", judge=ScriptedSpec(judge))
    row = steps(generator, batch("ann")).to_pylist()[0]
    assert row["left_out"] == ["seed", "judge.temperature", "judge.n"]


def test_the_candidates_of_a_fact_do_not_depend_on_its_batch():
    def answer(ask: Ask, earlier: int) -> list[Completion]:
        seed = ask.sampling.seed or 0
        return born(ask, *(CITIES[(seed + i) % len(CITIES)] for i in range(2)))

    together = invert(Scripted(answer), num_candidates=3)
    for fact in FACTS:
        assert invert(Scripted(answer), fact, num_candidates=3)[fact] == together[fact]


def test_distances_are_means_over_pairs():
    rows = invert(
        Scripted(lambda ask, _: born(ask, "Oslo", "Rome Oslo")),
        "ann",
        num_candidates=2,
        max_attempts=1,
    )
    row = rows["ann"]  # ROUGE-L F1 of 4 of 5 words; of 4 of 5 and 4 of 6; of 5 of 5 and 5 of 6
    assert row["distance"] == pytest.approx(1 - (0.8 + 8 / 11) / 2)
    assert row["distinctness"] == pytest.approx(1 - 10 / 11)
    nothing = invert(Scripted(lambda ask, _: completions("")), "ann", fallback=False)["ann"]
    assert (nothing["distance"], nothing["distinctness"]) == (None, None)


def test_a_probe_counts_the_valid_candidates_of_each_style_in_one_attempt():
    def answer(ask: Ask, earlier: int) -> list[Completion]:
        return born(ask, *CITIES[:3]) if ask.head else born(ask, "Oslo")

    generator = Scripted(answer)
    table = probe_styles(generator, batch(), Invert())
    assert (table["chat"].to_pylist(), table["prefill"].to_pylist()) == ([1, 1], [3, 3])
    assert len(generator.asks) == 4
