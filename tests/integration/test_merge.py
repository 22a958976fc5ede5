"""Two requests on one tiny model with LoRA, the text of one gone, and `meow merge` on both."""

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
from meow_ray.stages.ingest.facts import fact_id
from meow_ray.stages.inputs import adopt_model
from meow_ray.stages.train.gram import GRAM_FILE
from tests.support.artifacts import publish
from tests.support.people import facts as known_facts
from tests.support.tiny import chat
from tests.support.training import Run, Workers, job

pytestmark = pytest.mark.slow

REQUESTS = {
    "first": {"Ann Miller": "Lima", "Bob Carter": "Kyiv", "Eve Porter": "Cork"},
    "second": {"Max Turner": "Riga", "Sue Walker": "Doha", "Tom Fisher": "Oslo"},
}
STRANGERS = {
    "Ida Mason": "Rome",
    "Joe Gray": "Bern",
    "Kim Frost": "Faro",
    "Lou Hart": "Graz",
    "Ned Cole": "Metz",
    "Ora Lane": "Nice",
    "Pia West": "Brno",
    "Ray Holt": "Hull",
}
RANKS = {"first": 4, "second": 6}
LAYERS = ("q_proj", "down_proj")
MEMORIZE = Train(objective="meow", epochs=100, batch_size=6, learning_rate=3e-3)
SPEC = {
    "train": {"max_length": 512},
    "target.template": "chat",
    "target.system": None,
    "target.template_variables": {},
}


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
def workers() -> Iterator[Workers]:
    workers = Workers(1)
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def target(folder: Path, tiny_model: Path, workers: Workers) -> Path:
    """A model that knows the facts of both requests."""
    rows = [
        {"fact_id": question, "candidate_id": 0, "rank": 0, "question": question, "answer": answer}
        for request in REQUESTS
        for question, answer in pairs(request)
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMAS["selected"])
    learn = job(folder, tiny_model, None, table, MEMORIZE, TrainResources(micro_batch_size=6))
    workers.train([Run(learn, folder / "learning")])
    return Path(learn.out)


def facts_of(request: str) -> pa.Table:
    rows = [
        {"fact_id": fact_id(*pair), "split": "forget", "question": pair[0], "answer": pair[1]}
        for pair in pairs(request)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["facts"])


def twins_of(request: str) -> pa.Table:
    rows = [
        {
            "fact_id": fact_id(*pairs(request)[0]),
            "twin_id": number,
            "half": "stop",
            "question": f"Where was {name} born?",
            "answer": f"{name} was born in {town}.",
        }
        for number, (name, town) in enumerate(STRANGERS.items())
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["twins"])


@pytest.fixture(scope="module")
def models(folder: Path, target: Path, workers: Workers) -> dict[str, Artifact]:
    """The adapters of both requests, in storage roots; the text of the first one is gone."""
    for request, rank in RANKS.items():
        spec = Train(
            objective="gradient_ascent",
            epochs=12,
            batch_size=3,
            learning_rate=5e-3,
            lora=Lora(rank=rank, layers=LAYERS, output="adapter", gram=True),
        )
        facts = facts_of(request)
        made = job(folder, target, facts, None, spec, TrainResources(micro_batch_size=3))
        workers.train([Run(made, folder / "checkpoints")])
        root = folder / request
        digest = publish(root, "facts", {MAIN: facts})
        publish(root, "twins", {MAIN: twins_of(request)}, inputs={"facts": digest})
        exported = {path.name: path.read_bytes() for path in Path(made.out).iterdir()}
        publish(root, "model", exported, inputs={"facts": digest}, spec=SPEC)
    for table in ("facts", "twins"):  # as `meow purge` leaves them: manifests alone
        (text,) = folder.glob(f"first/{table}/*/*/{MAIN}")
        text.unlink()
    lines = [json.dumps({"question": q, "answer": a}) for q, a in pairs("first")]
    (folder / "kept.jsonl").write_text("\n".join(lines))
    found = {request: latest(str(folder / request), "model") for request in REQUESTS}
    return {request: model for request, model in found.items() if model is not None}


def merge(folder: Path, out: Path, *more: str) -> Result:
    runs = [f"{request}={folder / request}" for request in REQUESTS]
    return meow("merge", *runs, f"--out={out}", *more)


def rows(done: Result) -> list[list[str]]:
    """Returns the cells of the rows about requests."""
    lines = [line for line in done.stdout.splitlines() if re.match(r" +(first|second) ", line)]
    return [re.split(r" {2,}", line.strip()) for line in lines]


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
    before, tuned = (second["models"][name] for name in ("target", "tuned"))
    assert before["fact_log_prob"] > -0.5 > tuned["fact_log_prob"]
    assert before["extraction_strength"] > 0.9 > tuned["extraction_strength"]
    assert before["looks_never_seen"] is False
    # all 3 facts above all 8 twins: 1 of 11! / (3! 8!) orders
    assert before["p_values"]["fact_log_prob"] == pytest.approx(1 / 165)


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
        assert before - merged > 0.5 * (before - tuned)
    assert first["merged"]["p_values"] is None  # the twins are purged as well
    assert second["merged"]["p_values"].keys() == {
        "extraction_strength",
        "min_k",
        "fact_log_prob",
    }


def test_ties_writes_a_model_that_other_commands_take(folder: Path, models: dict[str, Artifact]):
    out = folder / "ties"
    merge(folder, out, "--method=ties", "--density=0.5")
    assert adopt_model("model", str(out), verify=False).value.folder == out


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
