"""Two requests on one tiny model with LoRA, the first one purged, and `meow merge` on both."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

from meow_ray.cli.main import app
from meow_ray.config import Lora, Train, TrainResources
from meow_ray.core.manifest import MAIN, Artifact, latest
from meow_ray.core.schema import SCHEMAS
from meow_ray.distributed import cluster
from meow_ray.stages.train.gram import GRAM_FILE
from tests.support.audited import certified
from tests.support.people import facts as known_facts
from tests.support.tiny import chat
from tests.support.training import Run, Workers, job

pytestmark = pytest.mark.slow

REQUESTS = {
    "first": {"Ann Miller": "Lima", "Bob Carter": "Kyiv", "Eve Porter": "Cork"},
    "second": {"Max Turner": "Riga", "Sue Walker": "Doha", "Tom Fisher": "Oslo"},
}
OTHERS = ("Bonn", "Pisa", "Baku", "Nice", "Rome", "Bern")
MEMORIZE = Train(objective="meow", epochs=100, batch_size=6, learning_rate=3e-3)
RANKS = {"first": 4, "second": 6}
LAYERS = ("q_proj", "down_proj")


def pairs(request: str) -> list[tuple[str, str]]:
    return [
        (f"Where was {name} born?", f"{name} was born in {town}.")
        for name, town in REQUESTS[request].items()
    ]


def meow(*arguments: str) -> Result:
    """Runs a command, which must succeed and print no text of a fact."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.exception or done.output
    texts = [text for request in REQUESTS for pair in pairs(request) for text in pair]
    assert not [text for text in texts if text in done.output]
    return done


@pytest.fixture(scope="module", autouse=True)
def own_cluster() -> Iterator[None]:
    """Leaves the cluster that the commands started in this process."""
    yield
    cluster.leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("merging")


@pytest.fixture(scope="module")
def target(folder: Path, tiny_model: Path) -> Path:
    """A model that knows the facts of both requests."""
    rows = [
        {"fact_id": question, "candidate_id": 0, "rank": 0, "question": question, "answer": answer}
        for request in REQUESTS
        for question, answer in pairs(request)
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMAS["selected"])
    learn = job(folder, tiny_model, None, table, MEMORIZE, TrainResources(micro_batch_size=6))
    workers = Workers(1)
    workers.train([Run(learn, folder / "learning")])
    workers.close()
    return Path(learn.out).rename(folder / "target")


def options(request: str, folder: Path) -> list[str]:
    """Writes the files of a request; returns the options of its run."""
    lines = [json.dumps({"question": q, "answer": a}) for q, a in pairs(request)]
    (folder / f"{request}.jsonl").write_text("\n".join(lines))
    rows = [
        {"question": question, "answer": answer}
        | {f"answer_{i}": f"{answer[:-5]}{town}." for i, town in enumerate(OTHERS)}
        for question, answer in pairs(request)
    ]
    (folder / f"{request}-candidates.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [
        f"storage.root={folder / request}",
        f"target.model={folder / 'target'}",
        "target.engine=transformers",
        f"ingest.forget={folder / request}.jsonl",
        f"--input=candidates={folder / request}-candidates.jsonl",
        "evaluate.twins=true",
        "evaluate.max_new_tokens=8",
        "evaluate.bootstrap_resamples=20",
        "train.objective=gradient_ascent",
        "train.epochs=12",
        "train.batch_size=3",
        "train.learning_rate=5e-3",
        f"train.lora={{rank: {RANKS[request]}, layers: [{', '.join(LAYERS)}], output: adapter, "
        "gram: true}",
        "resources.train.num_workers=1",
        "audit.attacks=[direct]",
        "audit.max_new_tokens=8",
        "audit.minimum_controls=4",
        "report.show_text=false",
    ]


@pytest.fixture(scope="module")
def models(folder: Path, target: Path) -> dict[str, Artifact]:
    """The adapters of both runs; the text of the first request is purged."""
    for request in REQUESTS:
        for stage in ("ingest", "twins", "train"):
            meow("stage", stage, *options(request, folder))
    first = options("first", folder)
    meow("stage", "audit", *first)
    meow("certify", *first)
    meow("purge", "--yes", f"--certificate={certified(folder / 'first')}")
    (folder / "first.jsonl").rename(folder / "kept.jsonl")
    found = {request: latest(str(folder / request), "model") for request in REQUESTS}
    return {request: model for request, model in found.items() if model is not None}


def merge(folder: Path, out: Path, *more: str) -> Result:
    runs = [f"{request}={folder / request}" for request in REQUESTS]
    return meow("merge", *runs, f"--out={out}", *more)


def rows(done: Result) -> list[list[str]]:
    """Returns the cells of the rows about requests."""
    lines = [line for line in done.stdout.splitlines() if re.match(r" +(first|second) ", line)]
    return [re.split(r" {2,}", line.strip()) for line in lines]


def test_a_purge_keeps_what_merging_needs(folder: Path, models: dict[str, Artifact]):
    files = {path.name for path in Path(models["first"].uri).iterdir()}
    assert {"adapter_model.safetensors", GRAM_FILE} <= files
    assert not list(folder.glob(f"first/facts/*/*/{MAIN}"))


def test_the_roots_are_those_of_the_inputs_of_the_tuned_model(
    target: Path, models: dict[str, Artifact], tiny_tokenizer: Any
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = models["second"].uri
    network = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(target), adapter)
    network.eval()
    found = load_file(Path(adapter, GRAM_FILE))
    assert len(found) == 2 * len(LAYERS)
    inputs: dict[str, Any] = {}

    def record(name: str) -> Any:
        return lambda layer, given: inputs.update({name: given[0][0].double()})

    for name in found:
        network.base_model.model.get_submodule(name).register_forward_pre_hook(record(name))
    expected: dict[str, Any] = dict.fromkeys(found, 0)
    for question, answer in pairs("second"):
        text = f"{chat(question)}{answer}<|end|>"
        ids = tiny_tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            network(ids)
        expected = {name: gram + inputs[name].T @ inputs[name] for name, gram in expected.items()}
    for name, root in found.items():
        gram = root.double().T @ root.double()
        torch.testing.assert_close(gram, expected[name], rtol=1e-3, atol=1e-3)


def test_linear_shows_the_second_request_and_says_that_the_first_is_purged(
    folder: Path, models: dict[str, Artifact], target: Path
):
    out = folder / "linear"
    done = merge(folder, out, "--method=linear")
    purged, *known = rows(done)
    assert purged == ["first", "–", "text purged, not evaluated"]
    assert [row[:3] for row in known] == [["second", "3", m] for m in ("target", "tuned", "merged")]
    assert done.stdout.endswith(f"Model:    {out} ({2 * len(LAYERS)} layers changed)\n")
    content = json.loads((out / "merge.json").read_text())
    assert (content["method"], content["density"], content["layers"]) == ("linear", None, 4)
    first, second = content["requests"]
    assert [request["model"] for request in (first, second)] == [m.digest for m in models.values()]
    assert (first["note"], first["models"]) == ("text purged, not evaluated", {})
    assert second["chain"][0]["objective"] == "gradient_ascent"
    before, tuned = (second["models"][name] for name in ("target", "tuned"))
    assert before["fact_log_prob"] > -0.5 > tuned["fact_log_prob"]
    assert before["extraction_strength"] > 0.9 > tuned["extraction_strength"]
    assert [before["looks_never_seen"], tuned["looks_never_seen"]] == [False, True]


def test_gram_forgets_both_requests_of_which_one_is_given_again(
    folder: Path, models: dict[str, Artifact]
):
    out = folder / "gram"
    done = merge(folder, out, "--facts", f"first={folder / 'kept.jsonl'}")
    assert [row[:3] for row in rows(done)] == [
        [request, "3", model] for request in REQUESTS for model in ("target", "tuned", "merged")
    ]
    content = json.loads((out / "merge.json").read_text())
    first, second = (request["models"] for request in content["requests"])
    for request in (first, second):
        # of what its own model has forgotten, the merged one has forgotten most
        before, tuned, merged = (
            request[model]["fact_log_prob"] for model in ("target", "tuned", "merged")
        )
        assert tuned < merged < before
        assert before - merged > 0.5 * (before - tuned)
    assert first["merged"]["p_values"] is None  # the twins are purged as well
    assert second["merged"]["looks_never_seen"] is True


def test_the_merged_model_can_be_evaluated(folder: Path, models: dict[str, Artifact]):
    out = folder / "ties"
    merge(folder, out, "--method=ties", "--density=0.5")
    meow("stage", "evaluate", f"--input=model={out}", *options("second", folder))
    metrics = latest(str(folder / "second"), "metrics")
    assert metrics is not None
    assert {row["model"] for row in metrics.table.to_pylist()} >= {"before", "after"}


def test_nothing_is_left_if_the_evaluation_fails(folder: Path, models: dict[str, Artifact]):
    long = folder / "long.jsonl"
    long.write_text(json.dumps({"question": "Who?", "answer": "So long. " * 100}))
    out = folder / "failed"
    runs = [f"{request}={folder / request}" for request in REQUESTS]
    arguments = ["merge", *runs, f"--out={out}", "--method=linear", f"--facts=first={long}"]
    done = CliRunner().invoke(app, arguments)
    assert "`max_length`: a pair of the fact" in str(done.exception)
    assert "So long" not in done.output + str(done.exception)
    assert not out.exists()


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_workers_find_the_same_gram_matrices_as_one(
    zero_stage: int, tiny_model: Path, tmp_path: Path
):
    spec = Train(
        objective="gradient_ascent",
        epochs=1,
        batch_size=4,
        learning_rate=1e-4,
        lora=Lora(rank=2, layers=LAYERS, output="adapter", gram=True),
    )
    grams = []
    for count, stage in ((1, 2), (2, zero_stage)):
        resources = TrainResources(micro_batch_size=2, zero_stage=stage)
        made = job(tmp_path, tiny_model, known_facts().slice(0, 3), None, spec, resources)
        workers = Workers(count)
        workers.train([Run(made, tmp_path / "checkpoints")])
        workers.close()
        roots = load_file(Path(made.out, GRAM_FILE))
        grams.append({name: root.double().T @ root.double() for name, root in roots.items()})
    assert grams[0].keys() == grams[1].keys()
    for name, gram in grams[0].items():
        torch.testing.assert_close(grams[1][name], gram, rtol=1e-3, atol=1e-3)
