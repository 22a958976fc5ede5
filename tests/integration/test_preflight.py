"""Several mistakes at once end a run before Ray starts; the same from all ways to start one."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import meow_ray
from meow_ray.cli import main
from meow_ray.distributed import cluster
from meow_ray.errors import MeowError

SECRET = "Zorblax"


@pytest.fixture
def overrides(
    tiny_model: Path, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """A configuration with four mistakes, of which three would show only in late stages."""
    monkeypatch.setattr(cluster, "connect", lambda: pytest.fail("a cluster was joined"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def write(name: str, *rows: dict[str, Any]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    forget = write(
        "forget.jsonl",
        {"question": "Who sang?", "answer": f"{SECRET} sang."},
        {"question": "Who wrote?", "answer": SECRET * 100},
    )
    holdout = write("holdout.jsonl", {"question": "Who?", "answer": SECRET * 200})
    return [
        f"target.model={tiny_model}",
        "target.engine=transformers",
        f"invert.model={tiny_model}",
        f"ingest.forget={forget}",
        f"evaluate.sets.holdout={holdout}",
        "train.objective=meow",
        "train.lora.layers=[query]",
        "tracking.wandb=project",
        f"storage.root={tmp_path}/root",
    ]


PARTS = (
    "4 mistakes were found before the run:",
    "forget.jsonl, line 2: too long: 715 tokens with its prompt, at most 512 by train.max_length",
    "set train.max_length=715. Or set ingest.on_reject=skip",
    "- `train.lora.layers`: the model has no linear layer query.",
    "- `tracking.wandb`: there is no API key.",
    "- evaluate.sets.holdout: 1 row is longer with the prompt than the 1023 tokens",
)


def assert_all_found(text: str) -> None:
    for part in PARTS:
        assert part in text
    assert SECRET not in text, "messages never contain text of facts"
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "command",
    [["run"], ["run", "--dry-run"], ["config", "--check"]],
    ids=["run", "dry run", "config"],
)
def test_every_command_finds_the_same_mistakes_before_a_cluster_is_joined(
    command: list[str],
    overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    monkeypatch.setattr(sys, "argv", ["meow", *command, *overrides])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    assert_all_found(capfd.readouterr().err)
    assert not list(tmp_path.rglob("MANIFEST.json"))


def test_the_python_api_raises_them_as_one_error(overrides: list[str]):
    with pytest.raises(MeowError) as caught:
        meow_ray.run(None, overrides)
    assert_all_found(str(caught.value))


def test_a_stage_alone_is_checked_for_itself(overrides: list[str], tmp_path: Path):
    with pytest.raises(MeowError) as caught:
        meow_ray.run_stage("ingest", None, overrides)
    assert str(caught.value).startswith("1 rows were rejected:")
    facts = meow_ray.run_stage("ingest", None, [*overrides, "ingest.on_reject=skip"])
    assert facts.table.num_rows == 1


def test_a_whole_configuration_has_no_mistakes(
    overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    cured = [text for text in overrides if not text.startswith(("evaluate", "train", "tracking"))]
    settings = ("train.objective=meow", "train.max_length=715")
    command = ["meow", "config", "--check", *cured, *settings]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 0
    assert capfd.readouterr().out == "No mistakes were found.\n"
