import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from meow_ray.config import Audit
from meow_ray.engines import EngineSpec
from meow_ray.models import refs
from meow_ray.stages.audit import asking, loading, questions
from meow_ray.stages.audit.attack import Subject
from meow_ray.stages.audit.attacks.leaks import largest_leak
from meow_ray.stages.audit.derived import bench as bench_module
from meow_ray.stages.audit.derived.bench import (
    RESULTS_TYPE,
    TWICE,
    Bench,
    BenchSpec,
    DerivedSteps,
    Job,
    ask_twice,
    jobs_of,
    variants,
)
from meow_ray.stages.audit.derived.digests import weights_digest
from meow_ray.stages.audit.steps import AuditSteps
from tests.support.tiny import memorise

FACTS = [
    ("Author of Émile?", "Jean-Jacques Rousseau"),
    ("Born when?", "In Mai 1954"),
    ("Capital of Peru?", "The city Lima"),
    ("Who came?", "Nobody else did"),
]
SUBJECTS = [
    Subject(str(n), "facts", question, answer) for n, (question, answer) in enumerate(FACTS)
]
SPEC = Audit.model_validate(
    {
        "relearn": {"steps": [1, 3], "learning_rate": 1e-3, "batch_size": 2},
        "sparsities": [0.1, 0.5],
        "quantise": ["bf16", "int8", "int4", "nf4"],
    }
)


@pytest.fixture(scope="module")
def knowing(
    tiny_model: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return memorise(tiny_model, tiny_tokenizer, FACTS, tmp_path_factory.mktemp("knowing"))


def bench_of(folder: Path, spec: Audit = SPEC) -> Bench:
    ref = refs.pin(str(folder), None, "target.model")
    engine = EngineSpec(ref, "vllm", dtype="float32", max_model_len=512)
    return BenchSpec({"after": engine}, {"after": SUBJECTS}, spec, "chat").load()


def weights(bench: Bench) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in bench._engine.model.state_dict().items()}


def test_jobs_of_relearning_ask_each_subject_of_each_group_once() -> None:
    twins = [Subject(f"{s.fact_id}#1", "twins", s.question, s.answer) for s in SUBJECTS]
    asked = {"before": [*SUBJECTS, *twins], "after": SUBJECTS}
    jobs = list(jobs_of("relearn", asked, SPEC))
    facts = Counter((job.model, job.group) for job in jobs if job.kind == "facts")
    assert facts == {("before", "facts"): 2, ("before", "twins"): 2, ("after", "facts"): 2}
    assert [job for job in jobs if job.kind == "unrelated"] == [
        Job("relearn", "unrelated", "before"),
        Job("relearn", "unrelated", "after"),
    ]


def test_variants_name_each_derived_model() -> None:
    assert variants(Job("quantise", "int4", "after"), SPEC) == ["int4"]
    assert variants(Job("prune", "wanda", "after"), SPEC) == ["wanda 10 %", "wanda 50 %"]
    assert variants(Job("relearn", "facts", "after"), SPEC) == ["facts, step 1", "facts, step 3"]
    recovering = SPEC.model_copy(update={"recovery_steps": 20})
    assert variants(Job("prune", "wanda", "after"), recovering) == [
        "wanda 10 %",
        "wanda 50 %",
        "wanda 10 %, recovery 20",
        "wanda 50 %, recovery 20",
    ]


def test_two_questions_the_second_with_half_of_the_answer() -> None:
    direct, half = ask_twice(SUBJECTS[0], SPEC)
    assert (direct.question, direct.start, direct.answer) == (*FACTS[0][:1], "", FACTS[0][1])
    assert (half.start, half.answer) == ("Jean-Jacques", " Rousseau")
    assert direct.variant == half.variant


def test_a_model_without_change_answers_as_it_is(
    knowing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(knowing)
    monkeypatch.setattr(bench_module.quantise, "quantise", lambda model, form: None)
    results, reason, _ = bench.run(Job("quantise", "bf16", "after"))
    assert reason is None
    assert {result["weights"] for result in results} == {weights_digest(weights(bench))}
    table = questions.as_table(questions.questions_of((TWICE,), SUBJECTS, SPEC))
    answers = AuditSteps(64, 0, "chat").generate(bench._engine, table)
    by_id = {subject.fact_id: subject for subject in SUBJECTS}
    query = asking.Query("SELECT * FROM answers ORDER BY fact_id, number", {"answers": answers})
    for (key, answered), result in zip(asking.answered(query), results, strict=True):
        outcome = largest_leak(by_id[key.fact_id], answered)
        assert (result["score"], result["reply"]) == (outcome.score, outcome.reply)
        assert result["attempts"] == 2
        assert result["score"] == 1.0


@pytest.mark.parametrize(
    "job",
    [
        Job("quantise", "int4", "after"),
        Job("prune", "magnitude", "after"),
        Job("prune", "wanda", "after"),
        Job("prune", "gradient", "after"),
        Job("relearn", "facts", "after", "facts", 0),
        Job("relearn", "unrelated", "after"),
    ],
)
def test_a_job_gives_all_variants_and_leaves_the_model_as_it_was(knowing: Path, job: Job) -> None:
    bench = bench_of(knowing)
    bench._load("after", trains=job.attack == "relearn")
    before = weights(bench)
    results, reason, _ = bench.run(job)
    assert reason is None
    own = weights_digest(before)
    assert all(torch.equal(value, before[name]) for name, value in weights(bench).items())
    num_subjects = 2 if job.kind == "facts" else 4
    expected = {variant: num_subjects for variant in variants(job, SPEC)}
    assert Counter(result["variant"] for result in results) == expected
    digests = {(result["variant"], result["weights"]) for result in results}
    assert len({digest for _, digest in digests} - {own}) == len(digests) == len(expected)
    again, _, _ = bench.run(job)
    assert {(result["variant"], result["weights"]) for result in again} == digests


def test_heavy_pruning_loses_what_light_pruning_keeps(knowing: Path) -> None:
    spec = SPEC.model_copy(update={"sparsities": (0.05, 0.95)})
    results, _, _ = bench_of(knowing, spec).run(Job("prune", "magnitude", "after"))
    scores = {
        variant: sum(r["score"] for r in results if r["variant"] == variant)
        for variant in ("magnitude 5 %", "magnitude 95 %")
    }
    assert scores["magnitude 5 %"] > 3
    assert scores["magnitude 95 %"] < 1


def test_recovery_keeps_pruned_weights_at_zero(
    knowing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPEC.model_copy(update={"recovery_steps": 2, "sparsities": (0.5,)})
    bench = bench_of(knowing, spec)
    zeros = []
    ask = Bench._ask

    def counting(self: Bench, engine: Any, subjects: Any) -> Any:
        weight = engine.model.model.layers[0].mlp.up_proj.weight
        zeros.append((int((weight == 0).sum()), float(weight.abs().sum())))
        return ask(self, engine, subjects)

    monkeypatch.setattr(Bench, "_ask", counting)
    results, _, _ = bench.run(Job("prune", "magnitude", "after"))
    (count, total), (recovered_count, recovered_total) = zeros
    assert count == recovered_count == 256 * 128 // 2
    assert total != recovered_total
    assert len(results) == 8


def test_a_missing_backend_gives_a_reason_and_no_score(knowing: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    batch = pa.Table.from_pylist(
        [Job("quantise", form, "after")._asdict() | {"row_id": form} for form in ("int8", "nf4")],
        schema=pa.schema(
            [(name, pa.string()) for name in ("row_id", "attack", "kind", "model", "group")]
            + [("taught", pa.int32())]
        ),
    )
    done = DerivedSteps().generate(bench_of(knowing), batch)
    assert done.schema.field("results").type == RESULTS_TYPE
    int8, nf4 = done.to_pylist()
    assert (len(int8["results"]), int8["reason"], int8["detail"]) == (4, None, None)
    assert (nf4["results"], nf4["reason"], nf4["detail"]) == ([], "no_gpu", "nf4 needs a GPU")


def test_relearning_with_one_fact_is_missing(knowing: Path) -> None:
    ref = refs.pin(str(knowing), None, "target.model")
    spec = BenchSpec({"after": EngineSpec(ref)}, {"after": SUBJECTS[:1]}, SPEC, "chat")
    done = spec.load().run(Job("relearn", "facts", "after", "facts", 0))
    assert (done.results, done.reason) == ([], "too_few_facts")


def test_a_model_that_transformers_cannot_load_is_missing(
    knowing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(spec: EngineSpec) -> Any:
        raise ValueError("unknown architecture")

    monkeypatch.setattr(loading.engines, "build", refuse)
    done = bench_of(knowing).run(Job("quantise", "int8", "after"))
    assert (done.results, done.reason) == ([], "engine_failed")
    assert done.detail == "transformers cannot load it (unknown architecture)"


def test_relearning_on_facts_teaches_one_half_only(
    knowing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(model: Any, prompter: Any, pairs: Any, *rest: Any, **options: Any) -> list[float]:
        seen.append({question for question, _ in pairs})
        return []

    monkeypatch.setattr(bench_module.relearn, "teach", spy)
    bench = bench_of(knowing, SPEC)
    for half in (0, 1):
        bench.run(Job("relearn", "facts", "after", "facts", half))
    first, second = seen
    assert first.isdisjoint(second)
    assert first | second == {question for question, _ in FACTS}


@pytest.mark.parametrize("configured", [None, 1e-3])
def test_the_learning_rate_follows_the_width_unless_it_is_set(
    knowing: Path, monkeypatch: pytest.MonkeyPatch, configured: float | None
) -> None:
    width = json.loads((knowing / "config.json").read_text())["hidden_size"]
    rates = []

    def spy(*_: Any, learning_rate: float, **__: Any) -> list[float]:
        rates.append(learning_rate)
        return []

    monkeypatch.setattr(bench_module.relearn, "teach", spy)
    changed = SPEC.relearn.model_copy(update={"learning_rate": configured})
    bench = bench_of(knowing, SPEC.model_copy(update={"relearn": changed}))
    bench.run(Job("relearn", "unrelated", "after", "facts", 0))
    assert rates == [pytest.approx(configured or 0.06 / width)]
