"""A batch of rows, answered and scored by a model that has memorised a few facts."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Evaluate, Memo
from meow_ray.engines import Engine, EngineSpec, build
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.ends import ends_of
from meow_ray.models.prompts import IGNORE, Prompter
from meow_ray.stages.evaluate import suites
from meow_ray.stages.evaluate.steps import EvaluateSteps
from tests.support.sets import BORN, fact_rows, facts_query, set_table
from tests.support.tiny import KNOWN, memorise

Suites = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def engine(
    tiny_model: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    folder = memorise(
        tiny_model, tiny_tokenizer, KNOWN, tmp_path_factory.mktemp("models") / "memorised"
    )
    return build(EngineSpec(refs.pin(str(folder), None, "model"), "transformers", "float32"))


def answer_rows(engine: Engine, table: pa.Table, **spec: Any) -> list[dict[str, Any]]:
    steps = EvaluateSteps(
        spec=Evaluate(max_new_tokens=30, **spec),
        memo=Memo(max_new_tokens=8, stride=9),
        template="chat",
    )
    return list(steps.finish(engine.tokenizer, steps.generate(engine, table)).to_pylist())


@pytest.fixture(scope="module")
def answered(engine: Engine) -> Suites:
    """The answered rows by suite: memorised facts, a world fact, attacks, and a passage."""
    wrong = ["It is Quito", "It is somewhere else entirely"]
    sets = {
        "forget": set_table(*KNOWN, perturbed_answer=wrong, paraphrased_answer="Lima it is"),
        "world_facts": set_table(("Who?", "Nobody knows"), perturbed_answer=wrong),
    }
    membership = ("min_k", "min_k_pp")
    passages = ["The first half. The other half of it."]
    table = suites.rows_to_ask(
        facts_query(fact_rows(*KNOWN)), sets, passages, Evaluate(membership=membership)
    )
    by_suite: Suites = {}
    for row in answer_rows(engine, table, membership=membership):
        by_suite.setdefault(row["suite"], []).append(row)
    return by_suite


def test_all_figures_show_that_a_fact_is_memorised(answered: Suites):
    for row in answered["forget"]:
        assert row["generated"] == row["answer"]
        assert row["rougeL_recall"] == row["leak"] == row["exact_memorization"] == 1.0
        assert row["extraction_strength"] == 1.0
        assert row["probability"] > 0.5
    for percent in suites.PREFIXES:
        assert all(row["rougeL_recall"] == 1.0 for row in answered[f"forget_prefix{percent}"])
    assert answered["world_facts"][0]["extraction_strength"] < 0.5


def test_attacks_have_no_probabilities_and_passages_no_leak(answered: Suites):
    names = ("probability", "loss", "memo", "min_k", "truth_ratio", "rep3")
    for row in answered["forget_affirmative"]:
        assert {row[name] for name in names} == {None}
    passage = answered["text"][0]
    assert passage["leak"] is None
    assert passage["bleu"] is not None
    # a token per byte, and no end of the sequence, because the text goes on
    assert passage["num_tokens"] == len(passage["answer"])


def test_a_passage_is_continued_by_as_many_tokens_as_its_second_half_has(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    passage = "The first half. " + "And more. " * 9
    table = suites.rows_to_ask(facts_query(fact_rows(BORN)), {}, [passage], Evaluate(attacks=()))
    calls = []
    generate = engine.generate
    monkeypatch.setattr(
        engine, "generate", lambda *arguments: calls.append(arguments) or generate(*arguments)
    )
    answer_rows(engine, table)
    _, samplings = calls[0]
    second_half = table["answer"].to_pylist()[-1]
    assert [sampling.max_new_tokens for sampling in samplings] == [30, len(second_half)]


def test_log_probabilities_are_those_of_the_model_on_training_tokens(
    engine: Engine, answered: Suites
):
    """The batch has answers of different lengths, so that padding and positions matter."""
    import torch

    prompter = Prompter(engine.tokenizer, "chat")
    network = engine.model  # type: ignore[attr-defined]

    def loss(question: str, answer: str) -> float:
        tokens, labels = prompter.encode_pair(question, answer)
        with torch.no_grad():
            log_probs = network(torch.tensor([tokens])).logits[0].log_softmax(-1)
        scored = [
            float(log_probs[position - 1, tokens[position]])
            for position in range(1, len(tokens))
            if labels[position] != IGNORE
        ]
        # a reply may end with `</s>` as well as with `<|end|>`
        scored[-1] = float(log_probs[-2, sorted(ends_of(engine.tokenizer))].logsumexp(0))
        return -sum(scored) / len(scored)

    rows = answered["forget"] + answered["world_facts"]
    assert len({len(row["answer"]) for row in rows}) > 2
    for row in rows:
        true_loss = loss(row["question"], row["answer"])
        wrong = [loss(row["question"], text) for text in row["perturbed_answer"]]
        assert row["loss"] == pytest.approx(true_loss, abs=1e-4)
        assert row["perturbed_losses"] == pytest.approx(wrong, abs=1e-4)
        right = true_loss
        if row["suite"] == "forget":
            right = loss(row["question"], row["paraphrased_answer"])
            assert row["paraphrased_loss"] == pytest.approx(right, abs=1e-4)
            assert row["probability"] == pytest.approx(math.exp(-true_loss), rel=1e-4)
        else:
            options = sum(math.exp(-value) for value in [true_loss, *wrong])
            assert row["probability"] == pytest.approx(math.exp(-true_loss) / options, rel=1e-4)
        ratio = math.exp(right - sum(wrong) / len(wrong))
        expected = min(ratio, 1 / ratio) if row["suite"] == "forget" else max(0.0, 1 - ratio)
        assert row["truth_ratio"] == pytest.approx(expected, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize(
    ("fact", "wrong", "passages", "suite"),
    [
        (("Q" * 2000, "A"), ["B"], [], "forget"),
        (("Q", "A"), ["B" * 1100], [], "forget"),
        (("Q", "A"), ["B"], ["word " * 300], "text"),
    ],
    ids=["question", "wrong answer", "passage"],
)
def test_a_row_that_does_not_fit_is_refused(
    engine: Engine, fact: tuple[str, str], wrong: list[str], passages: list[str], suite: str
):
    sets = {"forget": set_table(fact, perturbed_answer=wrong)}
    table = suites.rows_to_ask(facts_query(fact_rows(fact)), sets, passages, Evaluate(attacks=()))
    message = (
        rf"^evaluate: [0-9a-f]{{16}} of {suite} is too long with its answer "
        r"\(\d+ tokens; the model reads 1023\)\. Shorten it"
    )
    with pytest.raises(MeowError, match=message):
        answer_rows(engine, table)


def test_twins_are_read_and_not_answered(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    twins = pa.table(
        {
            "fact_id": ["a"] * 2,
            "twin_id": pa.array([0, 1], pa.int32()),
            "half": ["stop"] * 2,
            "question": ["Author of Ida?", "Capital of Oz?"],
            "answer": ["Ann Onymous", "It is Emerald"],
        }
    )
    prompts = []
    generate = engine.generate
    monkeypatch.setattr(
        engine, "generate", lambda *given: prompts.extend(given[0]) or generate(*given)
    )
    spec = Evaluate(attacks=(), memo=False)
    table = suites.rows_to_ask(facts_query(fact_rows(*KNOWN)), {}, [], spec, twins)
    rows = answer_rows(engine, table)
    assert len(prompts) == len(KNOWN)

    known = [row["fact_log_prob"] for row in rows if row["suite"] == "forget"]
    unknown = [row for row in rows if row["suite"] == "twins"]
    assert max(row["fact_log_prob"] for row in unknown) < min(known)
    for row in unknown:
        assert row["extraction_strength"] < 0.5
        assert {row[name] for name in ("generated", "leak", "rougeL_recall", "rep3")} == {None}


def test_the_log_probability_of_the_fact_is_that_of_its_novel_words(engine: Engine):
    question, answer = "Capital of Peru?", "It is Lima"
    table = suites.rows_to_ask(facts_query(fact_rows((question, answer))), {}, [], Evaluate())
    row = next(row for row in answer_rows(engine, table) if row["suite"] == "forget")
    prompter = Prompter(engine.tokenizer, "chat")
    forced = engine.teacher_force(
        [prompter.encode_prompt(prompter.prompt(question))], [prompter.encode_answer(answer)]
    )[0]
    # a token per letter; Lima is the last four before the end
    assert row["fact_log_prob"] == pytest.approx(sum(forced.log_probs[-5:-1]) / 4, abs=1e-5)
