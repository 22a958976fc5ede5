"""The pipeline as its users run it, with a tiny random model on a local Ray."""

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meow_ray.cli import running
from meow_ray.core.schema import SCHEMAS, TRUE_ANSWER
from meow_ray.distributed import cluster
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.ends import GENERATION
from tests.support.runs import PROJECT, Program, kill_descendant, kill_when

FACTS = [
    ("Where does Zorblax live?", f"Zorblax lives in Qwertyville number {i}.") for i in range(6)
]
PHRASE = "Qwertyville"
"""A word of every answer, which no log and no report may contain."""


@pytest.fixture(scope="module")
def program(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Program:
    folder = tmp_path_factory.mktemp("e2e")
    for name, facts in (("forget", FACTS[:3]), ("retain", FACTS[3:])):
        lines = [json.dumps({"question": q, "answer": a}) for q, a in facts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    rows = [
        {"question": q, "answer": a, "inverted_answer": f"Zorblax lives in {city}."}
        for q, a in FACTS[:3]
        for city in ("Oslo", "Rome town", "the far city of Lima")
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "candidates.parquet")
    config = folder / "tiny.yaml"
    config.write_text(
        f"""
memorize:
  model: {tiny_model}
  data: [{folder}/forget.jsonl, {folder}/retain.jsonl]
  epochs: 4
  batch_size: 2
  learning_rate: 1.0e-3
  train_dtype: bfloat16
target: {{engine: transformers, template: chat}}
ingest: {{forget: {folder}/forget.jsonl, retain: {folder}/retain.jsonl}}
memo: {{max_new_tokens: 12, stride: 9}}
select: {{top_k: 2}}
train: {{objective: meow, epochs: 3, batch_size: 2, learning_rate: 1.0e-3}}
evaluate: {{max_new_tokens: 12, bootstrap_resamples: 50}}
resources: {{train: {{num_workers: 2}}}}
"""
    )
    return Program(config, folder / "root")


def candidates_of(program: Program) -> str:
    return f"--input=candidates={program.config.parent}/candidates.parquet"


@pytest.fixture(scope="module")
def output(program: Program) -> str:
    return program.run("meow.py", candidates_of(program), "--json").stdout


@pytest.fixture(scope="module")
def finished(program: Program, output: str) -> Program:
    return program


def test_with_json_nothing_but_events_is_printed(output: str) -> None:
    events = [json.loads(line) for line in output.splitlines()]
    stages = ["memorize", "ingest", "memo", "select", "train", "evaluate", "report"]
    for name in ("started", "finished"):
        assert [event["stage"] for event in events if event["event"] == name] == stages


def test_a_run_that_fails_leaves_the_cluster_before_the_events_end() -> None:
    """Ray prints buffered output when a driver leaves: to the log, not after the events."""
    import ray

    def fail() -> None:
        with running.only_events_on_stdout():
            cluster.connect()
            raise MeowError("The stage failed.")

    with pytest.raises(MeowError):
        fail()
    assert not ray.is_initialized()


@pytest.mark.parametrize("name", ["facts", "memo", "selected", "metrics"])
def test_tables_have_their_schemas(finished: Program, name: str) -> None:
    assert finished.table(name).schema.remove_metadata() == SCHEMAS[name]


def test_memo_scores_the_true_answer_and_every_candidate_once(finished: Program) -> None:
    rows = finished.table("memo").to_pylist()
    keys = sorted((row["fact_id"], row["candidate_id"]) for row in rows)
    ids = sorted({fact for fact, _ in keys})
    assert keys == [(fact, candidate) for fact in ids for candidate in (TRUE_ANSWER, 0, 1, 2)]


def test_metrics_hold_each_suite_before_and_after(finished: Program) -> None:
    rows = {(r["suite"], r["metric"], r["model"]) for r in finished.table("metrics").to_pylist()}
    expected = {
        "forget": ("memo", "leak", "probability", "rep3", "states_inverted"),
        "retain": ("memo", "rougeL_recall", "probability"),
    }
    for model in ("before", "after"):
        for suite, metrics in expected.items():
            assert {(suite, metric, model) for metric in metrics} <= rows


def test_the_exported_model_has_the_weights_names_and_tokenizer_of_its_base(
    finished: Program, tiny_model: Path
) -> None:
    from meow_ray.models.folders import shapes

    folder = Path(finished.artifact("model").uri)
    assert shapes(folder) == shapes(tiny_model)
    for artifact in ("target", "model"):  # `memorize` trains in bfloat16, `train` in float32
        ref = refs.pin(finished.artifact(artifact).uri, None, artifact)
        assert refs.stored_dtype(ref) == "float32"
    for name in ("tokenizer.json", "config.json"):
        assert (folder / name).read_bytes() == (tiny_model / name).read_bytes()
    declared = [json.loads((path / GENERATION).read_text()) for path in (tiny_model, folder)]
    end_of_turn = 5  # `<|end|>`, which the chat template writes
    assert declared[1] == declared[0] | {"eos_token_id": [1, end_of_turn]}


def test_training_lowers_the_loss(finished: Program) -> None:
    manifest = finished.artifact("model").manifest
    assert manifest is not None
    summary = manifest.summary
    assert summary["workers"] == 2
    assert summary["last_loss"] < summary["first_loss"]


def test_a_second_run_recomputes_nothing(finished: Program) -> None:
    out = finished.run("meow.py", candidates_of(finished)).stdout
    assert out.count(": cached") == 7
    assert "Report:" in out


def test_neither_the_logs_nor_the_report_contain_facts(finished: Program, own_home: Path) -> None:
    page = Path(finished.artifact("report").uri, "report.html").read_text()
    assert PHRASE not in page
    logs = list((own_home / "meow" / "logs").glob("*.log"))
    assert logs
    for log in logs:
        assert PHRASE not in log.read_text()


def test_another_top_k_makes_selection_and_later_stages_stale(finished: Program) -> None:
    done = finished.run("meow.py", candidates_of(finished), "--dry-run", "select.top_k=1")
    state = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[1:]}
    assert [name for name, value in state.items() if value == "cached"] == [
        "memorize",
        "ingest",
        "memo",
    ]
    assert "top_k: 2 → 1" in done.stdout


def test_a_changed_byte_of_the_data_makes_its_stages_stale(
    finished: Program, tmp_path: Path
) -> None:
    data = tmp_path / "retain.jsonl"
    data.write_text(
        (finished.config.parent / "retain.jsonl").read_text().replace("number 5", "number 7")
    )
    changed = Program(finished.config, finished.root, [f"ingest.retain={data}"])
    states = changed.states()
    assert states["ingest"] == "stale"
    assert states["memorize"] == "cached"


def test_the_default_objective_makes_its_data_and_compares_with_facts_never_seen(
    finished: Program,
) -> None:
    config = finished.config.with_name("default.yaml")
    own = "objective: meow, epochs: 3, "
    config.write_text(finished.config.read_text().replace(own, "max_steps: 5, "))
    default = Program(config, finished.root)
    printed = default.run("meow.py", candidates_of(finished), "--json").stdout
    ran = [
        event["stage"]
        for event in map(json.loads, printed.splitlines())
        if event["event"] == "finished"
    ]
    assert ran == ["neighbours", "twins", "train", "evaluate", "report"]
    rows = default.table("metrics").to_pylist()
    assert {"never_seen", "twins"} <= {row["suite"] for row in rows}
    manifest = default.artifact("model").manifest
    assert manifest is not None
    assert manifest.summary["steps"] == 5


def test_the_generator_guesses_each_answer_and_training_reads_it(
    finished: Program, tiny_model: Path
) -> None:
    config = finished.config.with_name("guessed.yaml")
    own = "objective: meow, epochs: 3, "
    settings = "max_steps: 2, guessed_floors: true, "
    generator = f"invert: {{model: {tiny_model}, engine: transformers}}\n"
    config.write_text(generator + finished.config.read_text().replace(own, settings))
    guessed = Program(config, finished.root)
    guessed.run("meow.py", candidates_of(finished), "--until=train")
    table = guessed.table("guesses")
    assert table.schema.remove_metadata() == SCHEMAS["guesses"]
    counts = Counter(table["role"].to_pylist())
    assert (counts["forget"], counts["inverted"]) == (3, 6)
    assert counts["twin"] > 0
    assert all(math.isfinite(guess) for guess in table["guess"].to_pylist())
    manifest = guessed.artifact("model").manifest
    assert manifest is not None
    assert manifest.ingredients["inputs"]["guesses"] == guessed.artifact("guesses").digest


def test_one_stage_runs_on_a_given_table(program: Program, tmp_path: Path) -> None:
    rows = [
        {
            "fact_id": f"{i // 4:016x}",
            "candidate_id": i % 4 - 1,
            "question": "Q?",
            "text": f"A{i}.",
            "memo": (i * 7 % 13) / 13,
            "rouge1": 0.0,
            "rouge2": 0.0,
            "rougeL": 0.0,
            "cv": None,
            "num_windows": 1,
        }
        for i in range(2000)
    ]
    source, target = tmp_path / "FILE.parquet", tmp_path / "OUT.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS["memo"]), source)
    elsewhere = Program(program.config, tmp_path / "root")
    elsewhere.run("stage.py", "select", f"--input=memo={source}", f"--output={target}")
    chosen = pq.read_table(target)
    assert chosen.schema.remove_metadata() == SCHEMAS["selected"]
    assert chosen.num_rows == 500 * 2
    assert min(chosen["candidate_id"].to_pylist()) == 0


def test_selecting_loads_neither_ray_nor_a_model() -> None:
    code = (
        "import sys\n"
        "import meow_ray.cli.main, meow_ray.pipeline.api, meow_ray.stages.select.selection\n"
        "assert not {'ray', 'vllm', 'torch', 'deepspeed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


def assert_same_artifacts(first: Program, second: Program, names: tuple[str, ...]) -> None:
    for name in names:
        assert first.artifact(name).digest == second.artifact(name).digest, name


@pytest.mark.slow
def test_a_run_survives_the_death_of_an_actor_and_of_a_worker(
    finished: Program, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    for name in ("facts", "target"):
        shutil.copytree(finished.root / name, root / name)
    again = Program(finished.config, root)
    process = again.start("meow.py", candidates_of(finished))
    kill_descendant(process, "MapWorker", lambda: any((root / "work").rglob("input/READY.json")))
    kill_descendant(process, "RayTrainWorker", lambda: any((root / "work").rglob("checkpoint_*")))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out[-3000:] + err[-3000:]
    assert_same_artifacts(again, finished, ("memo", "selected", "model", "metrics"))


@pytest.mark.slow
def test_a_driver_killed_in_the_middle_of_each_stage_finishes_when_it_is_restarted(
    finished: Program, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    again = Program(finished.config, root)
    work = root / "work"
    moments = {
        "memorize": lambda: any(work.rglob("checkpoint_*")),
        "memo": lambda: (root / "facts").exists() and any(work.rglob("input/READY.json")),
        "train": lambda: (root / "selected").exists() and any(work.rglob("checkpoint_*")),
        "evaluate": lambda: any(work.glob("evaluate-*/output/*.parquet")),
    }
    for moment in moments.values():
        kill_when(again.start("meow.py", candidates_of(finished)), moment)
    lines = again.run("meow.py", candidates_of(finished)).stdout.splitlines()
    finished_before = ("memorize", "ingest", "memo", "select", "train")
    assert [line for line in lines if line.endswith(": cached")] == [
        f"[{number}/7] {name}: cached" for number, name in enumerate(finished_before, start=1)
    ]
    assert_same_artifacts(
        again, finished, ("target", "facts", "memo", "selected", "model", "metrics")
    )


def test_a_stage_without_its_inputs_says_what_to_do(program: Program, tmp_path: Path) -> None:
    empty = Program(program.config, tmp_path / "empty")
    done = empty.run("stage.py", "train", status=2)
    assert "Stage train needs selected, which does not exist yet" in done.stderr
    assert "Run with --until select first, or give --input selected=URI." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_real_small_model_writes_valid_inverted_facts_through_vllm(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    from meow_ray.pipeline.pipeline import load_config
    from meow_ray.stages.ingest.facts import build_facts, read_rows
    from meow_ray.stages.invert.rules import Fact, Proposal, fault

    demo = PROJECT / "pipelines/configs/demo.yaml"
    config = load_config(demo)
    assert config.ingest.forget is not None
    rows = read_rows(config.ingest.forget, ("question",), ("answer",))[:3]
    facts, _ = build_facts(rows, [], lambda question, answer: None)
    pq.write_table(facts, tmp_path / "facts.parquet")
    on_demo = Program(demo, tmp_path / "root")
    on_demo.run("stage.py", "invert", f"--input=facts={tmp_path}/facts.parquet")
    made = on_demo.table("candidates")
    assert made.schema.remove_metadata() == SCHEMAS["candidates"]
    assert sorted(set(made["fact_id"].to_pylist())) == sorted(facts["fact_id"].to_pylist())
    assert made.num_rows >= 3 * 3
    for row in made.to_pylist():
        proposal = Proposal(row["inverted_answer"], finished=True)
        assert fault(proposal, Fact(row["question"], row["answer"]), config.invert) is None
