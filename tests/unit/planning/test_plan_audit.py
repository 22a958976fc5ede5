"""The planned work of an audit against what its attacks really ask of a tiny model."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Config
from meow_ray.config.files import load_config
from meow_ray.core.manifest import Artifact
from meow_ray.core.tables import Query
from meow_ray.distributed import map_rows
from meow_ray.engines import Completion
from meow_ray.engines.transformers import TransformersEngine
from meow_ray.models import refs
from meow_ray.planning import audit as planning
from meow_ray.planning import workload
from meow_ray.planning.sample import FactSample
from meow_ray.planning.tally import StageWork
from meow_ray.stages.audit import writing
from meow_ray.stages.audit.attacks import languages
from meow_ray.stages.audit.derived import relearn
from meow_ray.stages.audit.layers import LayeredModel
from meow_ray.stages.audit.scoring import AuditContext, ScoredRow
from meow_ray.stages.audit.stage import _all_rows
from meow_ray.stages.ingest import facts as ingest_facts
from meow_ray.stages.inputs import engine_spec

FACTS = [("Who is the mayor?", "Ann Zorblax"), ("Born when?", "In 1954"), ("Where?", "In Karsk")]
RETAIN = [("Who is the baker?", "Bo Kim"), ("Who is the cook?", "Cy Lee")]
LAYERS = 2
ANSWER_TOKENS = 5


@pytest.fixture
def configure(tiny_model: Path, tmp_path: Path) -> Callable[..., Config]:
    """Makes configurations that can be planned and run."""
    for name, pairs in (("forget", FACTS), ("retain", RETAIN)):
        lines = [json.dumps({"question": q, "answer": a}) for q, a in pairs]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

    def config(*overrides: str, retain_model: bool = True) -> Config:
        control = "evaluate.retain_model" if retain_model else "invert.model"
        return load_config(
            None,
            [
                f"target.model={tiny_model}",
                "target.engine=transformers",
                "target.dtype=float32",
                f"ingest.forget={tmp_path}/forget.jsonl",
                f"ingest.retain={tmp_path}/retain.jsonl",
                f"{control}={tiny_model}",
                "pipeline.audit=true",
                "train.objective=meow",
                "twins.minimum=0",
                "twins.per_fact=2",
                "audit.max_new_tokens=2",
                *overrides,
            ],
        )

    return config


@pytest.fixture
def asked(configure: Callable[..., Config], tiny_tokenizer: Any) -> Callable[..., planning.Asked]:
    """Returns who is asked about what in a configuration."""

    def make(*overrides: str, retain_model: bool = True) -> planning.Asked:
        config = configure(*overrides, retain_model=retain_model)
        sources = [
            ingest_facts.read_sources([source], config)
            for source in (config.ingest.forget, config.ingest.retain)
        ]
        table, _ = ingest_facts.build_facts(*sources, lambda question, answer: None)
        counts = {"forget": len(FACTS), "retain": len(RETAIN)}
        sample = FactSample(table, counts, {}, tiny_tokenizer, model_bytes=1, trainable=1)
        return planning.asked_of(config, sample, num_rewordings=0, on_gpu=False)

    return make


def planned(asked: planning.Asked) -> dict[str, StageWork]:
    works = planning.count_audit(asked, LAYERS, ANSWER_TOKENS, row_bytes=1)
    return {work.stage.removeprefix("audit: "): work for work in works}


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the attacks on a tiny model in this process; returns the rows, and what was asked."""
    counts: Counter[str] = Counter()
    loaded: dict[str, Any] = {}
    generate, force = TransformersEngine.generate, TransformersEngine.teacher_force
    states, teach = LayeredModel.states, relearn.teach

    def generating(self: Any, prompts: Any, sampling: Any) -> Any:
        counts["requests"] += sum(params.n for params in sampling)
        counts["read"] += sum(map(len, prompts))
        return generate(self, prompts, sampling)

    def forcing(self: Any, prompts: Any, answers: Any, *rest: Any, **options: Any) -> Any:
        counts["passes"] += len(prompts)
        counts["read"] += sum(map(len, prompts)) + sum(map(len, answers))
        return force(self, prompts, answers, *rest, **options)

    def reading(self: Any, ids: Any, mask: Any, *rest: Any) -> Any:
        counts["passes"] += len(ids)
        counts["read"] += int(mask.sum())
        return states(self, ids, mask, *rest)

    def teaching(model: Any, prompter: Any, pairs: Any, steps: int, **options: Any) -> Any:
        lengths = [len(ids) for ids, _ in prompter.encode_pairs(*zip(*pairs, strict=True))]
        batches = relearn.batches(len(pairs), options["batch_size"], options["seed"])
        counts["steps"] += steps
        counts["trained"] += sum(lengths[n] for _ in range(steps) for n in next(batches))
        return teach(model, prompter, pairs, steps, **options)

    def in_process(rows: Query | pa.Table, key: str, spec: Any, work: Any, *_: Any) -> Query:
        table = rows
        if isinstance(rows, Query):
            with rows.batches() as reader:
                table = reader.read_all()
        counts["starts"] += 1
        if repr(spec) not in loaded:
            loaded[repr(spec)] = spec.load()
        return Query("SELECT * FROM done", {"done": work.generate(loaded[repr(spec)], table)})

    monkeypatch.setattr(TransformersEngine, "generate", generating)
    monkeypatch.setattr(TransformersEngine, "teacher_force", forcing)
    monkeypatch.setattr(LayeredModel, "states", reading)
    monkeypatch.setattr(LayeredModel, "is_readable", lambda self, tokens: True)
    monkeypatch.setattr(relearn, "teach", teaching)
    monkeypatch.setattr(map_rows, "map_rows", in_process)

    @contextmanager
    def shared_work(name: str) -> Iterator[str]:
        yield str(tmp_path / name)

    def attack(asked: planning.Asked) -> tuple[list[ScoredRow], Counter[str]]:
        counts.clear()
        inputs = {
            "target": Artifact("target", str(tiny_model), "x", value=None),
            "own_attacks": Artifact("own_attacks", "", "x", value={}),
        }
        context: Any = SimpleNamespace(
            config=asked.config,
            inputs=inputs,
            work=str(tmp_path / "work"),
            shared_work=shared_work,
            engine_spec=engine_spec,
        )
        ref = refs.pin(str(tiny_model), None, "model")
        subjects = [*asked.subjects["facts"], *asked.subjects["twins"]]
        models = dict.fromkeys(asked.models, ref)
        audit = AuditContext(context, asked.spec, subjects, models, on_gpu=False)
        return list(_all_rows(audit)), counts

    return attack


def same(work: StageWork, counts: Counter[str], *names: str) -> None:
    """Checks that the plan has the counts of the run."""
    assert {name: getattr(work, name) for name in names} == {name: counts[name] for name in names}


@pytest.mark.parametrize("retain_model", [True, False])
def test_questions_are_those_that_the_models_are_asked(asked: Any, run: Any, retain_model: bool):
    attacks = "direct,paraphrase,cloze,few_shot,prefix,multiple_choice,sampling,likelihood"
    given = asked(f"audit.attacks=[{attacks}]", "audit.samples=3", retain_model=retain_model)
    assert len(given.subjects["twins"]) == (0 if retain_model else 2 * len(FACTS))
    rows, counts = run(given)
    work = planned(given)["questions"]
    same(work, counts, "requests", "passes", "read", "starts")
    assert work.storage == sum(row.outcome.attempts > 0 for row in rows)


def test_an_attacker_writes_and_tries_the_prompts_of_all_rounds(
    asked: Any, run: Any, monkeypatch: pytest.MonkeyPatch
):
    given = asked("audit.attacks=[attacker]", "audit.attacker.prompts=2", "audit.attacker.rounds=3")
    generator = FakeGenerator(lambda text, number: f"Who is {number}?")
    monkeypatch.setattr(writing, "attacker", lambda audit: writing.Writer(generator, "fake"))
    _, counts = run(given)
    counts["requests"] += generator.written
    same(planned(given)["attacker"], counts, "requests", "starts")


def test_each_question_is_translated_and_asked_in_each_language(
    asked: Any, run: Any, monkeypatch: pytest.MonkeyPatch
):
    given = asked("audit.attacks=[languages]", "audit.languages=[German,Hindi]")
    generator = FakeGenerator(lambda text, number: text.splitlines()[-1])
    monkeypatch.setattr(writing, "translator", lambda audit: writing.Writer(generator, "fake"))
    monkeypatch.setattr(languages, "fault", lambda *_: None)
    _, counts = run(given)
    works = planned(given)
    assert works["translations"].requests == generator.written == 2 * len(FACTS)
    assert works["translations"].by == "target"  # there is no generator
    # equal questions in two languages are asked once here, as real translations never are
    assert works["languages"].requests == 2 * counts["requests"]
    assert works["translations"].starts + works["languages"].starts == counts["starts"]


@pytest.mark.parametrize("retain_model", [True, False])
def test_layers_are_read_in_as_many_passes(asked: Any, run: Any, retain_model: bool):
    given = asked("audit.attacks=[depth]", retain_model=retain_model)
    _, counts = run(given)
    same(planned(given)["depth"], counts, "passes", "read")


@pytest.mark.parametrize("retain_model", [True, False])
def test_models_are_derived_taught_and_asked(asked: Any, run: Any, retain_model: bool):
    given = asked(
        "audit.attacks=[quantise,prune,relearn]",
        "audit.quantise=[int8]",
        "audit.prune=[magnitude,wanda]",
        "audit.sparsities=[0.5]",
        "audit.recovery_steps=1",
        "audit.relearn.steps=[1,2]",
        "audit.relearn.batch_size=2",
        retain_model=retain_model,
    )
    rows, counts = run(given)
    works = planned(given)
    assert {*works} == {"quantise", "prune", "relearn"}
    for name in ("requests", "trained", "steps"):
        assert sum(getattr(work, name) for work in works.values()) == counts[name], name
    for attack, work in works.items():
        made = {
            # both halves of the facts, and the twins, have models of their own
            (row.variant, row.model, row.group if "facts" in row.variant else "", row.weights)
            for row in rows
            if row.attack == attack
        }
        assert work.derived == len(made), attack


class FakeGenerator:
    """A generator that numbers its texts."""

    def __init__(self, text_of: Callable[[str, int], str]) -> None:
        self.text_of = text_of
        self.written = 0

    def load(self) -> "FakeGenerator":
        return self

    def ask(self, asks: Sequence[Any]) -> list[list[Completion] | None]:
        found: list[list[Completion] | None] = []
        for ask in asks:
            texts = []
            for _ in range(ask.sampling.n):
                self.written += 1
                texts.append(Completion(self.text_of(ask.text, self.written), True))
            found.append(texts)
        return found


# --- the plan -------------------------------------------------------------------------------------


def test_a_plan_has_the_audit_if_the_run_has_one(configure: Callable[..., Config]):
    def stages(*overrides: str) -> dict[str, StageWork]:
        config = configure("invert.style=prefill", *overrides, retain_model=False)
        plan = workload.plan_run(config, None, rates_file=None, gpus=0, measure=False)
        return {work.stage: work for work in plan.works}

    small = ("audit.attacks=[direct,relearn]", "audit.relearn.steps=[3]")
    assert {name for name in stages(*small) if name.startswith("audit")} == {
        "audit: questions",
        "audit: relearn",
    }
    assert not [name for name in stages("pipeline.audit=false") if name.startswith("audit")]


def test_questions_grow_with_the_facts_and_training_does_not(configure: Callable[..., Config]):
    config = configure("audit.attacks=[direct,relearn]", "audit.twins=12", retain_model=False)

    def works(num_facts: int) -> dict[str, StageWork]:
        plan = workload.plan_run(config, num_facts, rates_file=None, gpus=0, measure=False)
        return {work.stage: work for work in plan.works}

    few, many = works(30), works(3000)
    # two models on the facts, and at most 12 twins
    assert few["audit: questions"].requests == pytest.approx(2 * 30 + 12)
    assert many["audit: questions"].requests == pytest.approx(2 * 3000 + 12)
    assert few["audit: relearn"].steps == many["audit: relearn"].steps
    assert few["audit: relearn"].trained == many["audit: relearn"].trained


def test_on_gpus_the_budgets_are_larger(configure: Callable[..., Config]):
    config = configure("audit.attacks=[sampling]", retain_model=True)

    def requests(gpus: int) -> float:
        plan = workload.plan_run(config, None, rates_file=None, gpus=gpus, measure=False)
        return next(work.requests for work in plan.works if work.stage == "audit: questions")

    assert (requests(0), requests(8)) == (3 * 3 * 16, 3 * 3 * 64)
