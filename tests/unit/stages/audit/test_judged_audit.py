"""The stage `audit` with a judge at an endpoint: given replies, real requests, no Ray."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meow_ray.config import Config
from meow_ray.core.manifest import MAIN
from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.core.stage import Context, no_engine_spec
from meow_ray.core.tables import Query
from meow_ray.distributed import cluster, map_rows, progress
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.audit import stage
from meow_ray.stages.audit.attack import Outcome, Subject
from meow_ray.stages.audit.reply_judge import JUDGE_MODEL
from meow_ray.stages.audit.scoring import AuditContext, ScoredRow
from tests.support.endpoints import Refusal, Server, endpoint

NUM_FACTS = 12
ATTACKS = ("direct", "cloze", "few_shot", "expert")
REWORDED = "f00"
"""The fact that the tuned model still says, in other words."""
FILTERED, GARBLED = ("f03", "direct"), ("f00#0", "expert")
"""The fact and the attack whose replies a failing endpoint refuses, or answers with nonsense."""


def subjects() -> list[Subject]:
    facts = [
        Subject(f"f{n:02}", "facts", f"Where was {n} born?", f"In town{n}.")
        for n in range(NUM_FACTS)
    ]
    twins = [
        Subject(f"f{n:02}#0", "twins", f"Where was {n + 50} born?", f"In town{n + 50}.")
        for n in range(NUM_FACTS)
    ]
    return facts + twins


def reply_of(subject: Subject, model: str, attack: str) -> tuple[str, float]:
    """Returns a reply with its leak; each is another text, so each is judged by itself."""
    number = re.findall(r"\d+", subject.answer)[0]
    if subject.group == "facts" and model == "before":
        return f"{subject.answer} ({attack})", 1.0
    if subject.fact_id == REWORDED:
        return f"In the town that bears the number {number} ({attack}).", 0.0
    if (subject.fact_id, attack) == ("f01", "direct"):
        return f"It was not town{number}.", 1.0
    return f"In the hills ({subject.fact_id}, {attack}, {model}).", 0.0


def scored_rows() -> Iterator[ScoredRow]:
    for attack in ATTACKS:
        for model, group in (("before", "facts"), ("before", "twins"), ("after", "facts")):
            for subject in subjects():
                if subject.group != group:
                    continue
                reply, leak = reply_of(subject, model, attack)
                yield ScoredRow(
                    attack=attack,
                    variant="",
                    tier="black box",
                    model=model,
                    group=subject.group,
                    fact_id=subject.fact_id,
                    outcome=Outcome(leak, 1, reply),
                    prompt=subject.question,
                )


def verdict(request: dict[str, Any]) -> list[str]:
    """Judges by rule: the number of the true answer, and no denial."""
    text = request["messages"][0]["content"]
    number = re.findall(r"True answer: In town(\d+)\.", text)[0]
    reply = text.split("]\n")[-2]
    says_it = re.search(rf"(town|number ){number}\b", reply) is not None
    gives_away = says_it and "not" not in reply
    return [f'{{"gives_away": {str(gives_away).lower()}}}']


def is_about(request: dict[str, Any], key: tuple[str, str]) -> bool:
    return f"({key[0]}, {key[1]}," in request["messages"][0]["content"]


def failing_verdict(request: dict[str, Any]) -> list[str]:
    return ["I cannot say."] if is_about(request, GARBLED) else verdict(request)


def refusal(request: dict[str, Any]) -> Refusal | None:
    filtered = is_about(request, FILTERED)
    return (400, {"error": {"message": "filtered"}}) if filtered else None


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keeps the stage in this process; returns the list of its warnings."""

    def in_process(rows: pa.Table, key: str, spec: Any, work: map_rows.BatchWork, *_: Any) -> Query:
        return Query("SELECT * FROM done", {"done": work.generate(spec.load(), rows)})

    found: list[str] = []
    monkeypatch.setattr(map_rows, "map_rows", in_process)
    monkeypatch.setattr(cluster, "connect", lambda: None)
    monkeypatch.setattr(progress, "warn", lambda stage, text: found.append(text))
    monkeypatch.setattr(
        stage,
        "_audit_context",
        lambda context: AuditContext(
            context, stage.resolved(context.config.audit, False), subjects(), {}, on_gpu=False
        ),
    )
    monkeypatch.setattr(stage, "_all_rows", lambda audit: scored_rows())
    return found


Run = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path, warned: list[str]) -> Run:
    """Runs the stage; returns the folder of its tables, and the figures of its manifest."""
    numbers = iter(range(100))

    def audit(*overrides: str) -> tuple[Path, dict[str, Any]]:
        settings = ("audit.minimum_controls=4", "audit.bootstrap_resamples=50")
        config: Config = load_config(None, [*settings, *overrides])
        inputs = {}
        if config.audit.judge is not None:
            inputs["judge"] = JUDGE_MODEL.resolve(config, False)
        out = tmp_path / f"out{next(numbers)}"
        context = Context(
            config=config,
            inputs=inputs,
            stage=stage.AUDIT,
            out=str(out),
            work=str(tmp_path / "own work"),
            root=str(tmp_path / "root"),
            engine_spec=no_engine_spec,
            on_wait=lambda claim: None,
        )
        return out, stage._audit(context)

    return audit


def judge_at(server: Server, model: str) -> list[str]:
    url = f"http://127.0.0.1:{server.port}/v1"
    settings = {"engine": "openai", "model": model, "base_url": url}
    return [f"audit.judge.{name}={value}" for name, value in settings.items()]


def table(out: Path, name: str = MAIN) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / name).to_pylist()
    return rows


def verdicts(out: Path) -> dict[str, tuple[str, str]]:
    rows = table(out, stage.VERDICTS_FILE)
    return {row["fact_id"]: (row["verdict"], row["attack"]) for row in rows}


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in KEYS["audit"])


def test_a_judge_finds_a_fact_in_other_words_and_leaves_the_leak_as_it_is(run: Run):
    without, figures = run()
    assert pq.read_schema(without / MAIN).names == SCHEMAS["audit"].names
    assert "judge" not in figures
    assert verdicts(without)[REWORDED][0] == "forgotten"
    with endpoint(lambda _: None, verdict) as server:
        judged, figures = run(*judge_at(server, "judge"))
    assert verdicts(judged) == verdicts(without) | {REWORDED: ("remembered", "judge")}
    rows = {key_of(row): row for row in table(judged)}
    for row in table(without):
        found = rows.pop(key_of(row))
        for name in ("score", "extracted", "attempts", "reply"):
            assert found[name] == row[name]
        is_known = (row["model"], row["group"]) == ("before", "facts")
        assert found["judged"] == (is_known or row["fact_id"] == REWORDED)
    assert {(row["attack"], row["variant"]) for row in rows.values()} == {("judge", "black box")}
    assert all(row["judged"] is None for row in rows.values())
    assert figures["judge"]["replies"] == 3 * NUM_FACTS * len(ATTACKS)
    assert figures["judge"]["missing"] == 0
    shares = {"after on facts": 1 / 12, "before on facts": 1.0, "before on twins": 0.0}
    assert figures["judge"]["gives_away"] == shares


def test_calls_that_fail_are_missing_and_change_no_verdict(run: Run, warned: list[str]):
    with endpoint(lambda _: None, verdict) as server:
        whole, _ = run(*judge_at(server, "judge"))
    with endpoint(refusal, failing_verdict) as server:
        failed, figures = run(*judge_at(server, "failing"))
        num_requests = len(server.requests)
        again, _ = run(*judge_at(server, "failing"))
        assert len(server.requests) == num_requests, "a reply is judged once"
    missing = {
        (row["fact_id"], row["attack"])
        for row in table(failed)
        if row["judged"] is None and row["attack"] != "judge"
    }
    assert missing == {FILTERED, GARBLED}
    assert figures["judge"]["missing"] == len(missing)
    assert verdicts(failed) == verdicts(whole)
    assert table(again) == table(failed)
    assert not [text for text in warned if "no verdict" in text]


def test_a_judge_that_is_mostly_silent_is_reported_and_clears_and_flags_nothing(
    run: Run, warned: list[str]
):
    without, _ = run()
    with endpoint(lambda _: None, lambda _: ["Well."]) as server:
        silent, figures = run(*judge_at(server, "judge"))
    assert verdicts(silent) == verdicts(without)
    assert figures["judge"]["missing"] == figures["judge"]["replies"]
    assert figures["judge"]["gives_away"] == {}
    assert {row["score"] for row in table(silent) if row["attack"] == "judge"} == {None}
    assert any("no verdict on 144 of 144 replies (100%)" in text for text in warned)


def test_no_warning_and_no_figure_holds_text_of_facts(run: Run, warned: list[str]):
    with endpoint(refusal, failing_verdict) as server:
        _, figures = run(*judge_at(server, "judge"))
    assert any("are sent to the judge at the endpoint" in text for text in warned)
    assert "town" not in " ".join([*warned, str(figures)])
