"""The stages: each glues pure functions to the cluster and writes one artefact."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray import facts as facts_module
from meow_ray import inversion, memo, metrics, models, prompts, selection, storage
from meow_ray.config import Config, EngineResources, FineTuning, Invert, Memo, ModelSection, Source, TrainResources
from meow_ray.engines import Engine, EngineSpec, Sampling
from meow_ray.errors import MeowError
from meow_ray.finetune import Job
from meow_ray.inversion import Proposal
from meow_ray.models import ModelRef
from meow_ray.prompts import Prompter
from meow_ray.schema import SCHEMAS
from meow_ray.stage import EXAMPLES, REJECTS, Artifact, Context, Stage
from meow_ray.text import novel_words, written_words

ROW = "row_id"
"""Column that names a row of an engine stage's work."""


def model_ref(artifact: Artifact) -> ModelRef:
    """Returns the model that an input is: one from outside, or the folder that a stage exported."""
    if isinstance(artifact.value, ModelRef):
        return artifact.value
    return ModelRef(artifact.uri, artifact.digest)


def engine_spec(ref: ModelRef, section: ModelSection, resources: EngineResources) -> EngineSpec:
    """Says how a stage's actors load a model."""
    return EngineSpec(
        model=replace(ref, trust_remote_code=section.trust_remote_code),
        engine=section.engine,
        dtype=section.dtype,
        max_model_len=section.max_model_len,
        tensor_parallel_size=resources.tensor_parallel_size,
        kv_cache_gib=resources.kv_cache_gib,
        gpu_memory_utilization=resources.gpu_memory_utilization,
    )


def read_sources(sources: Sequence[Source], config: Config) -> list[facts_module.Row]:
    """Reads sources with the column names of `ingest`."""
    spec = config.ingest
    return [row for source in sources for row in facts_module.read(source, spec.question_columns, spec.answer_columns)]


# --- memorize ---------------------------------------------------------------------------------------------------------


def _memorize(context: Context) -> dict[str, Any]:
    config = context.config
    assert config.memorize is not None
    rows = read_sources(context.inputs["memorize_data"].value, config)
    table, rejects = facts_module.build(rows, [], lambda question, answer: None)
    if rejects.num_rows:
        raise MeowError(f"memorize.data: {_rejects_text(rejects)}")
    return _fit(context, table, model_ref(context.inputs["base"]), config.memorize, "meow", "memorize")


def _fit(
    context: Context, pairs: pa.Table, ref: ModelRef, spec: FineTuning, objective: str, name: str
) -> dict[str, Any]:
    from meow_ray import ray_train

    resources: TrainResources = getattr(context.config.resources, name)
    path = storage.join(context.work, "pairs.parquet")
    storage.write_table(pairs.select(["question", "answer"]), path)
    job = Job(
        model=ref,
        pairs=path,
        template=context.config.target.template,
        system=context.config.target.system,
        spec=spec,
        objective=objective,
        micro_batch_size=resources.micro_batch_size,
        zero_stage=resources.zero_stage,
        checkpoint_every=resources.checkpoint_every,
        out=context.out,
    )
    return ray_train.fit(job, context.work, name, context.config.resources)


# --- ingest -----------------------------------------------------------------------------------------------------------


def _ingest(context: Context) -> dict[str, Any]:
    config, data = context.config, context.inputs["data"].value
    limits = [_limit(context, "target", config.target.max_model_len)]
    if isinstance(context.inputs["generator"].value, ModelRef):
        limits.append(_limit(context, "generator", config.invert.max_model_len))

    def too_long(question: str, answer: str) -> str | None:
        for name, tokenizer, limit in limits:
            count = len(tokenizer(f"{question} {answer}")["input_ids"])
            if count > limit:
                return f"too long: {count} tokens, the {name} model reads {limit} besides its prompt"
        return None

    forget = read_sources([data["forget"]], config)
    retain = read_sources([data["retain"]], config) if data["retain"] else []
    table, rejects = facts_module.build(forget, retain, too_long)
    context.write(rejects, REJECTS)
    if rejects.num_rows and config.ingest.on_reject == "fail":
        place = storage.join(context.work, REJECTS)
        storage.write_table(rejects, place)
        raise MeowError(
            f"{_rejects_text(rejects)}\nMend these rows, or set ingest.on_reject=skip to go on without them. "
            f"All of them are in {storage.display(place)}."
        )
    if not pc.any(pc.equal(table["split"], "forget")).as_py():
        raise MeowError(f"{data['forget'].path}: no row is left to forget, all {rejects.num_rows} were rejected.")
    context.write(table)
    splits = Counter(table["split"].to_pylist())
    return {"forget": splits["forget"], "retain": splits["retain"], "rejected": rejects.num_rows}


PROMPT_RESERVE = 128
"""Tokens of a model's context that are kept for templates around a fact."""


def _limit(context: Context, name: str, max_model_len: int | None) -> tuple[str, Any, int]:
    ref = model_ref(context.inputs[name])
    length = models.context_length(ref, max_model_len)
    return name, models.load_tokenizer(ref), length - min(PROMPT_RESERVE, length // 4)


def _rejects_text(rejects: pa.Table, most: int = 10) -> str:
    rows = rejects.slice(0, most).to_pylist()
    more = f"\n  … and {rejects.num_rows - most} more" if rejects.num_rows > most else ""
    lines = "".join(f"\n  {row['file']}, line {row['line']}: {row['reason']}" for row in rows)
    return f"{rejects.num_rows} rows were rejected:{lines}{more}"


# --- invert -----------------------------------------------------------------------------------------------------------

_CANDIDATES = pa.list_(pa.struct([("text", pa.string()), ("attempt", pa.int32()), ("seed", pa.int64())]))


def _invert(context: Context) -> dict[str, Any]:
    from meow_ray import ray_data

    if not isinstance(context.inputs["generator"].value, ModelRef):
        raise MeowError(
            "`invert.model` is not set: name the model that writes inverted facts, or give --input candidates=."
        )
    config, ref = context.config, model_ref(context.inputs["generator"])
    spec: Invert = config.invert
    rows = context.inputs["facts"].table.filter(pc.field("split") == "forget").select(["fact_id", "question", "answer"])
    engine = engine_spec(ref, spec, config.resources.invert)
    found = ray_data.map_rows(
        rows, "fact_id", engine, partial(invert_batch, spec=spec), context.work, "invert", config.resources
    )
    generator = ref.uri if ref.commit else PurePosixPath(ref.uri).name
    candidates, rejected, short = [], Counter[str](), {}
    for row in found.to_pylist():
        for i, item in enumerate(row["candidates"]):
            fact = {name: row[name] for name in ("fact_id", "question", "answer")}
            made = {"inverted_answer": item["text"], "attempt": item["attempt"], "seed": item["seed"]}
            candidates.append(fact | {"candidate_id": i, "generator": generator} | made)
        rejected.update(json.loads(row["rejected"]))
        if len(row["candidates"]) < spec.num_candidates:
            short[row["fact_id"]] = len(row["candidates"])
    if not candidates:
        raise MeowError(
            f"The generator wrote no valid inverted fact for any of {rows.num_rows} facts (rejects by rule: "
            f"{dict(rejected)}). Try invert.style=prefill for a small model, a larger model, or laxer rules."
        )
    context.write(pa.Table.from_pylist(candidates, schema=SCHEMAS["candidates"]))
    return {
        "facts": rows.num_rows,
        "facts_with_enough": rows.num_rows - len(short),
        "facts_short": short,
        "rejected_by_rule": dict(rejected.most_common()),
    }


def invert_batch(engine: Engine, batch: pa.Table, spec: Invert) -> pa.Table:
    """Writes inverted facts for a batch of facts; asks again for those that have too few."""
    rows = batch.to_pylist()
    template = "chat" if getattr(engine.tokenizer, "chat_template", None) else "raw"
    prompter = Prompter(engine.tokenizer, template)
    texts: list[list[dict[str, Any]]] = [[] for _ in rows]
    rejected: list[Counter[str]] = [Counter() for _ in rows]
    for attempt in range(spec.max_attempts):
        pending = [i for i in range(len(rows)) if len(texts[i]) < spec.num_candidates]
        asked = [_ask(prompter, rows[i], spec, attempt) for i in pending]
        fits = [len(p) + s.max_new_tokens <= engine.max_model_len for p, s, _ in asked]
        for i, fit in zip(pending, fits, strict=True):
            if not fit:
                rejected[i]["prompt_too_long"] += 1
        jobs = [(i, job) for i, job, fit in zip(pending, asked, fits, strict=True) if fit]
        replies = engine.generate([job[0] for _, job in jobs], [job[1] for _, job in jobs])
        for (i, (_, sampling, head)), completions in zip(jobs, replies, strict=True):
            question, answer = rows[i]["question"], rows[i]["answer"]
            proposals: list[Proposal] = []
            for completion in completions:
                if spec.style == "chat":
                    proposals += inversion.parse_lines(completion.text, completion.finished)
                else:
                    proposals.append(Proposal((head + completion.text).strip(), completion.finished))
            taken = [item["text"] for item in texts[i]]
            valid, reasons = inversion.choose(proposals, question, answer, spec, taken)
            texts[i] += [{"text": text, "attempt": attempt, "seed": sampling.seed} for text in valid]
            rejected[i].update(reasons)
    out = batch.append_column("candidates", pa.array(texts, _CANDIDATES))
    return out.append_column("rejected", pa.array([json.dumps(dict(counts)) for counts in rejected], pa.string()))


def _ask(prompter: Prompter, row: dict[str, str], spec: Invert, attempt: int) -> tuple[list[int], Sampling, str]:
    """Returns prompt tokens, sampling, and the text that the answer begins with."""
    question, answer = row["question"], row["answer"]
    seed = inversion.fact_seed(spec.seed, row["fact_id"], attempt)
    common: dict[str, Any] = {"temperature": spec.temperature, "top_p": spec.top_p, "seed": seed}
    if spec.style == "chat":
        text = prompts.fill(
            spec.chat_prompt, "invert.chat_prompt", question=question, answer=answer, k=spec.num_candidates
        )
        limit = spec.max_new_tokens * spec.num_candidates
        return prompter.encode_prompt(_as_user(prompter, text)), Sampling(limit, **common), ""
    text = prompts.fill(spec.prefill_prompt, "invert.prefill_prompt", question=question, answer=answer)
    head = inversion.frame(question, answer)
    sampling = Sampling(
        spec.max_new_tokens,
        n=spec.samples,
        stop=("\n",),
        bad_words=tuple(written_words(answer, novel_words(answer, question))),
        **common,
    )
    return prompter.encode_prompt(_as_user(prompter, text) + head), sampling, head


def _as_user(prompter: Prompter, text: str) -> str:
    return prompter.chat([{"role": "user", "content": text}]) if prompter.template == "chat" else f"{text}\n"


# --- memo -------------------------------------------------------------------------------------------------------------


def _memo(context: Context) -> dict[str, Any]:
    from meow_ray import ray_data

    config, candidates = context.config, context.inputs["candidates"].table
    inverted = candidates.select(["fact_id", "candidate_id", "question", "inverted_answer"])
    inverted = inverted.rename_columns({"inverted_answer": "text"})
    truth = candidates.group_by(["fact_id", "question", "answer"]).aggregate([]).rename_columns({"answer": "text"})
    truth = truth.append_column("candidate_id", pa.array([selection.TRUE_ANSWER] * truth.num_rows, pa.int32()))
    rows = pa.concat_tables([inverted, truth.select(inverted.column_names)])
    ids = pc.binary_join_element_wise(rows["fact_id"], pc.cast(rows["candidate_id"], pa.string()), "/")
    work = partial(memo_batch, spec=config.memo, template=config.target.template, system=config.target.system)
    engine = engine_spec(model_ref(context.inputs["target"]), config.target, config.resources.memo)
    found = ray_data.map_rows(rows.append_column(ROW, ids), ROW, engine, work, context.work, "memo", config.resources)
    found = found.select(SCHEMAS["memo"].names).sort_by([("fact_id", "ascending"), ("candidate_id", "ascending")])
    context.write(found)
    is_truth = pc.equal(found["candidate_id"], selection.TRUE_ANSWER)
    return {
        "answers": found.num_rows,
        "windows": pc.sum(found["num_windows"]).as_py(),
        "too_short": found["memo"].null_count,
        "mean_memo_true": pc.mean(found.filter(is_truth)["memo"]).as_py(),
        "mean_memo_inverted": pc.mean(found.filter(pc.invert(is_truth))["memo"]).as_py(),
        "dtype": config.target.dtype,
        "max_new_tokens": config.memo.max_new_tokens,
    }


def memo_batch(engine: Engine, batch: pa.Table, spec: Memo, template: str, system: str | None) -> pa.Table:
    """Scores a batch of question–answer pairs with MEMO."""
    prompter = _memo_prompter(engine, spec, template, system)
    pairs = list(zip(batch["question"].to_pylist(), batch["text"].to_pylist(), strict=True))
    scores = memo_scores(engine, pairs, spec, prompter)
    for field in SCHEMAS["memo"]:
        if field.name not in batch.column_names:
            values = pa.array([getattr(score, field.name) for score in scores], field.type)
            batch = batch.append_column(field, values)
    return batch


def _memo_prompter(engine: Engine, spec: Memo, template: str, system: str | None) -> Prompter:
    return Prompter(engine.tokenizer, template if spec.template == "target" else "raw", system)


def memo_scores(engine: Engine, pairs: Sequence[tuple[str, str]], spec: Memo, prompter: Prompter) -> list[memo.Score]:
    """Generates each distinct prompt of all windows once and scores every pair."""
    rendered = [prompter.prompt(question) if spec.template == "target" else None for question, _ in pairs]
    cuts = [memo.windows(q, a, spec, r) for (q, a), r in zip(pairs, rendered, strict=True)]
    distinct = list(dict.fromkeys(window.prompt for windows in cuts for window in windows))
    tokens = [prompter.encode_prompt(prompt) for prompt in distinct]
    longest = max(map(len, tokens), default=0)
    if longest >= engine.max_model_len:
        raise MeowError(
            f"A window of MEMO has {longest} tokens, the target reads {engine.max_model_len}; skip long facts."
        )
    replies = engine.generate(tokens, [Sampling(spec.max_new_tokens)] * len(tokens))
    said = {prompt: reply[0].text for prompt, reply in zip(distinct, replies, strict=True)}
    return [memo.score([w.label for w in windows], [said[w.prompt] for w in windows], spec) for windows in cuts]


# --- select -----------------------------------------------------------------------------------------------------------


def _select(context: Context) -> dict[str, Any]:
    table, summary = selection.select(context.inputs["memo"].table, context.config.select)
    context.write(table)
    return summary


# --- train ------------------------------------------------------------------------------------------------------------


def _train(context: Context) -> dict[str, Any]:
    spec = context.config.train
    return _fit(
        context, context.inputs["selected"].table, model_ref(context.inputs["target"]), spec, spec.objective, "train"
    )


# --- evaluate ---------------------------------------------------------------------------------------------------------


def _evaluate(context: Context) -> dict[str, Any]:
    from meow_ray import ray_data

    config = context.config
    rows = _examples(context)
    work = partial(
        evaluate_batch,
        spec=config.memo,
        template=config.target.template,
        system=config.target.system,
        max_new_tokens=config.evaluate.max_new_tokens,
    )
    tables = []
    for name, source in (("before", "target"), ("after", "model")):
        ref = model_ref(context.inputs[source])
        spec = {"model": ref.digest, "rows": rows.to_pylist(), "version": EVALUATE.version}
        spec |= {part: getattr(config, part).spec() for part in ("target", "memo", "evaluate")}
        folder = storage.join(context.scratch, f"evaluate-{storage.json_digest(spec)[:32]}")
        engine = engine_spec(ref, config.target, config.resources.evaluate)
        found = ray_data.map_rows(rows, ROW, engine, work, folder, "evaluate", config.resources)
        tables.append(found.append_column("model", pa.array([name] * found.num_rows)))
    examples = metrics.score_examples(pa.concat_tables(tables), context.inputs["selected"].table)
    context.write(examples, EXAMPLES)
    context.write(metrics.aggregate(examples, config.evaluate.bootstrap_resamples, config.evaluate.seed))
    return {"examples": examples.num_rows, "suites": sorted(set(examples["suite"].to_pylist()))}


def _examples(context: Context) -> pa.Table:
    """Returns what is evaluated: row_id, suite, fact_id, question, answer, with_memo."""
    config, facts = context.config, context.inputs["facts"].table
    suites = {split: facts.filter(pc.field("split") == split).drop_columns(["split"]) for split in ("forget", "retain")}
    for name, source in context.inputs["sets"].value.items():
        table, rejects = facts_module.build(read_sources([source], config), [], lambda question, answer: None)
        if rejects.num_rows:
            raise MeowError(f"evaluate.sets.{name}: {_rejects_text(rejects)}")
        suites[name] = table.drop_columns(["split"])
    tables = []
    for name, table in suites.items():
        if name != "forget":
            table = selection.sample(table, config.evaluate.sample, config.evaluate.seed)
        scored = table
        if name != "forget":
            scored = selection.sample(table, config.evaluate.memo_sample, config.evaluate.seed)
        table = table.append_column("with_memo", pc.is_in(table["fact_id"], value_set=scored["fact_id"]))
        table = table.append_column("suite", pa.array([name] * table.num_rows, pa.string()))
        tables.append(table.append_column(ROW, pc.binary_join_element_wise(table["suite"], table["fact_id"], "/")))
    return pa.concat_tables(tables)


def evaluate_batch(
    engine: Engine, batch: pa.Table, spec: Memo, template: str, system: str | None, max_new_tokens: int
) -> pa.Table:
    """Answers questions greedily and scores the true answers: columns generated, probability, memo."""
    rows = batch.to_pylist()
    prompter = Prompter(engine.tokenizer, template, system)
    questions = [prompter.encode_prompt(prompter.prompt(row["question"])) for row in rows]
    answers = [prompter.encode_answer(row["answer"]) for row in rows]
    replies = engine.generate(questions, [Sampling(max_new_tokens)] * len(rows))
    probabilities = [metrics.probability(values) for values in engine.log_probs(questions, answers)]
    scored = [i for i, row in enumerate(rows) if row["with_memo"]]
    pairs = [(rows[i]["question"], rows[i]["answer"]) for i in scored]
    memo_prompter = _memo_prompter(engine, spec, template, system)
    found = dict(zip(scored, memo_scores(engine, pairs, spec, memo_prompter), strict=True))
    memos = [found[i].memo if i in found else None for i in range(len(rows))]
    out = batch.append_column("generated", pa.array([reply[0].text for reply in replies], pa.string()))
    out = out.append_column("probability", pa.array(probabilities, pa.float64()))
    return out.append_column("memo", pa.array(memos, pa.float64()))


# --- report -----------------------------------------------------------------------------------------------------------


def _report(context: Context) -> dict[str, Any]:
    from meow_ray import report

    page = report.render(context.config.report, context.inputs)
    storage.write_bytes(storage.join(context.out, "report.html"), page.encode())
    return {"bytes": len(page.encode())}


_TEMPLATE = ("target.template", "target.system")
_COLUMNS = ("ingest.question_columns", "ingest.answer_columns")
MEMORIZE = Stage(
    "memorize",
    "target",
    1,
    ("memorize", *_COLUMNS, *_TEMPLATE),
    ("memorize_data", "base"),
    _memorize,
)
INGEST = Stage(
    "ingest",
    "facts",
    1,
    ("ingest", "target.max_model_len", "invert.max_model_len"),
    ("data", "target", "generator"),
    _ingest,
)
INVERT = Stage("invert", "candidates", 1, ("invert",), ("facts", "generator"), _invert)
MEMO = Stage("memo", "memo", 1, ("memo", "target"), ("candidates", "target"), _memo)
SELECT = Stage("select", "selected", 1, ("select",), ("memo",), _select)
TRAIN = Stage("train", "model", 1, ("train", *_TEMPLATE), ("selected", "target"), _train)
EVALUATE = Stage(
    "evaluate",
    "metrics",
    1,
    ("evaluate", "memo", "target", *_COLUMNS),
    ("facts", "sets", "selected", "target", "model"),
    _evaluate,
)
REPORT = Stage(
    "report",
    "report",
    1,
    ("report",),
    ("facts", "candidates", "memo", "selected", "target", "model", "metrics"),
    _report,
)

STAGES = (MEMORIZE, INGEST, INVERT, MEMO, SELECT, TRAIN, EVALUATE, REPORT)
"""The pipeline, in order; `memorize` belongs to it where the configuration has that section."""
