"""`meow plan --probe` measures throughputs on the cluster and plans with them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import BIN, PROJECT

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def overrides(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("probe")
    for name, numbers in (("forget", range(4)), ("retain", range(4, 6))):
        rows = [
            {"question": f"Who is number {i}?", "answer": f"It is Mr Zorblax {i}."} for i in numbers
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"ingest.forget={folder}/forget.jsonl",
        f"ingest.retain={folder}/retain.jsonl",
        f"invert.model={tiny_model}",
        "invert.engine=transformers",
        "invert.style=prefill",
        f"target.model={tiny_model}",
        "target.engine=transformers",
        "target.template=raw",
        "train.objective=meow",
        "train.batch_size=4",
        "evaluate.attacks=[affirmative]",
        f"storage.root={folder}/runs",
    ]


def plan(*arguments: str) -> str:
    done = subprocess.run(
        [BIN / "meow", "plan", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def probed(overrides: list[str]) -> dict[str, Any]:
    """The part `run` of the plan that a probe prints as JSON."""
    run: dict[str, Any] = json.loads(plan(*overrides, "--probe", "--json"))["run"]
    return run


def test_measured_rates_are_positive(probed: dict[str, Any]):
    rates = probed["rates"]
    assert rates.keys() == {"generator", "target", "training", "memorizing"}
    assert rates["memorizing"] is None
    for engine in ("generator", "target"):
        assert rates[engine].keys() == {"start", "read", "generate"}
        assert min(rates[engine].values()) > 0
    assert rates["training"].keys() == {"start", "train"}
    assert min(rates["training"].values()) > 0


def test_times_follow_from_the_measured_rates(probed: dict[str, Any]):
    stages = {stage["stage"]: stage for stage in probed["stages"]}
    assert list(stages) == ["invert", "memo", "train", "evaluate"]
    target, memo = probed["rates"]["target"], stages["memo"]
    tokens = memo["read"] / target["read"] + memo["generated"] / target["generate"]
    assert memo["seconds"] == pytest.approx(target["start"] + tokens / memo["units"])
    training, train = probed["rates"]["training"], stages["train"]
    steps = train["trained"] / training["train"] / train["units"]
    assert train["seconds"] == pytest.approx(training["start"] + steps)


def test_printed_rates_can_be_given_as_a_file(
    probed: dict[str, Any], overrides: list[str], tmp_path: Path
):
    path = tmp_path / "rates.json"
    path.write_text(json.dumps(probed["rates"]))
    from_file = json.loads(plan(*overrides, f"--rates={path}", "--json"))["run"]
    assert from_file == probed
    table = plan(*overrides, f"--rates={path}")
    hours = sum(stage["seconds"] for stage in probed["stages"]) / 3600
    assert f"In total {hours:.2f} hours" in table


def test_a_probe_removes_its_files(probed: dict[str, Any], overrides: list[str]):
    root = Path(overrides[-1].removeprefix("storage.root="))
    assert probed["rates"]
    assert not [path for path in root.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_memorize_is_measured_with_its_own_batches(
    overrides: list[str], tiny_model: Path, tmp_path: Path
):
    from_base = [override for override in overrides if not override.startswith("target.model=")]
    data = overrides[0].removeprefix("ingest.forget=")
    run = json.loads(
        plan(
            *from_base,
            f"memorize.model={tiny_model}",
            f"memorize.data=[{data}]",
            "memorize.batch_size=2",
            "--probe",
            "--json",
        )
    )["run"]
    assert run["rates"]["memorizing"]["train"] > 0
    assert run["rates"]["memorizing"] != run["rates"]["training"]
    stages = [stage["stage"] for stage in run["stages"]]
    assert stages == ["memorize", "invert", "memo", "train", "evaluate"]
