import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Invert
from meow_ray.core.schema import SCHEMAS
from meow_ray.engines import Completion
from meow_ray.stages.invert import steps as steps_module
from meow_ray.stages.invert.generators import Ask
from meow_ray.stages.invert.steps import InvertSteps, probe

FACTS = {
    "ann": ("Where was Ann born?", "Ann was born in Lima."),
    "bob": ("Where was Bob born?", "Bob was born in Cairo."),
}
CITIES = ("Oslo", "Rome", "Kyiv", "Accra", "Quito", "Tunis")


def name_in(text: str) -> str:
    return "Ann" if "Ann" in text else "Bob"


def said(*texts: str, finished: bool = True) -> list[Completion]:
    return [Completion(text, finished) for text in texts]


def in_json(*texts: str) -> list[Completion]:
    return said(json.dumps({"answers": texts}))


@dataclass
class Scripted:
    """Answers by a function of the message and of how often the fact was asked before."""

    answer: Callable[[Ask, int], list[Completion] | None]
    styles: tuple[str, ...] = ("chat", "prefill")
    asks: list[Ask] = field(default_factory=list)

    def ask(self, asks: Sequence[Ask]) -> list[list[Completion] | None]:
        out = []
        for ask in asks:
            before = sum(name_in(old.text) == name_in(ask.text) for old in self.asks)
            self.asks.append(ask)
            out.append(self.answer(ask, before))
        return out

    def of(self, name: str) -> list[Ask]:
        return [ask for ask in self.asks if name_in(ask.text) == name]


def born(ask: Ask, *cities: str) -> list[Completion]:
    """Says in the style of the message that its person was born in these cities."""
    if ask.head:
        return said(*(f" in {city}." for city in cities))
    return in_json(*(f"{name_in(ask.text)} was born in {city}." for city in cities))


def batch(*ids: str) -> pa.Table:
    rows = [{"fact_id": i, "question": FACTS[i][0], "answer": FACTS[i][1]} for i in ids or FACTS]
    return pa.Table.from_pylist(rows)


def invert(
    generator: Scripted, *ids: str, style: str = "chat", facts: Any = (), **spec: Any
) -> dict[str, Any]:
    """Returns the rows by fact."""
    done = InvertSteps(Invert(**spec), style, facts)(generator, batch(*ids))
    return {row["fact_id"]: row for row in done.to_pylist()}


def texts(row: dict[str, Any]) -> list[str]:
    return [candidate["text"] for candidate in row["candidates"]]


@pytest.mark.parametrize("style", ["chat", "prefill"])
def test_a_fact_has_its_candidates_in_the_order_of_the_replies(style: str):
    found = invert(Scripted(lambda ask, _: born(ask, *CITIES)), style=style)
    assert texts(found["ann"]) == [f"Ann was born in {city}." for city in CITIES[:4]]
    assert texts(found["bob"]) == [f"Bob was born in {city}." for city in CITIES[:4]]
    assert {(c["style"], c["attempt"]) for c in found["ann"]["candidates"]} == {(style, 0)}


def test_only_facts_with_too_few_are_asked_again_and_warmer():
    def answer(ask: Ask, before: int) -> list[Completion]:
        cities = CITIES[:2] if name_in(ask.text) == "Bob" else CITIES
        return born(ask, *cities[before:])

    generator = Scripted(answer)
    found = invert(
        generator, num_candidates=2, max_attempts=3, temperature=0.75, temperature_step=0.5
    )
    assert len(generator.of("Ann")) == len(generator.of("Bob")) == 1

    generator = Scripted(answer)
    found = invert(
        generator,
        num_candidates=3,
        max_attempts=4,
        temperature=0.75,
        temperature_step=0.5,
        fallback=False,
    )
    assert len(generator.of("Ann")) == 1
    assert [ask.sampling.temperature for ask in generator.of("Bob")] == [0.75, 1.25, 1.75, 2.0]
    assert len({ask.sampling.seed for ask in generator.asks}) == 5
    assert texts(found["bob"]) == ["Bob was born in Oslo.", "Bob was born in Rome."]
    assert [r["reason"] for r in found["bob"]["rejects"]] == ["duplicate"]


def test_a_seed_is_not_sent_where_none_is_wanted():
    generator = Scripted(lambda ask, _: born(ask, *CITIES))
    found = invert(generator, seed=None)
    assert {ask.sampling.seed for ask in generator.asks} == {None}
    assert {candidate["seed"] for candidate in found["ann"]["candidates"]} == {None}


def test_what_one_style_cannot_do_the_other_is_asked_for():
    def answer(ask: Ask, before: int) -> list[Completion]:
        return born(ask, *CITIES) if ask.head else in_json("Sure thing!")

    found = invert(Scripted(answer), "ann", max_attempts=2)
    assert {(c["style"], c["attempt"]) for c in found["ann"]["candidates"]} == {("prefill", 2)}
    assert [
        (r["text"], r["reason"], r["style"], r["attempt"]) for r in found["ann"]["rejects"]
    ] == [
        ("Sure thing!", "meta", "chat", 0),
        ("Sure thing!", "meta", "chat", 1),
    ]
    for generator, spec in (
        (Scripted(answer), {"fallback": False}),
        (Scripted(answer, styles=("chat",)), {}),
    ):
        found = invert(generator, "ann", max_attempts=2, **spec)
        assert (texts(found["ann"]), len(generator.asks)) == ([], 2)


def test_a_message_that_is_too_long_is_a_reject():
    found = invert(Scripted(lambda ask, _: None), "ann", max_attempts=2, fallback=False)
    assert [r["reason"] for r in found["ann"]["rejects"]] == ["prompt_too_long"] * 2


def test_chat_asks_for_spare_answers_in_json_and_prefill_for_samples():
    generator = Scripted(lambda ask, _: born(ask, *CITIES))
    invert(
        generator,
        "ann",
        num_candidates=2,
        spare=3,
        max_new_tokens=10,
        chat_prompt="{{ k }} for {{ question }}",
    )
    invert(
        generator,
        "ann",
        style="prefill",
        samples=7,
        max_new_tokens=10,
        prefill_prompt="{{ question }}",
    )
    chat, prefill = generator.asks
    assert (chat.text, chat.head, chat.sampling.n, chat.sampling.max_new_tokens) == (
        "5 for Where was Ann born?",
        "",
        1,
        50,
    )
    assert json.loads(chat.sampling.json_schema or "")["properties"]["answers"]["minItems"] == 5
    assert (prefill.text, prefill.head) == ("Where was Ann born?", "Ann was born")
    assert (prefill.sampling.n, prefill.sampling.max_new_tokens, prefill.sampling.bad_words) == (
        7,
        10,
        ("Lima",),
    )
    assert prefill.sampling.json_schema is None


def test_what_a_fact_to_keep_says_is_refused():
    rows = [
        {"fact_id": "k", "split": "retain", "question": "Where?", "answer": "In Oslo Ann was born"}
    ]
    rows += [
        {"fact_id": "f", "split": "forget", "question": "Where?", "answer": "Ann was born in Rome."}
    ]
    facts = pa.Table.from_pylist(rows, schema=SCHEMAS["facts"])
    found = invert(
        Scripted(lambda ask, _: born(ask, "Oslo", "Rome")), "ann", facts=facts, num_candidates=2
    )
    assert texts(found["ann"]) == ["Ann was born in Rome."]
    assert found["ann"]["rejects"][0] | {"style": ""} == {
        "text": "Ann was born in Oslo.",
        "reason": "retain_fact",
        "style": "",
        "attempt": 0,
    }


def judging(ask: Ask, before: int) -> list[Completion]:
    if "contradict" not in ask.text:
        return born(ask, "Oslo", "Rome", "Kyiv")
    return said(json.dumps({"contradicts": "Rome" not in ask.text}))


def test_a_judge_refuses_what_does_not_contradict():
    generator = Scripted(judging)
    found = invert(
        generator, "ann", judge="generator", num_candidates=3, max_attempts=1, fallback=False
    )
    assert texts(found["ann"]) == ["Ann was born in Oslo.", "Ann was born in Kyiv."]
    assert [(r["text"], r["reason"]) for r in found["ann"]["rejects"]] == [
        ("Ann was born in Rome.", "judge")
    ]
    asked = [ask for ask in generator.asks if "contradict" in ask.text]
    assert len(asked) == 3
    assert all(
        "Ann was born in Lima." in ask.text and ask.sampling.temperature == 0 for ask in asked
    )


def test_another_may_judge(monkeypatch: pytest.MonkeyPatch):
    generator, judge = Scripted(judging), Scripted(judging)
    monkeypatch.setattr(steps_module, "_loaded", {"there": judge}.__getitem__)
    steps = InvertSteps(
        Invert(judge="endpoint", num_candidates=2),
        "chat",
        judge="there",  # type: ignore[arg-type]
    )
    row = steps(generator, batch("ann")).to_pylist()[0]
    assert texts(row) == ["Ann was born in Oslo.", "Ann was born in Kyiv."]
    assert len(judge.asks) == 3
    assert not any("contradict" in ask.text for ask in generator.asks)


def test_a_fact_has_the_same_candidates_alone_and_among_others():
    def answer(ask: Ask, before: int) -> list[Completion]:
        seed = ask.sampling.seed or 0
        return born(ask, *(CITIES[(seed + i) % len(CITIES)] for i in range(2)))

    together = invert(Scripted(answer), num_candidates=3)
    for fact in FACTS:
        assert invert(Scripted(answer), fact, num_candidates=3)[fact] == together[fact]


def test_distances_are_means_over_pairs():
    found = invert(
        Scripted(lambda ask, _: born(ask, "Oslo", "Rome Oslo")),
        "ann",
        num_candidates=2,
        max_attempts=1,
    )
    row = found["ann"]  # ROUGE-L F1 of 4 of 5 words; of 4 of 5 and 4 of 6; of 5 of 5 and 5 of 6
    assert row["distance"] == pytest.approx(1 - (0.8 + 8 / 11) / 2)
    assert row["distinctness"] == pytest.approx(1 - 10 / 11)
    nothing = invert(Scripted(lambda ask, _: said("")), "ann", fallback=False)["ann"]
    assert (nothing["distance"], nothing["distinctness"]) == (None, None)


def test_a_probe_counts_what_each_style_gives_in_one_attempt():
    def answer(ask: Ask, before: int) -> list[Completion]:
        return born(ask, *CITIES[:3]) if ask.head else born(ask, "Oslo")

    generator = Scripted(answer)
    table = probe(generator, batch(), Invert())
    assert (table["chat"].to_pylist(), table["prefill"].to_pylist()) == ([1, 1], [3, 3])
    assert len(generator.asks) == 4
