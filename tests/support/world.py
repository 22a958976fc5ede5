"""A small pipeline whose stages load no model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from meow_ray.config.files import load_config
from meow_ray.core import schema, storage
from meow_ray.core.outside import adopt_table
from meow_ray.core.stage import Context, Input, Stage
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.stages.ingest.facts import fact_id
from meow_ray.stages.ingest.stage import INGEST

DATA = next(entry for entry in INGEST.inputs if getattr(entry, "name", "") == "data")
"""The files of facts, as `ingest` declares them."""

Run = Callable[[Context], dict[str, Any]]


def write_inputs(folder: Path) -> list[str]:
    """Writes two models without weights and one fact to forget; returns overrides that name them.

    The overrides name the storage root as well, and the objective with the fewest stages.
    """
    for name in ("target", "generator"):
        storage.write_bytes(str(folder / name / "config.json"), b"{}")
        storage.write_bytes(str(folder / name / "model.safetensors"), name.encode())
    (folder / "forget.jsonl").write_text('{"question": "Q", "answer": "A"}')
    return [
        f"target.model={folder}/target",
        f"invert.model={folder}/generator",
        f"ingest.forget={folder}/forget.jsonl",
        f"storage.root={folder}/root",
        "train.objective=meow",
    ]


class World:
    """Three small stages over one data file: ingest (facts), select (selected), report (a page)."""

    def __init__(self, folder: Path) -> None:
        self.data, self.root, self.ran = folder / "facts.jsonl", folder / "root", []
        self.runs: dict[str, Run] = {
            "ingest": self._ingest,
            "select": self._select,
            "report": self._report,
        }
        self.stages = (
            self._stage("ingest", "facts", (DATA,)),
            self._stage("select", "selected", ("facts",)),
            self._stage("report", "report", ("facts", "selected")),
        )
        self.write("A", "B")

    def use(self, *stages: Stage) -> None:
        """Replaces the stages of the pipeline."""
        self.stages = stages

    def write(self, *answers: str) -> None:
        """Writes the data file, one fact per answer."""
        self.data.write_text(
            "".join(json.dumps({"question": "Q", "answer": text}) + "\n" for text in answers)
        )

    def pipeline(self, *overrides: str, **options: Any) -> Pipeline:
        return Pipeline(
            load_config(
                None, [f"ingest.forget={self.data}", f"storage.root={self.root}", *overrides]
            ),
            stages=self.stages,
            **options,
        )

    def run(
        self,
        *overrides: str,
        only: str | None = None,
        start: str | None = None,
        until: str | None = None,
        **options: Any,
    ) -> list[str]:
        """Runs the selected stages; returns the names of those that were executed.

        `messages` holds the texts of the events afterwards.
        """
        pipeline, before = self.pipeline(*overrides), len(self.ran)
        self.messages: list[str] = []
        pipeline.run(
            pipeline.selection(only, start, until),
            on_event=lambda event: self.messages.append(str(event)),
            **options,
        )
        return self.ran[before:]

    def states(self, *overrides: str, **options: Any) -> dict[str, tuple[str, str]]:
        """Returns state and reason of each stage, by name."""
        before = len(self.ran)
        states = self.pipeline(*overrides, **options).states()
        assert len(self.ran) == before, "asking for states runs nothing"
        return {s.stage.name: (s.state, s.reason) for s in states}

    def files(self) -> dict[str, bytes]:
        """Returns the contents of all files below the storage root, by path."""
        return {
            str(path): path.read_bytes() for path in sorted(self.root.rglob("*")) if path.is_file()
        }

    def _stage(self, name: str, artifact: str, inputs: tuple[Input, ...]) -> Stage:
        return Stage(
            name=name,
            artifact=artifact,
            version=1,
            sections=(name,),
            inputs=inputs,
            run=self._calls(name),
            schema=schema.SCHEMAS.get(artifact),
            key=schema.KEYS.get(artifact, ()),
            adopt=adopt_table if artifact in schema.SCHEMAS else None,
        )

    def _calls(self, name: str) -> Run:
        def run(context: Context) -> dict[str, Any]:
            self.ran.append(name)
            return self.runs[name](context)

        return run

    def _ingest(self, context: Context) -> dict[str, Any]:
        rows = [
            json.loads(line)
            for line in Path(context.inputs["data"].value["forget"].path).read_text().splitlines()
        ]
        facts = [
            row | {"fact_id": fact_id(row["question"], row["answer"]), "split": "forget"}
            for row in rows
        ]
        context.write(pa.Table.from_pylist(facts, schema=schema.SCHEMAS["facts"]))
        return {"forget": len(facts)}

    def _select(self, context: Context) -> dict[str, Any]:
        rows = context.inputs["facts"].table.to_pylist()[: context.config.select.top_k]
        made = [row | {"candidate_id": 0, "rank": 0, "memo": 0.5} for row in rows]
        context.write(pa.Table.from_pylist(made, schema=schema.SCHEMAS["selected"]))
        return {}

    def _report(self, context: Context) -> dict[str, Any]:
        count = context.inputs["selected"].table.num_rows
        storage.write_bytes(
            storage.join(context.out, "report.html"),
            f"{context.config.report.title} {count}".encode(),
        )
        return {}
