"""What is evaluated, and what a batch of it comes to on a model that knows a few facts by heart."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from meow_ray.config import Evaluate, Memo
from meow_ray.config.files import load_config
from meow_ray.core import storage, tables
from meow_ray.core.schema import EXAMPLES_SCHEMA, ROW, SCHEMAS
from meow_ray.core.tables import Query
from meow_ray.engines import Engine, EngineSpec, build
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.prompts import IGNORE, Prompter
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.stages.evaluate import aggregate, examples, sets, suites
from meow_ray.stages.evaluate.sets import SET_SCHEMA
from meow_ray.stages.evaluate.steps import EvaluateSteps
from meow_ray.stages.evaluate.suites import AFFIRMATIVE, ROWS_SCHEMA
from meow_ray.stages.evaluate.tofu import Results
from meow_ray.stages.ingest.facts import fact_id
from tests.support.tiny import KNOWN, memorise

BORN = ("Where was Basil born?", "Basil was born in Kuwait City.")


def facts(*rows: tuple[str, str], split: str = "forget") -> list[dict[str, str]]:
    return [{"fact_id": fact_id(q, a), "split": split, "question": q, "answer": a} for q, a in rows]


def source(rows: list[dict[str, str]]) -> Query:
    return Query(
        "SELECT * FROM facts", {"facts": pa.Table.from_pylist(rows, schema=SCHEMAS["facts"])}
    )


def a_set(*rows: tuple[str, str], **columns: Any) -> pa.Table:
    return pa.Table.from_pylist([fact | columns for fact in facts(*rows)], schema=SET_SCHEMA)


# --- rows ---------------------------------------------------------------------------------------


def test_each_split_and_set_is_a_suite_and_each_attack_is_one_of_the_forget_set():
    sets = {
        "world_facts": a_set(
            ("Capital of Peru?", "It is Lima."), perturbed_answer=["Quito", "Bogota"]
        )
    }
    table = suites.rows(
        source([*facts(BORN), *facts(("R?", "S."), split="retain")]), sets, [], Evaluate()
    )
    assert table.schema == ROWS_SCHEMA
    rows = {row["suite"]: row for row in table.to_pylist()}
    assert [row["suite"] for row in table.to_pylist()] == list(rows)  # one each
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


def test_a_perturbed_file_stands_for_the_split_and_brings_the_question_in_other_words():
    given = a_set(
        BORN,
        paraphrased_question="Which city?",
        paraphrased_answer="Kuwait City.",
        perturbed_answer=["Cairo."],
    )
    table = suites.rows(
        source(facts(BORN)), {"forget": given}, [], Evaluate(attacks=("paraphrase",))
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
    ("name", "rows", "complaint"),
    [
        (
            "forget",
            [("R?", "S.")],
            "not the forget set of this run: 1 of its facts are not in `ingest.forget`, and 1 of",
        ),
        ("forget", [BORN, ("R?", "S.")], "1 of its facts are not in `ingest.forget`, and 0 of"),
        ("retain", [BORN], "evaluate.sets.retain: 1 of its facts are in the forget set"),
        ("holdout", [BORN], "evaluate.sets.holdout: 1 of its facts are in the forget set"),
        ("holdout", [("T?", "U.")], "evaluate.sets.holdout: 1 of its facts are in the retain set"),
    ],
)
def test_a_set_of_another_split_is_refused(name: str, rows: list[tuple[str, str]], complaint: str):
    known = source([*facts(BORN), *facts(("T?", "U."), split="retain")])
    with pytest.raises(MeowError, match=complaint):
        suites.rows(known, {name: a_set(*rows)}, [], Evaluate())


def test_a_holdout_set_that_shares_facts_with_the_set_retain_is_refused():
    sets = {"holdout": a_set(("R?", "S."), ("T?", "U.")), "retain": a_set(("T?", "U."))}
    with pytest.raises(
        MeowError, match=r"evaluate.sets.holdout: 1 of its facts are in the retain set"
    ):
        suites.rows(source(facts(BORN)), sets, [], Evaluate())


def test_samples_are_drawn_from_every_set_but_forget():
    many = [(f"Q{i}?", f"A{i}.") for i in range(20)]
    spec = Evaluate(sample=5, memo_sample=2, attacks=())
    table = suites.rows(
        source([*facts(*many), *facts(*[(q + "r", a) for q, a in many], split="retain")]),
        {},
        [],
        spec,
    )
    counts: dict[str, list[bool]] = {}
    for row in table.to_pylist():
        counts.setdefault(row["suite"], []).append(row["with_memo"])
    assert {suite: (len(found), sum(found)) for suite, found in counts.items()} == {
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
def test_a_prefix_ends_with_a_word_and_leaves_something(answer: str, percent: int, start: str):
    assert answer[: suites.prefix_length(answer, percent)] == start


# --- a batch ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(
    tiny_model: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    folder = memorise(
        tiny_model, tiny_tokenizer, KNOWN, tmp_path_factory.mktemp("models") / "memorised"
    )
    return build(EngineSpec(refs.pin(str(folder), None, "model"), "transformers", "float32"))


def answered(engine: Engine, table: pa.Table, **spec: Any) -> list[dict[str, Any]]:
    steps = EvaluateSteps(
        Evaluate(max_new_tokens=30, **spec), Memo(max_new_tokens=8, stride=9), "chat"
    )
    return list(steps.finish(engine.tokenizer, steps.generate(engine, table)).to_pylist())


@pytest.fixture(scope="module")
def said(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    wrong = ["It is Quito", "It is somewhere else entirely"]
    sets = {
        "forget": a_set(*KNOWN, perturbed_answer=wrong, paraphrased_answer="Lima it is"),
        "world_facts": a_set(("Who?", "Nobody knows"), perturbed_answer=wrong),
    }
    spec = Evaluate(membership=("min_k", "min_k_pp"))
    table = suites.rows(
        source(facts(*KNOWN)), sets, ["The first half. The other half of it."], spec
    )
    out: dict[str, list[dict[str, Any]]] = {}
    for row in answered(engine, table, membership=("min_k", "min_k_pp")):
        out.setdefault(row["suite"], []).append(row)
    return out


def test_a_fact_known_by_heart_is_found_so_by_every_figure(said: dict[str, list[dict[str, Any]]]):
    for row in said["forget"]:
        assert row["generated"] == row["answer"]
        assert row["rougeL_recall"] == row["leak"] == row["exact_memorization"] == 1.0
        assert row["extraction_strength"] == 1.0
        assert row["probability"] > 0.5
    for percent in suites.PREFIXES:
        assert all(row["rougeL_recall"] == 1.0 for row in said[f"forget_prefix{percent}"])
    assert said["world_facts"][0]["extraction_strength"] < 0.5


def test_attacks_have_no_probabilities_and_passages_no_leak(said: dict[str, list[dict[str, Any]]]):
    for row in said["forget_affirmative"]:
        assert {
            row[name] for name in ("probability", "loss", "memo", "min_k", "truth_ratio", "rep3")
        } == {None}
    passage = said["text"][0]
    assert passage["leak"] is None
    assert passage["bleu"] is not None
    assert passage["num_tokens"] == len(
        passage["answer"]
    )  # bytes: no end of the sequence behind a part of a text


def test_a_passage_goes_on_for_as_long_as_its_second_half_is(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    table = suites.rows(
        source(facts(BORN)), {}, ["The first half. " + "And more. " * 9], Evaluate(attacks=())
    )
    calls, generate = [], engine.generate
    monkeypatch.setattr(
        engine, "generate", lambda *arguments: calls.append(arguments) or generate(*arguments)
    )
    answered(engine, table)
    _, sampling = calls[0]
    second = table["answer"].to_pylist()[-1]
    assert [one.max_new_tokens for one in sampling] == [30, len(second)]


def test_log_probabilities_are_the_plain_models_in_training_tokens(
    engine: Engine, said: dict[str, list[dict[str, Any]]]
):
    """The batch has mixed lengths, so that padding and positions count; the tokens are those of training."""
    import torch

    prompter = Prompter(engine.tokenizer, "chat")
    network = engine.model  # type: ignore[attr-defined]

    def loss(question: str, answer: str) -> float:
        tokens, labels = prompter.encode_pair(question, answer)
        with torch.no_grad():
            logs = network(torch.tensor([tokens])).logits[0].log_softmax(-1)
        found = [
            float(logs[i - 1, tokens[i]]) for i in range(1, len(tokens)) if labels[i] != IGNORE
        ]
        return -sum(found) / len(found)

    rows = said["forget"] + said["world_facts"]
    assert len({len(row["answer"]) for row in rows}) > 2
    for row in rows:
        own = loss(row["question"], row["answer"])
        wrong = [loss(row["question"], text) for text in row["perturbed_answer"]]
        assert row["loss"] == pytest.approx(own, abs=1e-4)
        assert row["perturbed_losses"] == pytest.approx(wrong, abs=1e-4)
        right = own
        if row["suite"] == "forget":
            right = loss(row["question"], row["paraphrased_answer"])
            assert row["paraphrased_loss"] == pytest.approx(right, abs=1e-4)
            assert row["probability"] == pytest.approx(math.exp(-own), rel=1e-4)
        else:
            options = sum(math.exp(-value) for value in [own, *wrong])
            assert row["probability"] == pytest.approx(math.exp(-own) / options, rel=1e-4)
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
)
def test_what_does_not_fit_is_refused(
    engine: Engine, fact: tuple[str, str], wrong: list[str], passages: list[str], suite: str
):
    given = a_set(fact, perturbed_answer=wrong)
    table = suites.rows(source(facts(fact)), {"forget": given}, passages, Evaluate(attacks=()))
    with pytest.raises(
        MeowError, match=rf"of {suite} has \d+ tokens with its answer, the model reads 1023"
    ):
        answered(engine, table)


# --- examples -----------------------------------------------------------------------------------


def test_examples_say_which_replies_state_an_inverted_fact(tmp_path: Path):
    rows = suites.rows(source(facts(BORN, ("R?", "S."))), {}, [], Evaluate(attacks=()))

    def reply(text: str) -> Query:
        values = {"generated": pa.array([text] * rows.num_rows)}
        for field in EXAMPLES_SCHEMA:
            if field.name not in {*rows.column_names, *values, "model", "states_inverted"}:
                values[field.name] = pa.nulls(rows.num_rows, field.type)
        return Query(
            "SELECT * FROM t",
            {"t": pa.table({**dict(zip(rows.column_names, rows.columns, strict=True)), **values})},
        )

    chosen = [
        {
            "fact_id": fact_id(*BORN),
            "candidate_id": i,
            "rank": i,
            "question": BORN[0],
            "answer": text,
            "memo": 0.5,
        }
        for i, text in enumerate(["Basil was born in Cairo.", "Basil was born in Oslo."])
    ]
    path = str(tmp_path / "examples.parquet")
    selected = pa.Table.from_pylist(chosen, schema=SCHEMAS["selected"])
    examples.write_examples(
        {"before": reply("Kuwait City"), "after": reply("In Oslo")}, selected, path
    )
    table = storage.read_table([path])
    assert table.schema.remove_metadata() == EXAMPLES_SCHEMA
    found = {(row["question"], row["model"]): row["states_inverted"] for row in table.to_pylist()}
    assert found == {
        (BORN[0], "before"): 0.0,
        (BORN[0], "after"): 1.0,
        ("R?", "before"): None,
        ("R?", "after"): None,
    }
    keys = list(
        zip(*(table[name].to_pylist() for name in ("suite", "fact_id", "model")), strict=True)
    )
    assert keys == sorted(keys)
    assert tables.count_rows([path]) == 4


# --- references ---------------------------------------------------------------------------------


def example_query(count: int) -> Query:
    rows = suites.rows(
        source(facts(*[(f"Q{i}?", f"A{i}.") for i in range(count)])), {}, [], Evaluate(attacks=())
    )
    figures: dict[str, Any] = {
        "generated": "x",
        "loss": 0.5,
        "probability": 0.6,
        "rougeL_recall": 0.5,
        "truth_ratio": 0.5,
    }
    figures["perturbed_losses"] = [1.0, 2.0]
    values = {
        field.name: pa.array([figures.get(field.name)] * count, field.type)
        for field in EXAMPLES_SCHEMA
        if field.name not in {*rows.column_names, "model", "states_inverted"}
    }
    return Query(
        "SELECT * FROM t",
        {"t": pa.table(dict(zip(rows.column_names, rows.columns, strict=True)) | values)},
    )


def written(folder: Path, found: Query, imported: dict[str, Results] | None) -> pa.Table:
    nothing = SCHEMAS["selected"].empty_table()
    paths = (str(folder / "examples.parquet"), str(folder / "metrics.parquet"))
    spec = Evaluate(bootstrap_resamples=20)
    aggregate.write({"after": found}, nothing, spec, imported, [], paths)
    return storage.read_table([paths[1]])


def test_imported_results_give_forget_quality(tmp_path: Path):
    table = written(tmp_path, example_query(3), {"forget": Results(np.array([0.1, 0.2, 0.3]))})
    assert ("tofu", "forget_quality") in set(
        zip(*(table[name].to_pylist() for name in ("suite", "metric")), strict=True)
    )


@pytest.mark.parametrize(
    ("wrong", "imported", "complaint"),
    [
        (
            ["B."],
            {"forget": Results(np.array([0.1, 0.2]))},
            "retain.json: its forget set has 2 rows, that of the model has 3",
        ),
        (
            ["B."],
            {"retain": Results(np.array([0.1, 0.2]))},
            "truth ratios of the forget set, retain.json has none",
        ),
        (
            None,
            {"forget": Results(np.array([0.1] * 3))},
            "truth ratios of the forget set, evaluate.sets.forget has none",
        ),
        (
            ["B."],
            {"forget": Results(np.array([0.1] * 3), answers=("A0.", "A1.", "A9."))},
            "retain.json: another forget set; 1 of its 3 answers",
        ),
    ],
)
def test_a_reference_that_does_not_match_is_refused(
    wrong: list[str] | None, imported: dict[str, Results], complaint: str
):
    given = a_set(*[(f"Q{i}?", f"A{i}.") for i in range(3)], perturbed_answer=wrong)
    with pytest.raises(MeowError, match=complaint):
        sets.check_reference(given, imported, "retain.json")


def test_a_reference_without_a_perturbed_forget_set_is_refused():
    with pytest.raises(
        MeowError, match=r"truth ratios of the forget set, evaluate.sets.forget has none"
    ):
        sets.check_reference(None, {"forget": Results(np.array([0.1]))}, "retain.json")


def reference_of(place: str) -> Any:
    return Pipeline(load_config(None, [f"evaluate.retain_model={place}"])).artifact("retain_model")


def test_a_reference_is_a_model_or_its_results(tmp_path: Path, tiny_model: Path):
    log = tmp_path / "TOFU_EVAL.json"
    log.write_text('{"forget_truth_ratio": {"value_by_index": {"0": {"score": 0.5}}}}')
    first = reference_of(str(log))
    assert first.value["forget"].truth_ratio.tolist() == [0.5]
    log.write_text('{"forget_truth_ratio": {"value_by_index": {"0": {"score": 0.25}}}}')
    assert reference_of(str(log)).digest != first.digest
    assert reference_of(str(tiny_model)).value.uri == str(tiny_model)
    assert reference_of("null").digest == "none"


@pytest.mark.parametrize("name", ["nowhere.json", "./nowhere"])
def test_a_reference_that_is_not_there_is_refused_by_its_key(name: str):
    with pytest.raises(MeowError, match=r"`evaluate.retain_model`: there is no .*nowhere"):
        reference_of(name)
