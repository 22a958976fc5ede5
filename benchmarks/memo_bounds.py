"""What `memo.exact=selection` does not generate: the command `bounds` of `benchmarks.memo`."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import pyarrow as pa
import typer

from benchmarks import sides
from benchmarks.common import fresh, report, stopwatch
from benchmarks.host import SMALL_MODEL
from benchmarks.memo_case import (
    BATCH_SIZE,
    FACTS,
    TOP_K,
    BatchSize,
    Dtype,
    EngineOption,
    FactsOption,
    MaxModelLen,
    MaxNewTokens,
    ModelOption,
    NumFacts,
    Output,
    TargetTemplate,
    Template,
    Window,
    engine_env,
    engine_spec,
    settings_of,
)
from benchmarks.sides import Case
from meow_ray.config import Memo, Select
from meow_ray.core.schema import SCHEMAS, TRUE_ANSWER
from meow_ray.engines import Engine
from meow_ray.errors import MeowError
from meow_ray.stages.memo.bounds import Choice
from meow_ray.stages.select.selection import select


@dataclass
class Scored:
    """The answers of all facts with their scores, and what was generated for them."""

    rows: list[dict[str, Any]]
    """As in the table `memo`, with `pz`; MEMO is None where only bounds are known."""
    prompts: int
    tokens: int
    seconds: float


def bounds(
    model: ModelOption = SMALL_MODEL,
    facts: FactsOption = FACTS,
    num_facts: NumFacts = None,
    window: Window = "token",
    max_new_tokens: MaxNewTokens = "200",
    template: Template = "raw",
    target_template: TargetTemplate = "chat",
    top_k: Annotated[int, typer.Option(help="As select.top_k.")] = TOP_K,
    order: Annotated[str, typer.Option(help="largest or smallest, as select.order.")] = "largest",
    engine: EngineOption = "vllm",
    dtype: Dtype = "float32",
    max_model_len: MaxModelLen = None,
    batch_size: BatchSize = BATCH_SIZE,
    output: Output = None,
) -> None:
    """Compare memo.exact=selection with all: what is generated; the selected rows must be equal."""
    spec = Memo(
        window=window, max_new_tokens=max_new_tokens, template=template, comparators=("pz",)
    )
    case = Case(
        sides.facts_of(sides.candidates(facts, num_facts)),
        engine_spec(model, engine, dtype, max_model_len),
        spec,
        target_template,
        batch_size,
    )
    chosen = Select(top_k=top_k, order=order)
    assert chosen.order != "random", "refused by MEMO"
    full, contested = fresh(both, case, Choice(top_k, chosen.order), env=engine_env())
    rows = selected(full, chosen)
    if selected(contested, chosen) != rows:
        raise MeowError("bounds: the selected rows differ. This is a mistake in `memo.exact`.")
    scored = [row for row in contested.rows if row["memo"] is not None]
    figures = {
        "facts": len(case.facts),
        "answers": len(full.rows),
        "windows": sum(row["num_windows"] for row in full.rows),
        "selected_rows": len(rows),
        "selected_rows_equal": True,
        "all": figures_of(full),
        "selection": figures_of(contested),
        "share_of_prompts": contested.prompts / full.prompts if full.prompts else None,
        "share_of_tokens": contested.tokens / full.tokens if full.tokens else None,
        "share_of_answers_scored": len(scored) / len(full.rows),
        "share_of_windows_scored": share_of_windows(scored, full.rows),
        "pz_memo_spearman": correlation(full.rows),
    }
    settings = settings_of(case, facts) | {"top_k": top_k, "order": order}
    report("memo_bounds", settings, figures, output)


def both(case: Case, choice: Choice) -> tuple[Scored, Scored]:
    """Scores all answers, then only those that a selection depends on, with one engine."""
    engine = case.engine.load()
    sides.warm_up(engine)
    return score(case, engine, None), score(case, engine, choice)


def score(case: Case, engine: Engine, choice: Choice | None) -> Scored:
    """Scores the facts with an engine that is loaded."""
    steps = replace(case.steps, choice=choice)
    seconds: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    prompts, before = 0, engine.generated
    for batch in case.batches():
        prepared = steps.prepare(engine.tokenizer, batch)
        with stopwatch(seconds, "generate"):
            said = steps.generate(engine, prepared)
        done = steps.finish(engine.tokenizer, said)
        prompts += sum(done["generations"].to_pylist())
        for fact in done.to_pylist():
            rows += [
                {
                    "fact_id": str(fact["fact"]),
                    "candidate_id": candidate_id,
                    "question": fact["question"],
                    "text": text,
                    **scores,
                }
                for candidate_id, (text, scores) in enumerate(
                    zip(fact["texts"], fact["scores"], strict=True), start=TRUE_ANSWER
                )
            ]
    return Scored(rows, prompts, engine.generated - before, seconds["generate"])


def selected(scored: Scored, spec: Select) -> list[dict[str, Any]]:
    """Returns the rows that `select` writes."""
    table = pa.Table.from_pylist(scored.rows, schema=SCHEMAS["memo"])
    with select(table, spec).batches() as reader:
        return list(reader.read_all().to_pylist())


def figures_of(scored: Scored) -> dict[str, float]:
    """Returns what was generated, and the time of the actor's step."""
    return {"prompts": scored.prompts, "tokens": scored.tokens, "seconds": scored.seconds}


def share_of_windows(scored: list[dict[str, Any]], rows: list[dict[str, Any]]) -> float | None:
    """Returns the share of the windows whose answers have a score."""
    total = sum(row["num_windows"] for row in rows)
    return sum(row["num_windows"] for row in scored) / total if total else None


def correlation(rows: list[dict[str, Any]]) -> float | None:
    """Returns the rank correlation of the answers' log-probability with MEMO."""
    from scipy.stats import spearmanr

    pairs = [(row["pz"], row["memo"]) for row in rows if None not in (row["pz"], row["memo"])]
    if len(set(pairs)) < 3:
        return None
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)
