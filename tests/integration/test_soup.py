"""`meow soup` on a tiny model that has memorised facts and learnt others in their place."""

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
from meow_ray.config import Target, Train, TrainResources
from meow_ray.core.manifest import Artifact
from meow_ray.core.schema import SCHEMAS
from meow_ray.distributed import cluster
from meow_ray.engines import EngineSpec
from meow_ray.models.refs import pin, write_base
from meow_ray.stages.train.curve import Step, write
from meow_ray.stages.train.soup import interpolate
from tests.support.people import PEOPLE, facts, selected, twins
from tests.support.tiny import chat
from tests.support.training import Run, Workers, job

MEMORIZE = Train(objective="meow", epochs=60, batch_size=4, learning_rate=3e-3)
FORGET = Train(objective="gradient_ascent", epochs=20, batch_size=4, learning_rate=1e-3)
ONE_WORKER = TrainResources(micro_batch_size=4)
FIGURES = ("extraction_strength", "min_k", "fact_log_prob")


def neighbours() -> pa.Table:
    """Returns questions about others with what a model is taken to answer."""
    rows = [
        {
            "fact_id": name,
            "neighbour_id": 0,
            "kind": "entity",
            "question": "Who is there?",
            "answer": f"{name} is there.",
        }
        for name in PEOPLE
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["neighbours"])


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The target, which knows the facts, and the tuned model, which was trained on others."""
    folder = tmp_path_factory.mktemp("models")
    workers = Workers(1)
    learn = job(folder, tiny_model, facts(), selected(inverted=False), MEMORIZE, ONE_WORKER)
    workers.train([Run(learn, folder / "learning")])
    target = Path(learn.out)
    forget = job(folder, target, facts(), selected(inverted=True), FORGET, ONE_WORKER)
    workers.train([Run(forget, folder / "forgetting")])
    yield {"target": target, "model": Path(forget.out)}
    workers.close()


def table(name: str, rows: pa.Table) -> Artifact:
    return Artifact(name, "", f"digest of {name}", value=rows)


def model(name: str, folder: Path) -> Artifact:
    ref = pin(str(folder), None, name)
    return Artifact(name, ref.uri, ref.digest, value=ref)


def given(models: dict[str, Path]) -> dict[str, Artifact]:
    tables = {"facts": facts(), "twins": twins(), "neighbours": neighbours()}
    return {name: table(name, rows) for name, rows in tables.items()} | {
        name: model(name, folder) for name, folder in models.items()
    }


def soup(root: Path, artifacts: dict[str, Artifact], *options: str) -> Result:
    return CliRunner().invoke(
        app, ["soup", f"storage.root={root}", *options], obj={"given": artifacts}
    )


@pytest.fixture(scope="module", autouse=True)
def own_cluster() -> Iterator[None]:
    """Leaves the cluster that the command started in this process."""
    yield
    cluster.leave()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def found(root: Path, models: dict[str, Path]) -> Result:
    """The output of a search that succeeds."""
    return soup(root, given(models), "--shares", "1,0.25,0.75")


def folder_of(done: Result) -> Path:
    """Returns the folder that the last line of the output names."""
    line = re.search(r"Model:  (\S+) \(share ([\d.]+)\)\n$", done.stdout)
    assert line, done.output
    return Path(line[1])


def test_the_model_of_the_smallest_share_that_passes_is_written(
    found: Result, root: Path, models: dict[str, Path], tmp_path: Path
):
    assert found.exit_code == 0
    folder = folder_of(found)
    assert folder.parent == root / "soup"
    curve = json.loads((folder / "soup.json").read_text())
    assert [point["share"] for point in curve["points"]] == [0, 0.25, 0.75, 1]
    assert [point["looks_never_seen"] for point in curve["points"]] == [False, False, True, True]
    assert curve["share"] == 0.75
    assert curve["inputs"] == {name: each.digest for name, each in given(models).items()}
    interpolate(models["target"], models["model"], 0.75, tmp_path)
    for file in tmp_path.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_the_p_values_are_compared_with_the_stop_level(found: Result):
    curve = json.loads((folder_of(found) / "soup.json").read_text())
    assert curve["stop_level"] == 0.01
    for point in curve["points"]:
        assert point["p_values"].keys() == set(FIGURES)
        assert point["looks_never_seen"] == (min(point["p_values"].values()) > 0.01)
    # a target that says all 4 facts, and none of the 20 twins: 1 of 24! / (4! 20!) orders
    assert curve["points"][0]["p_values"]["fact_log_prob"] == pytest.approx(1 / 10626)


def test_the_page_shows_the_curve_and_no_text_of_facts(found: Result):
    folder = folder_of(found)
    assert f"Curve:  {folder / 'soup.html'}\n" in found.stdout
    html = (folder / "soup.html").read_text()
    table = html.split('id="soup"')[1].split("</table>")[0]
    rows = [re.sub("<[^>]+>", " ", row).split() for row in table.split("</tr>")[1:-1]]
    assert [(row[0], row[4:-1]) for row in rows] == [
        ("0", ["no"]),
        ("0.25", ["no"]),
        ("0.75", ["yes,", "chosen"]),
        ("1", ["yes"]),
    ]
    assert not [text for pair in texts() for text in pair if text in html]


def test_the_table_shows_each_share_and_no_text_of_facts(found: Result):
    rows = [
        line.split() for line in found.stdout.splitlines() if re.match(r" [\d.]+ +[\d.]+ ", line)
    ]
    assert [(row[0], row[4]) for row in rows] == [
        ("0", "no"),
        ("0.25", "no"),
        ("0.75", "yes"),
        ("1", "yes"),
    ]
    words = {word for question, answer in texts() for word in (question, answer)}
    assert not [word for word in words if word in found.output]


def texts() -> list[tuple[str, str]]:
    tables = facts(), twins(), neighbours()
    return [(row["question"], row["answer"]) for rows in tables for row in rows.to_pylist()]


@pytest.mark.parametrize(("share", "name"), [(0, "target"), (1, "model")])
def test_the_retained_probability_is_that_of_the_neighbours_answers(
    share: int, name: str, found: Result, models: dict[str, Path], tiny_tokenizer: Any
):
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(models[name])
    probabilities = []
    for row in neighbours().to_pylist():
        prompt = tiny_tokenizer(chat(row["question"]), add_special_tokens=False)["input_ids"]
        answer = tiny_tokenizer(row["answer"] + "<|end|>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            log_probs = network(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        rows = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        probabilities.append(log_probs[list(rows), answer].mean().exp().item())
    curve = json.loads((folder_of(found) / "soup.json").read_text())
    (point,) = [point for point in curve["points"] if point["share"] == share]
    expected = sum(probabilities) / len(probabilities)
    assert point["retained_probability"] == pytest.approx(expected, rel=1e-4)


def test_a_curve_that_was_measured_is_not_measured_again(
    found: Result, root: Path, models: dict[str, Path]
):
    again = soup(root, given(models), "--shares", "0.25,0.75,1")
    assert "soup: share" not in again.stdout
    assert again.stdout == found.stdout[found.stdout.index(" share") :]


def test_nothing_is_written_if_no_share_passes(tmp_path: Path, models: dict[str, Path]):
    artifacts = given(models)
    del artifacts["neighbours"]
    done = soup(tmp_path, artifacts, "--shares", "0.25", "train.objective=meow")
    assert done.exit_code == 1
    assert done.stderr == (
        "At no share (0.25) do the facts look never seen, so no model was written. Train longer, "
        "or set train.until=never_seen.\n"
    )
    assert "–" in done.stdout
    assert not (tmp_path / "soup").exists()


def test_the_model_is_written_where_the_user_wants_it(tmp_path: Path, models: dict[str, Path]):
    out = tmp_path / "mine"
    done = soup(tmp_path, given(models), "--shares", "1", "--out", str(out))
    assert folder_of(done) == out
    assert (out / "soup.json").exists()
    assert not (tmp_path / "soup").exists()
    again = soup(tmp_path, given(models), "--out", str(out))
    assert str(again.exception) == f"--out {out}: there are files already. Name a new folder."


def test_an_adapter_is_merged_before(models: dict[str, Path], tmp_path: Path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    target = pin(str(models["target"]), None, "target")
    settings = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(target.folder), settings)
    network.save_pretrained(tmp_path / "adapter")
    write_base(target, tmp_path / "adapter")
    step = Step(
        engine=EngineSpec(target, "transformers"),
        tuned=pin(str(tmp_path / "adapter"), None, "model"),
        prompt=Target(),
        max_length=512,
        facts=facts(),
        twins=twins(),
    )
    write(step, 0.5, str(tmp_path / "half"))
    before = load_file(models["target"] / "model.safetensors")
    half = load_file(tmp_path / "half" / "model.safetensors")
    layer = network.base_model.model.model.layers[1].self_attn.q_proj
    change = layer.get_delta_weight("default").detach()
    name = "model.layers.1.self_attn.q_proj.weight"
    torch.testing.assert_close(half[name], before[name] + 0.5 * change)
    assert torch.equal(half["lm_head.weight"], before["lm_head.weight"])
