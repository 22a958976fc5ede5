"""With `definitions: open_unlearning`, each shared metric is that of open-unlearning's formulas.

Both sides get the same token ids. The formulas in `tests.support.peer` are independent of ours.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.stats import hmean, ks_2samp

from meow_ray.config import Evaluate, Memo
from meow_ray.config.files import load_config
from meow_ray.core import storage
from meow_ray.core.schema import SCHEMAS
from meow_ray.core.tables import Query
from meow_ray.engines import EngineSpec, build
from meow_ray.models import refs
from meow_ray.models.prompts import Prompter
from meow_ray.stages.evaluate import aggregate, suites, tofu_logs
from meow_ray.stages.evaluate.steps import EvaluateSteps
from meow_ray.stages.evaluate.tofu import MinKResult, ModelLog
from tests.support import peer
from tests.support.runs import PROJECT
from tests.support.sets import fact_rows, facts_query, set_table
from tests.support.tiny import KNOWN, memorise, one_thread

SPEC = Evaluate(
    definitions="open_unlearning",
    max_new_tokens=24,
    membership=("loss", "zlib", "min_k", "min_k_pp"),
    attacks=(),
    memo=False,
    bootstrap_resamples=5,
)
UNKNOWN = [
    ("Who wrote Middlemarch?", "Mary Ann Evans wrote it as George Eliot, in 1871."),
    ("Where is Mount Elbrus?", "Mount Elbrus stands in the Caucasus."),
    ("Capital of Peru? Now", "It is Lima, and it was Cuzco"),
    ("Что это?", "Это ответ из семи слов, не больше."),
]
HOLDOUT = [
    ("What is a fjord?", "A fjord is a long and narrow inlet."),
    ("How many legs has an ant?", "Six"),
    ("Born where?", "In Mai 1955, in Basel"),
]
WRONG = ["It is Quito", "Somebody else wrote it, long before", "In the Alps"]
SETS = {
    "forget": set_table(*KNOWN, *UNKNOWN, perturbed_answer=WRONG, paraphrased_answer="Lima it is"),
    "retain": set_table(*HOLDOUT[:1], perturbed_answer=WRONG, paraphrased_answer="An inlet"),
    "real_authors": set_table(*UNKNOWN[:2], perturbed_answer=WRONG),
    "world_facts": set_table(*UNKNOWN[2:3], *HOLDOUT[1:2], perturbed_answer=WRONG),
    "holdout": set_table(*HOLDOUT),
}
OPTIONS = ("real_authors", "world_facts")
TOKEN_METRICS = ("loss", "exact_memorization", "extraction_strength", "min_k", "min_k_pp", "zlib")
RETAIN_AUC = 0.4


@pytest.fixture(scope="module", autouse=True)
def calm_processor() -> Iterator[None]:
    with one_thread():
        yield


class Model(NamedTuple):
    """A model, and the template of its prompts."""

    engine: Any
    template: str


@pytest.fixture(scope="module", params=["tiny", pytest.param("SmolLM2", marks=pytest.mark.slow)])
def model(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    tiny_tokenizer: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Model:
    folder = tmp_path_factory.mktemp("models") / "memorised"
    if request.param == "tiny":
        place, template = str(memorise(tiny_model, tiny_tokenizer, KNOWN, folder)), "chat"
    else:
        demo = load_config(PROJECT / "pipelines/configs/demo.yaml")
        assert demo.memorize is not None
        place, template = str(demo.memorize.model), "raw"
    spec = EngineSpec(refs.pin(place, None, "model"), "transformers", "float32")
    return Model(build(spec), template)


@pytest.fixture(scope="module")
def answered(model: Model) -> pa.Table:
    steps = EvaluateSteps(SPEC, Memo(), model.template)
    facts = facts_query(fact_rows(*KNOWN, *UNKNOWN))
    rows = _rows_to_ask(facts, SETS)
    return steps.finish(model.engine.tokenizer, steps.generate(model.engine, rows))


def _rows_to_ask(facts: Query, sets: Mapping[str, pa.Table]) -> pa.Table:
    """Returns the rows of all sets; those of TOFU may share facts here, as they never do there."""
    parts = [suites.rows_to_ask(facts, {"forget": sets["forget"]}, [], SPEC)]
    for name, table in sets.items():
        if name != "forget":
            rows = suites.rows_to_ask(facts_query([]), {name: table}, [], SPEC)
            parts.append(rows)
    return pa.concat_tables(parts)


@pytest.fixture(scope="module")
def expected(model: Model, answered: pa.Table) -> dict[tuple[str, str], dict[str, float]]:
    """The metrics by open-unlearning's formulas, by suite and fact."""
    return {
        (row["suite"], row["fact_id"]): _expected(model.engine, model.template, row)
        for row in answered.to_pylist()
    }


def _expected(engine: Any, template: str, row: Mapping[str, Any]) -> dict[str, float]:
    prompter = Prompter(engine.tokenizer, template)
    prompt = prompter.encode_prompt(prompter.prompt(row["question"]))

    def metrics(text: str) -> dict[str, float]:
        return peer.answer_metrics(engine.model, prompt, prompter.encode_answer(text), text, 0.4)

    values = metrics(row["answer"])
    values["rougeL_recall"] = peer.greedy_recall(
        engine.model, engine.tokenizer, prompt, row["answer"], SPEC.max_new_tokens
    )
    if row["perturbed_answer"]:
        wrong = [metrics(text)["loss"] for text in row["perturbed_answer"]]
        right = values["loss"]
        if row["suite"] in OPTIONS:
            values["probability"] = peer.probability_among_options(right, wrong)
        if row["paraphrased_answer"]:
            right = metrics(row["paraphrased_answer"])["loss"]
        values["ratio"] = peer.truth_ratio(right, wrong)
        values["truth_ratio"] = peer.truth_score(row["suite"], values["ratio"])
    return values


def test_each_example_has_the_metrics_of_open_unlearning(
    answered: pa.Table, expected: dict[tuple[str, str], dict[str, float]]
):
    for row in answered.to_pylist():
        values = expected[row["suite"], row["fact_id"]]
        for name in (*TOKEN_METRICS, "probability", "rougeL_recall"):
            assert row[name] == pytest.approx(values[name], abs=1e-4), (name, row["answer"])
        if "truth_ratio" in values:
            assert row["truth_ratio"] == pytest.approx(values["truth_ratio"], abs=1e-4)
    strengths = [row["extraction_strength"] for row in answered.to_pylist()]
    assert min(strengths) > 0
    assert len(set(strengths)) > 3


def test_all_sets_have_the_aggregates_of_open_unlearning(
    answered: pa.Table, expected: dict[tuple[str, str], dict[str, float]], tmp_path: Path
):
    by_suite: dict[str, list[dict[str, float]]] = {}
    for (suite, _), values in expected.items():
        by_suite.setdefault(suite, []).append(values)
    retain_ratios = [0.2 * number for number in range(1, 8)]
    log = ModelLog(_retain_results(tmp_path, retain_ratios).suites, MinKResult(RETAIN_AUC))
    metrics_uri = str(tmp_path / "metrics.parquet")
    aggregate.write_metrics(
        answered={"before": Query("SELECT * FROM answered", {"answered": answered})},
        selected=SCHEMAS["selected"].empty_table(),
        spec=SPEC,
        retain_log=log,
        task_scores=[],
        examples_uri=str(tmp_path / "examples.parquet"),
        metrics_uri=metrics_uri,
    )
    measured = {
        (row["suite"], row["metric"]): row["value"]
        for row in storage.read_table([metrics_uri]).to_pylist()
    }

    def column(suite: str, name: str) -> list[float]:
        return [values[name] for values in by_suite[suite]]

    aucs = {
        name: peer.auc(column("forget", name), column("holdout", name))
        for name in ("loss", "zlib", "min_k", "min_k_pp")
    }
    for name, area in aucs.items():
        assert measured["membership", f"{name}_auc"] == pytest.approx(area, abs=1e-4)
    privleak = peer.privleak(aucs["min_k"], RETAIN_AUC)
    assert measured["membership", "privleak"] == pytest.approx(privleak, abs=1e-2)
    means = [
        sum(column(suite, name)) / len(by_suite[suite])
        for suite in ("retain", *OPTIONS)
        for name in ("probability", "rougeL_recall", "truth_ratio")
    ]
    utility = hmean(means) if min(means) > 0 else 0.0
    assert measured["tofu", "model_utility"] == pytest.approx(utility, abs=1e-4)
    quality = ks_2samp(column("forget", "ratio"), retain_ratios).pvalue
    assert measured["tofu", "forget_quality"] == pytest.approx(quality, abs=1e-4)


def _retain_results(folder: Path, ratios: list[float]) -> ModelLog:
    rows = {str(index): {"score": ratio} for index, ratio in enumerate(ratios)}
    path = folder / "TOFU_EVAL.json"
    path.write_text(json.dumps({"forget_truth_ratio": {"value_by_index": rows}}))
    return tofu_logs.read_log(str(path))


def test_our_own_definitions_differ_in_the_end_and_in_the_words(model: Model, answered: pa.Table):
    """Else the parity above would prove nothing."""
    ours = EvaluateSteps(Evaluate(attacks=(), memo=False, min_k_share=0.4), Memo(), model.template)
    rows = answered.select(suites.ROWS_SCHEMA.names).filter(pc.equal(answered["suite"], "forget"))
    scored = ours.finish(model.engine.tokenizer, ours.generate(model.engine, rows)).to_pylist()
    theirs = {row["fact_id"]: row for row in answered.to_pylist() if row["suite"] == "forget"}
    for name in ("exact_memorization", "extraction_strength", "min_k"):
        assert any(row[name] != abs(theirs[row["fact_id"]][name]) for row in scored), name
    for row in scored:
        # the tokenizer's end counts as well as that of the chat template
        assert row["probability"] >= theirs[row["fact_id"]]["probability"] * (1 - 1e-4)


def test_the_defaults_are_those_of_open_unlearning_unless_they_are_set():
    theirs = Evaluate(definitions="open_unlearning")
    assert (theirs.max_new_tokens, theirs.min_k_share) == (200, 0.4)
    assert (SPEC.max_new_tokens, SPEC.min_k_share) == (24, 0.4)
    assert (Evaluate().max_new_tokens, Evaluate().min_k_share) == (64, 0.2)
