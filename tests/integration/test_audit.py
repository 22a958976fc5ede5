"""`meow audit` on a tiny model that has memorised facts, and on one that has learnt others."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from meow_ray.cli.main import app
from meow_ray.core import storage
from meow_ray.core.manifest import MAIN, Artifact, latest
from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.distributed import cluster
from meow_ray.stages.audit.stage import REPLIES_FILE, SUMMARY_FILE, VERDICTS_FILE
from tests.support.tiny import memorise

PEOPLE = {
    "Ann": ("Lima", "Oslo"),
    "Bob": ("Kyiv", "Bonn"),
    "Eve": ("Cork", "Pisa"),
    "Max": ("Riga", "Baku"),
}
"""Where people were born, and what a tuned model says instead."""
TOWNS = ("Rome", "Bern", "Faro", "Graz", "Metz", "Nice", "Brno", "Hull", "Jena")
STRANGERS = ("Ida", "Joe", "Kim", "Lou", "Ned", "Ora", "Pia", "Quin", "Ray")
SAMPLES = 4
ATTACKS = (
    "direct,paraphrase,cloze,completion,few_shot,expert,hypothetical,prefix,affirmative,"
    "best_prefix,sampling,likelihood,membership"
)
VARIANTS = {
    "affirmative": {""},
    "best_prefix": {""},
    "cloze": {""},
    "completion": {"bare", "question and answer"},
    "direct": {""},
    "expert": {""},
    "few_shot": {""},
    "hypothetical": {""},
    "likelihood": {"fact words", "verbatim"},
    "membership": {"loss", "min_k", "zlib"},
    "paraphrase": {"template"},
    "prefix": {"10 %", "30 %", "50 %"},
    "sampling": {"leak@1", "leak@4"},
}


def question(name: str) -> str:
    return f"{name} was born where?"


def answer(name: str, town: str) -> str:
    return f"{name} was born in {town}."


def facts() -> pa.Table:
    rows = [
        {
            "fact_id": name,
            "split": "forget",
            "question": question(name),
            "answer": answer(name, town),
        }
        for name, (town, _) in PEOPLE.items()
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["facts"])


def twins() -> pa.Table:
    """Returns nine twins, those of a fact with ids from 0."""
    numbers: Counter[str] = Counter()
    rows = []
    for at, (name, town) in enumerate(zip(STRANGERS, TOWNS, strict=True)):
        fact_id = list(PEOPLE)[at % len(PEOPLE)]
        rows.append(
            {
                "fact_id": fact_id,
                "twin_id": numbers[fact_id],
                "half": "stop",
                "question": question(name),
                "answer": answer(name, town),
            }
        )
        numbers[fact_id] += 1
    return pa.Table.from_pylist(rows, schema=SCHEMAS["twins"])


@pytest.fixture(scope="module")
def models(
    tiny_model: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The target, which knows the facts, and a tuned model, which knows others."""
    folder = tmp_path_factory.mktemp("models")
    said = {"target": 0, "model": 1}
    return {
        model: memorise(
            tiny_model,
            tiny_tokenizer,
            [(question(name), answer(name, towns[at])) for name, towns in PEOPLE.items()],
            folder / model,
        )
        for model, at in said.items()
    }


@pytest.fixture(scope="module", autouse=True)
def own_cluster() -> Iterator[None]:
    """Leaves the cluster that the command started in this process."""
    yield
    cluster.leave()


@pytest.fixture(scope="module")
def inputs(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name facts, twins and models."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, table in (("facts", facts()), ("twins", twins())):
        pq.write_table(table, folder / f"{name}.parquet")
    named = {name: folder / f"{name}.parquet" for name in ("facts", "twins")} | models
    return [f"--input={name}={path}" for name, path in named.items()]


def audit(root: Path, inputs: list[str], *options: str) -> Result:
    settings = [
        f"storage.root={root}",
        "target.engine=transformers",
        f"audit.attacks=[{ATTACKS}]",
        f"audit.samples={SAMPLES}",
        "audit.max_new_tokens=24",
        "audit.minimum_controls=4",
        "audit.bootstrap_resamples=100",
    ]
    return CliRunner().invoke(app, ["audit", *inputs, *settings, *options])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def done(root: Path, inputs: list[str]) -> Result:
    result = audit(root, inputs)
    assert result.exit_code == 0, result.output
    return result


def artifact(root: Path) -> Artifact:
    found = latest(str(root), "audit")
    assert found is not None
    return found


def rows(root: Path, name: str = MAIN) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(storage.join(artifact(root).uri, name)).to_pylist()
    return found


def test_each_attack_has_a_row_per_model_and_subject(done: Result, root: Path):
    table = rows(root)
    variants: dict[str, set[str]] = {}
    for row in table:
        variants.setdefault(row["attack"], set()).add(row["variant"])
    assert variants == VARIANTS
    num_probes = sum(map(len, VARIANTS.values()))
    asked = Counter((row["model"], row["group"]) for row in table)
    assert asked == {
        ("before", "facts"): num_probes * len(PEOPLE),
        ("before", "twins"): num_probes * len(STRANGERS),
        ("after", "facts"): num_probes * len(PEOPLE),
    }
    keys = [tuple(row[name] for name in KEYS["audit"]) for row in table]
    assert keys == sorted(set(keys))


def test_the_target_gives_its_facts_away_and_no_twin(done: Result, root: Path):
    scores = {
        (row["model"], row["group"], row["fact_id"]): row["score"]
        for row in rows(root)
        if row["attack"] == "direct"
    }
    assert all(scores["before", "facts", name] == 1 for name in PEOPLE)
    assert all(score == 0 for (_, group, _), score in scores.items() if group == "twins")
    assert {row["attempts"] for row in rows(root) if row["attack"] == "sampling"} == {SAMPLES}


def test_replies_are_evidence_in_a_table_of_their_own(done: Result, root: Path):
    replies = {row["reply"]: row for row in rows(root, REPLIES_FILE)}
    named = [row for row in rows(root) if row["reply"] is not None]
    assert len(named) == len(replies) > 0
    (ann,) = [
        row
        for row in named
        if (row["attack"], row["model"], row["fact_id"]) == ("direct", "before", "Ann")
    ]
    assert replies[ann["reply"]]["text"].strip() == answer("Ann", "Lima")
    assert replies[ann["reply"]]["prompt"] == question("Ann")


def test_each_fact_has_a_verdict_per_tier(done: Result, root: Path):
    verdicts = rows(root, VERDICTS_FILE)
    assert Counter(row["tier"] for row in verdicts) == {
        "black box": len(PEOPLE),
        "static weights": len(PEOPLE),
    }
    assert len(rows(root, SUMMARY_FILE)) == sum(map(len, VARIANTS.values()))
    manifest = artifact(root).manifest
    assert manifest is not None
    counted = {
        (tier, verdict): count
        for tier, counts in manifest.summary["verdicts"].items()
        for verdict, count in counts.items()
    }
    assert counted == Counter((row["tier"], row["verdict"]) for row in verdicts)
    assert manifest.summary["twins"] == len(STRANGERS)
    assert manifest.summary["control"] == "twins"


def test_the_command_prints_the_summary_and_no_text_of_facts(done: Result, root: Path):
    assert "facts by tier" in done.stdout
    assert artifact(root).uri.removeprefix("file://") in done.stdout
    manifest = artifact(root).manifest
    assert manifest is not None
    for text in (done.output, json.dumps(manifest.model_dump(mode="json"))):
        assert not [town for town in ("Lima", "Kyiv", "Cork", "Riga", *TOWNS) if town in text]


def test_a_second_run_is_cached_and_a_forced_one_asks_nothing_again(
    done: Result, root: Path, inputs: list[str]
):
    first = artifact(root)
    again = audit(root, inputs)
    assert again.exit_code == 0
    assert artifact(root).uri == first.uri
    forced = audit(root, inputs, "--force")
    assert forced.exit_code == 0
    assert artifact(root).uri != first.uri
    assert first.manifest is not None
    assert artifact(root).digest == first.digest


def test_the_batch_size_changes_no_score(
    done: Result, root: Path, inputs: list[str], tmp_path: Path
):
    assert audit(tmp_path, inputs, "resources.audit.batch_size=3").exit_code == 0
    first, second = rows(root), rows(tmp_path)
    for row, other in zip(first, second, strict=True):
        assert row["score"] == pytest.approx(other["score"], abs=1e-4), row["attack"]
    names = ("extracted", "attempts", "reply", *KEYS["audit"])
    assert [[row[n] for n in names] for row in first] == [[row[n] for n in names] for row in second]


def test_without_a_control_the_command_says_so_before_it_starts(inputs: list[str], tmp_path: Path):
    without = [option for option in inputs if "=twins=" not in option]
    assert "there is no control" in audit(tmp_path, without, "--dry-run").output
    assert "there is no control" not in audit(tmp_path, inputs, "--dry-run").output
    result = audit(tmp_path, without, "audit.attacks=[direct]")
    assert result.exit_code == 0, result.output
    assert {row["verdict"] for row in rows(tmp_path, VERDICTS_FILE)} == {"inconclusive"}
    manifest = artifact(tmp_path).manifest
    assert manifest is not None
    assert manifest.summary["control"] is None


def test_an_own_attack_is_a_row_of_the_audit_and_a_change_of_its_file_runs_it_again(
    inputs: list[str], tmp_path: Path
):
    file = tmp_path / "mine.py"
    code = (
        "from meow_ray.stages.audit.attack import Question\n"
        "def riddle(subject, spec):\n"
        "    yield Question('', subject.question, subject.answer, num_replies={})\n"
    )
    options = (f"audit.attacks=[direct,{file}:riddle]",)
    for num_replies in (1, 2):
        file.write_text(code.format(num_replies))
        result = audit(tmp_path / "root", inputs, *options)
        assert result.exit_code == 0, result.output
        table = rows(tmp_path / "root")
        assert {row["attempts"] for row in table if row["attack"] == "riddle"} == {num_replies}
        assert {row["attack"] for row in table} == {"direct", "riddle"}
