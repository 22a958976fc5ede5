from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meow_ray.config import Audit, Resources, Target
from meow_ray.core.tables import Query
from meow_ray.distributed import map_rows as map_rows_module
from meow_ray.distributed import progress
from meow_ray.models import refs
from meow_ray.stages.audit.attack import Outcome, Subject
from meow_ray.stages.audit.derived import rows
from meow_ray.stages.audit.derived.bench import Bench
from meow_ray.stages.audit.registry import FURTHER
from meow_ray.stages.audit.scoring import AuditContext
from meow_ray.stages.inputs import engine_spec

FACTS = [Subject(f"f{n}", "facts", f"Who is {n}?", f"The miller {n}") for n in range(3)]
TWINS = [
    Subject(f"f{n}#{i}", "twins", f"Who was {n}?", "A rich baker") for n in range(3) for i in "12"
]
SPEC = Audit.model_validate(
    {
        "relearn": {"steps": [1, 2], "batch_size": 2},
        "sparsities": [0.3],
        "prune": ["magnitude"],
        "quantise": ["int4", "nf4"],
        "max_new_tokens": 4,
    }
)
ATTACKS = {"quantise": rows.quantise, "prune": rows.prune, "relearn": rows.relearn_rows}


@pytest.fixture
def audit(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> AuditContext:
    names: list[str] = []

    @contextmanager
    def shared_work(name: str) -> Any:
        names.append(name)
        yield name

    def in_process(jobs: Any, key: str, spec: Any, work: Any, folder: str, *rest: Any) -> Query:
        assert rest[1].audit.batch_size == 1
        bench = spec.load()
        assert isinstance(bench, Bench)
        return Query("SELECT * FROM done", {"done": work.generate(bench, jobs)})

    monkeypatch.setattr(map_rows_module, "map_rows", in_process)
    target = Target.model_validate({"template": "raw", "engine": "transformers"})
    config = SimpleNamespace(target=target, resources=Resources(), audit=SPEC)
    ref = refs.pin(str(tiny_model), None, "target.model")
    return AuditContext(
        context=SimpleNamespace(  # type: ignore[arg-type]
            config=config, engine_spec=engine_spec, shared_work=shared_work, inputs={}, names=names
        ),
        spec=SPEC,
        subjects=[*FACTS, *TWINS],
        models={"before": ref, "after": ref},
        on_gpu=False,
    )


def test_the_registry_has_them() -> None:
    assert {name: FURTHER[name] for name in ATTACKS} == ATTACKS


@pytest.mark.parametrize("attack", ATTACKS)
def test_one_row_per_variant_model_and_subject(
    attack: str, audit: AuditContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(progress, "warn", lambda stage, text: warnings.append(text))
    found = list(ATTACKS[attack](audit))
    keys = [(row.attack, row.variant, row.model, row.group, row.fact_id) for row in found]
    assert len(set(keys)) == len(keys)
    variants = {
        "quantise": ["int4", "nf4"],
        "prune": ["magnitude 30 %"],
        "relearn": ["facts, step 1", "facts, step 2", "unrelated, step 1", "unrelated, step 2"],
    }[attack]
    expected = Counter()
    for variant in variants:
        expected |= Counter(
            {
                (variant, "before", "facts"): 3,
                (variant, "before", "twins"): 6,
                (variant, "after", "facts"): 3,
            }
        )
    assert Counter((row.variant, row.model, row.group) for row in found) == expected
    assert {row.tier for row in found} == {
        "weights and compute" if attack == "relearn" else "static weights"
    }
    for row in found:
        if row.variant == "nf4":
            assert row.outcome == Outcome(None, 0, reason="no_gpu")
            assert (row.prompt, row.weights) == (None, None)
        else:
            assert row.outcome.score is not None
            assert row.outcome.reason is None
            assert row.outcome.attempts == 2
            assert row.weights is not None
    if attack == "quantise":
        assert warnings == [
            "not measured: quantise, nf4, before: nf4 needs a GPU.",
            "not measured: quantise, nf4, after: nf4 needs a GPU.",
        ]


def test_the_work_depends_on_the_settings_that_the_attack_reads(audit: AuditContext) -> None:
    def key(on_gpu: bool = False, **changes: Any) -> str:
        changed = SPEC.model_copy(update=changes)
        one = replace(audit, spec=changed, on_gpu=on_gpu)
        return str(rows._key(one, "quantise"))

    assert key() == key(sparsities=(0.5,), bootstrap_resamples=3)
    assert key() != key(quantise=("int8",))
    assert key() != key(seed=1)
    assert key() != key(on_gpu=True)  # nf4 is not missing there
