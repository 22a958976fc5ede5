"""The Python API: whole runs, single stages, and the tools of the stages on a user's own data.

Every function does what the command line does, by the same code. Results are cached below the
configuration's `storage.root`, so that a second call with the same inputs returns at once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import EXAMPLES_FILE, Artifact
from meow_ray.core.schema import EVALUATED_MODELS
from meow_ray.distributed.failures import plain_user_errors
from meow_ray.errors import MeowError
from meow_ray.pipeline.events import Event
from meow_ray.pipeline.graph import STAGES_ALONE
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.pipeline.rounds import parts_of_run
from meow_ray.stages.audit.stage import SUMMARY_FILE, VERDICTS_FILE
from meow_ray.stages.evaluate import tofu_logs
from meow_ray.stages.ingest.facts import FactRow, valid_facts
from meow_ray.stages.invert.own_candidates import complete
from meow_ray.stages.report import compare

ConfigLike = Config | str | Path | None
"""A configuration, the path of its YAML file, or None for the defaults."""

Pairs = Iterable[tuple[str, str]]
"""Questions with their answers."""

OnEvent = Callable[[Event], Any]
"""Called when a stage is cached, waits for another driver, starts, or has finished."""


@dataclass(frozen=True)
class Run:
    """A finished run of the pipeline, and the artifacts that it made or found in the cache.

    Attributes:
        config: the configuration of the run.
        artifacts: what the stages made, by name: `facts`, `candidates`, `memo`, `selected`,
            `model`, `metrics`, `report`. After several rounds, `candidates` and `memo` are those
            of the last round, and `selected` holds the inverted facts of all rounds.
    """

    config: Config
    artifacts: Mapping[str, Artifact] = field(repr=False)

    @property
    def metrics(self) -> pa.Table:
        """One row per suite, metric and model: value, 95 % interval, number of examples."""
        return self.table("metrics")

    @property
    def examples(self) -> pa.Table:
        """One row per evaluated example and model: reply and figures. It holds text of facts."""
        return self._artifact("metrics").extra(EXAMPLES_FILE)

    @property
    def attacks(self) -> pa.Table:
        """One row per attack and variant of the audit: shares, excess, verdict, reason."""
        return self._artifact("audit").extra(SUMMARY_FILE)

    @property
    def verdicts(self) -> pa.Table:
        """One row per fact and tier of the audit: verdict, the best attack, reason."""
        return self._artifact("audit").extra(VERDICTS_FILE)

    @property
    def model(self) -> str:
        """The URI of the tuned model, a Hugging Face folder."""
        return storage.display(self._artifact("model").uri)

    @property
    def report(self) -> str:
        """The URI of the report, one HTML page."""
        return f"{storage.display(self._artifact('report').uri)}/report.html"

    def table(self, name: str) -> pa.Table:
        """Returns the table of a stage, such as `candidates` or `memo`; `.to_pandas()` converts it.

        Raises:
            MeowError: the run made no artifact of that name.
        """
        return self._artifact(name).table

    def _artifact(self, name: str) -> Artifact:
        if name not in self.artifacts:
            raise MeowError(f"This run made no {name}. It made {', '.join(self.artifacts)}.")
        return self.artifacts[name]


def run(
    config: ConfigLike = None,
    overrides: Sequence[str] = (),
    *,
    inputs: Mapping[str, str] | None = None,
    force: bool = False,
    wait: bool = True,
    verify: bool = False,
    on_event: OnEvent = print,
    **options: Any,
) -> Run:
    """Runs the whole pipeline; cached stages are not run again.

    It joins the Ray cluster that this program was submitted to, or one that runs on this machine,
    and else starts a local one.

    Args:
        config: a configuration, the path of its YAML file, or None for the defaults.
        overrides: dotted keys with values, such as `"train.epochs=3"`.
        inputs: artifacts made elsewhere, by name: `{"candidates": "mine.parquet"}`.
        force: run cached stages as well.
        wait: wait while another driver works on a stage, and use its result.
        verify: hash input files again instead of trusting their size and modification time.
        on_event: called when a stage is cached, starts, or has finished; the default prints it.
        **options: for tests and extensions: `stages` and `engine_spec` of `Pipeline`.

    Raises:
        MeowError: a mistake that the user can fix; the message says where and how.

    Example:
        >>> run = meow_ray.run("mine.yaml", ["train.epochs=1"])  # doctest: +ELLIPSIS
        [1/7] ingest: ...
        >>> run.metrics.column_names
        ['suite', 'metric', 'model', 'value', 'low', 'high', 'num_examples']
        >>> run.table("facts").column_names
        ['fact_id', 'split', 'question', 'answer']
    """
    settings = configuration(config, overrides)
    artifacts: dict[str, Artifact] = {}
    with plain_user_errors():
        for part in parts_of_run(settings, inputs, verify=verify, **options):
            states = part.run(force=force, wait=wait, on_event=on_event)
            artifacts |= {s.stage.artifact: s.artifact for s in states if s.artifact}
        # what the last part was given: the user's inputs, and the selection of all rounds
        artifacts |= part.pipeline.made_elsewhere()
    return Run(settings, artifacts)


def run_stage(
    name: str,
    config: ConfigLike = None,
    overrides: Sequence[str] = (),
    *,
    inputs: Mapping[str, str] | None = None,
    force: bool = False,
    wait: bool = True,
    verify: bool = False,
    on_event: OnEvent = print,
    **options: Any,
) -> Artifact:
    """Runs one stage on cached inputs or on your own; returns its artifact.

    Args:
        name: `ingest`, `invert`, `memo`, `select`, `reference`, `train`, `evaluate`, `report`, …
        config: a configuration, the path of its YAML file, or None for the defaults.
        overrides: dotted keys with values.
        inputs: artifacts made elsewhere, by name.
        force: run the stage even if it is cached.
        wait: wait while another driver works on the stage, and use its result.
        verify: hash input files again.
        on_event: called when the stage is cached, starts, or has finished.
        **options: other options of `Pipeline`.

    Returns:
        The artifact: `.table` holds the rows of a table, `.uri` is the folder of a model.

    Raises:
        MeowError: there is no such stage, or a mistake that the user can fix.

    Example:
        >>> facts = meow_ray.run_stage("ingest", "mine.yaml")  # doctest: +ELLIPSIS
        [1/1] ingest: ...
        >>> facts.table.column_names
        ['fact_id', 'split', 'question', 'answer']
    """
    with plain_user_errors():
        pipeline = Pipeline(configuration(config, overrides), inputs, verify=verify, **options)
        chosen = pipeline.selection(name, None, None)
        (state,) = pipeline.run(chosen, force=force, wait=wait, on_event=on_event)
    assert state.artifact is not None
    return state.artifact


# --- the stages as tools --------------------------------------------------------------------------


def score_memo(
    model: str,
    pairs: Pairs,
    config: ConfigLike = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> pa.Table:
    """Measures with MEMO how well a model has memorised answers (paper, section 3.2).

    Args:
        model: a folder of safetensors, a .gguf file, or a hub name.
        pairs: questions with the answers to score.
        config: settings of `memo` and `target`; None for the defaults. All pairs are scored,
            whatever `memo.exact` is.
        overrides: dotted keys with values, such as `"memo.window=token"`.
        **options: options of `run_stage`.

    Returns:
        The table `memo`: one row per pair, in their order, with `question`, `text`, `memo` in
        [0, 1] and more. The score is null where the answer is too short for a window.

    Raises:
        MeowError: the model or a pair cannot be used.

    Example:
        >>> pairs = [("Capital of Peru?", "It is Lima"), ("Capital of Peru?", "It is Cuzco")]
        >>> table = meow_ray.score_memo("model", pairs, "mine.yaml")  # doctest: +ELLIPSIS
        [1/1] memo: ...
        >>> [round(score, 2) for score in table["memo"].to_pylist()]
        [1.0, 0.33]
    """
    settings = configuration(config, overrides)
    target = settings.target.model_copy(update={"model": model, "revision": None})
    memo_of_all = settings.memo.model_copy(update={"exact": "all"})
    settings = settings.model_copy(update={"target": target, "memorize": None, "memo": memo_of_all})
    records = [{"question": question, "answer": answer} for question, answer in pairs]
    candidates = complete(enumerate(records, start=1), "pairs")
    given = {"candidates": _in_memory("candidates", candidates)}
    memo = run_stage("memo", settings, given=given, **options).table
    return _in_order_of(candidates, memo)


def invert_facts(
    facts: Pairs,
    model: str | None = None,
    config: ConfigLike = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> pa.Table:
    """Writes inverted facts: plausible answers that contradict the true ones.

    Args:
        facts: questions with their true answers.
        model: the model that writes; None takes `invert.model`, which may be an endpoint's.
        config: settings of `invert`; None for the defaults.
        overrides: dotted keys with values, such as `"invert.num_candidates=8"`.
        **options: options of `run_stage`.

    Returns:
        The table `candidates`: one row per inverted fact, in the order of the facts, with
        `question`, `answer` (the true one) and `inverted_answer`.

    Raises:
        MeowError: a fact or the model cannot be used, or no valid inverted fact was written.
    """
    settings = configuration(config, overrides)
    if model is not None:
        invert = settings.invert.model_copy(update={"model": model, "revision": None})
        settings = settings.model_copy(update={"invert": invert})
    table = _facts_table(facts, ())
    given = {"facts": _in_memory("facts", table)}
    candidates = run_stage("invert", settings, given=given, **options).table
    return _in_order_of(table, candidates)


def evaluate_model(
    model: str,
    forget: Pairs,
    retain: Pairs = (),
    config: ConfigLike = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> pa.Table:
    """Measures how much of a forget set a model still knows, and what it kept of a retain set.

    Args:
        model: a folder of safetensors, a .gguf file, or a hub name.
        forget: questions and answers that the model must not know.
        retain: questions and answers that it should still know.
        config: settings of `evaluate`, `memo` and `target`; None for the defaults.
        overrides: dotted keys with values.
        **options: options of `run_stage`.

    Returns:
        One row per suite and metric: `suite`, `metric`, `value`, the 95 % interval `low` to
        `high`, and `num_examples`.

    Raises:
        MeowError: the model or a fact cannot be used.
    """
    settings = configuration(config, overrides).model_copy(update={"memorize": None})
    given = {"facts": _in_memory("facts", _facts_table(forget, retain))}
    inputs = {**(options.pop("inputs", None) or {}), "target": model}
    options |= {"stages": STAGES_ALONE}
    metrics = run_stage("evaluate", settings, inputs=inputs, given=given, **options).table
    of_model = metrics.filter(pc.equal(metrics["model"], "before"))
    return of_model.drop_columns(["model"])


def aggregate_tofu(log: str, retain_log: str | None = None) -> dict[str, float]:
    """Aggregates per-example results as TOFU's official code does (arXiv 2401.06121).

    Args:
        log: `eval_log_aggregated.json` of TOFU or `TOFU_EVAL.json` of open-unlearning.
        retain_log: the same file of the retain model, which never saw the forget set.

    Returns:
        The figures under their official names: `Model Utility` and its parts, and with
        `retain_log` also `Forget Quality`.

    Raises:
        MeowError: a file cannot be read, or the two models answered different forget sets.
    """
    return tofu_logs.aggregate_logs(log, retain_log)


def compare_runs(
    runs: Mapping[str, str | Sequence[str]], model: str = EVALUATED_MODELS[1]
) -> pa.Table:
    """Puts the metrics of runs next to each other; several seeds become mean and deviation.

    Args:
        runs: by name, the storage root of a run, or those of several seeds.
        model: whose figures: `before`, `after` or `retain_model`.

    Returns:
        One row per suite, metric and name: `value` (the mean over seeds), the interval `low` to
        `high` of a single run, the standard deviation `spread` over several, `runs`, and
        `num_examples`.

    Raises:
        MeowError: a run has no metrics, or none of this model.
    """
    named = [
        (name, compare.metrics_of(root, model))
        for name, roots in runs.items()
        for root in ([roots] if isinstance(roots, str) else roots)
    ]
    return compare.as_arrow(compare.metrics_by_run(named, model))


# --- inputs ---------------------------------------------------------------------------------------


def configuration(config: ConfigLike, overrides: Sequence[str]) -> Config:
    """Returns the configuration that a caller names.

    Raises:
        MeowError: it is not valid, or overrides are given for a `Config`.
    """
    if not isinstance(config, Config):
        return load_config(config, overrides)
    if overrides:
        raise MeowError(
            "`overrides` apply to a file or to the defaults. Pass them to load_config instead."
        )
    return config


def _in_memory(name: str, table: pa.Table) -> Artifact:
    """Returns a table as an input that is known by its rows."""
    return Artifact(name, "", storage.json_digest(table.to_pylist()), value=table)


def _in_order_of(facts: pa.Table, table: pa.Table) -> pa.Table:
    """Returns a stage's table, which is sorted by `fact_id`, in the order of the user's facts."""
    position = pc.index_in(table["fact_id"], value_set=facts["fact_id"])
    return table.take(pc.array_sort_indices(position))


def _facts_table(forget: Pairs, retain: Pairs) -> pa.Table:
    def rows(split: str, pairs: Pairs) -> list[FactRow]:
        return [
            FactRow(file=split, line=number, question=question, answer=answer)
            for number, (question, answer) in enumerate(pairs, start=1)
        ]

    return valid_facts(rows("forget", forget), rows("retain", retain))
