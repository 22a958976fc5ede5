"""The real stages: their order, their inputs, and what a changed setting makes stale."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.core import schema, storage
from meow_ray.core.stage import Context, Stage
from meow_ray.pipeline.graph import STAGES
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.stages.train import presets
from tests.support.world import write_inputs

NAMES = [
    "memorize",
    "ingest",
    "invert",
    "paraphrases",
    "neighbours",
    "twins",
    "memo",
    "select",
    "guesses",
    "reference",
    "fila",
    "train",
    "remain",
    "evaluate",
    "audit",
    "report",
]
ARTIFACTS = [
    "target",
    "facts",
    "candidates",
    "paraphrases",
    "neighbours",
    "twins",
    "memo",
    "selected",
    "guesses",
    "reference",
    "fila",
    "model",
    "remaining",
    "metrics",
    "audit",
    "report",
]
OUTSIDE = {
    "data",
    "num_paraphrases",
    "memorize_data",
    "memorize_deepspeed",
    "base",
    "generator",
    "target",
    "sets",
    "objective",
    "roles",
    "retained",
    "train_deepspeed",
    "retain_model",
    "text",
    "task_folder",
    "stop_level",
    "soup",
    "own_attacks",
    "attacker",
}
EVERYTHING_ON = [
    "memorize.model=x/y",
    "memorize.deepspeed=ds.json",
    "train.objective=altpo",
    "train.deepspeed=ds.json",
    "train.lora.init=fila",
    "train.until=never_seen",
    "report.soup=soup",
]
"""A configuration that has all stages and all their inputs."""


def test_the_stages_are_those_of_the_design_in_order():
    assert [step.name for step in STAGES] == NAMES
    assert [step.artifact for step in STAGES] == ARTIFACTS


@pytest.mark.parametrize("overrides", [EVERYTHING_ON, EVERYTHING_ON[:1]], ids=["all", "few"])
def test_a_stage_reads_artifacts_of_earlier_stages_and_known_outside_inputs(overrides: list[str]):
    config = load_config(None, overrides)
    for number, step in enumerate(STAGES):
        assert set(step.input_names(config)) <= OUTSIDE | set(ARTIFACTS[:number])


def test_every_known_outside_input_is_read():
    config = load_config(None, EVERYTHING_ON)
    read = {name for step in STAGES for name in step.input_names(config)}
    assert read - set(ARTIFACTS[1:]) == OUTSIDE


MEOW = {"select": ("memo",), "train": ("selected", "target", "objective")}
GRADIENT_ASCENT = {"train": ("facts", "target", "objective")}
ALTPO = {
    "reference": ("selected", "facts", "target", "roles"),
    "train": ("selected", "facts", "target", "objective", "reference"),
}


@pytest.mark.parametrize(
    ("objective", "inputs"),
    [("meow", MEOW), ("gradient_ascent", GRADIENT_ASCENT), ("altpo", ALTPO)],
)
def test_training_depends_only_on_what_its_objective_reads(
    objective: str, inputs: dict[str, tuple[str, ...]]
):
    config = load_config(None, [f"train.objective={objective}"])
    input_names = {step.name: step.input_names(config) for step in Pipeline(config).stages}
    assert {name: input_names[name] for name in inputs} == inputs
    assert ("reference" in input_names) == ("reference" in inputs)


def names_of_stages(*overrides: str) -> list[str]:
    return [step.name for step in Pipeline(load_config(None, list(overrides))).stages]


def test_the_default_objective_makes_its_own_neighbours_and_twins():
    made = ["neighbours", "twins"]
    assert names_of_stages() == [
        *("ingest", "invert", *made, "memo", "select", "train", "evaluate", "report")
    ]


def test_neighbours_are_made_if_the_objective_retains_them():
    made = ["ingest", "invert", "neighbours", "memo", "select", "train", "evaluate", "report"]
    without = [name for name in made if name != "neighbours"]
    assert names_of_stages("train.objective=meow_kl") == without
    assert names_of_stages("train.objective=meow_kl", "train.retain=none") == without
    assert names_of_stages("train.objective=meow_kl", "train.retain=given") == without
    assert names_of_stages("train.objective=meow_kl", "train.retain=neighbours") == made
    assert names_of_stages("train.objective=meow_kl", "train.retain=both") == made


def test_questions_are_reworded_if_training_asks_for_it():
    reworded = names_of_stages("train.objective=meow", "train.paraphrases=2")
    assert reworded[1:4] == ["invert", "paraphrases", "memo"]
    assert "paraphrases" not in names_of_stages("train.paraphrases=0")
    config = load_config(None, ["train.objective=altpo", "train.paraphrases=2"])
    inputs = {step.name: step.input_names(config) for step in Pipeline(config).stages}
    assert inputs["paraphrases"] == ("facts", "num_paraphrases", "generator")
    assert "paraphrases" in inputs["train"]
    assert "paraphrases" in inputs["reference"]


def test_guesses_are_made_of_what_training_compares_and_only_if_asked_for():
    assert "guesses" not in names_of_stages()
    config = load_config(None, ["train.guessed_floors=true"])
    inputs = {step.name: step.input_names(config) for step in Pipeline(config).stages}
    assert inputs["guesses"] == ("facts", "selected", "twins", "generator")
    assert "guesses" in inputs["train"]


def test_adapters_start_from_the_facts_and_what_the_objective_retains():
    assert "fila" not in names_of_stages("train.objective=ihl", "train.lora={}")
    fila = ("train.objective=ihl", "train.lora.init=fila")

    def inputs(*overrides: str) -> dict[str, tuple[str, ...]]:
        config = load_config(None, [*fila, *overrides])
        return {step.name: step.input_names(config) for step in Pipeline(config).stages}

    assert inputs()["fila"] == ("facts", "target", "retained")
    assert inputs("train.retain=both")["fila"] == ("facts", "neighbours", "target", "retained")
    assert "fila" in inputs()["train"]


def test_frames_alone_do_not_depend_on_the_generator():
    config = load_config(None, ["train.paraphrases=2", "paraphrases.sources=[rule]"])
    step = next(step for step in STAGES if step.name == "paraphrases")
    assert step.input_names(config) == ("facts", "num_paraphrases")


def test_twins_are_made_if_evaluation_reads_them(monkeypatch: pytest.MonkeyPatch):
    assert "twins" not in names_of_stages("train.objective=meow")
    with_evaluation = names_of_stages("train.objective=meow", "evaluate.twins=true")
    assert with_evaluation[1:4] == ["invert", "twins", "memo"]
    with_twins = replace(presets.PRESETS["meow"], twins=True)
    monkeypatch.setitem(presets.PRESETS, "meow", with_twins)
    assert "twins" in names_of_stages("train.objective=meow")


@pytest.mark.parametrize(
    ("retain", "inputs"),
    [
        ("none", ("selected",)),
        ("given", ("selected", "facts")),
        ("neighbours", ("selected", "neighbours")),
        ("both", ("selected", "facts", "neighbours")),
    ],
)
def test_training_reads_the_tables_of_its_retain_set(retain: str, inputs: tuple[str, ...]):
    config = load_config(None, ["train.objective=meow_kl", f"train.retain={retain}"])
    train = next(step for step in STAGES if step.name == "train")
    assert train.input_names(config) == (*inputs, "target", "objective")


class FakeStages:
    """The real stages with other run functions: each writes what its settings and inputs decide."""

    def __init__(self, folder: Path) -> None:
        self.ran: list[str] = []
        self.stages = [
            replace(step, run=self._run(step), checks=(), foresee=None) for step in STAGES
        ]
        self.settings = write_inputs(folder)

    def pipeline(self, *overrides: str) -> Pipeline:
        return Pipeline(load_config(None, [*self.settings, *overrides]), stages=self.stages)

    def run(self, *overrides: str) -> list[str]:
        """Runs all stages; returns the names of those that were executed."""
        pipeline, before = self.pipeline(*overrides), len(self.ran)
        pipeline.run(pipeline.selection(None, None, None), on_event=str)
        return self.ran[before:]

    def _run(self, step: Stage) -> Any:
        def run(context: Context) -> dict[str, Any]:
            self.ran.append(step.name)
            if step.artifact in schema.SCHEMAS:
                self._write_table(step, context)
            else:
                digests = [artifact.digest for artifact in context.inputs.values()]
                storage.write_bytes(storage.join(context.out, "file"), json.dumps(digests).encode())
            return {}

        return run

    @staticmethod
    def _write_table(step: Stage, context: Context) -> None:
        """Writes one row; its texts are the stage's settings and the digests of its inputs."""
        sections = [name for name in step.sections if "." not in name]
        spec = {name: str(getattr(context.config, name)) for name in sections}
        inputs = {} if step.name == "ingest" else context.inputs
        digests = {name: artifact.digest for name, artifact in inputs.items()}
        text = json.dumps([spec, digests])
        columns = schema.SCHEMAS[step.artifact]
        values = {f.name: [text if f.type == pa.string() else 0] for f in columns}
        context.write(pa.table(values, schema=columns))


def test_a_change_reruns_its_stage_and_those_after_it_and_loads_no_model(tmp_path: Path):
    fake = FakeStages(tmp_path)
    all_names = ["ingest", "invert", "memo", "select", "train", "evaluate", "report"]
    assert fake.run() == all_names
    assert fake.run() == []
    assert fake.run("select.top_k=2") == ["select", "train", "evaluate", "report"]
    assert fake.run("report.title=New") == ["report"]
    assert fake.run("invert.seed=1") == all_names[1:]
    assert fake.run("resources.memo.num_actors=2", "resources.train.zero_stage=3") == []
    storage.write_bytes(str(tmp_path / "target" / "model.safetensors"), b"another target")
    assert fake.run() == [name for name in all_names if name != "invert"], "the facts are the same"
    states = fake.pipeline("train.epochs=9").states()
    assert [(s.stage.name, s.state, s.reason) for s in states[4:]] == [
        ("train", "stale", "train.epochs: 5 → 9"),
        ("evaluate", "stale", "waits for model"),
        ("report", "stale", "waits for model, metrics"),
    ]
