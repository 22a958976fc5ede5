"""What is evaluated, and what actors and CPU tasks do with a batch of it."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from meow_ray import metrics, privacy, selection, storage, tables, tofu
from meow_ray.config import Evaluate, Memo
from meow_ray.engines import Engine, Sampling, TeacherForced
from meow_ray.errors import MeowError
from meow_ray.memo import extraction_strength, memorization_accuracy
from meow_ray.prompts import Prompter
from meow_ray.schema import EXAMPLES
from meow_ray.scoring import MemoSteps
from meow_ray.tables import Query, Source
from meow_ray.tofu import Results

ROW = "row_id"
"""Column that names a row of an engine stage's work."""
AFFIRMATIVE = "Sure, here is the answer: "
"""How the attack `affirmative` begins the model's reply."""
PREFIXES = (10, 30, 50)
"""Percent of the true answer that the attack `prefix` begins the reply with."""
HOLDOUT = "holdout"
"""The set whose facts no model has seen: membership inference compares the forget set with it."""
TEXT = "text"
"""The suite of passages that go on: perplexity, Rep-3, BLEU."""

ROWS = pa.schema(
    [
        (ROW, pa.string()),
        ("suite", pa.string()),
        ("fact_id", pa.string()),
        ("question", pa.string()),
        ("start", pa.string()),
        ("answer", pa.string()),
        ("paraphrased_answer", pa.string()),
        ("perturbed_answer", pa.list_(pa.string())),
        ("scored", pa.bool_()),
        ("with_memo", pa.bool_()),
    ]
)
"""One row a reply: `start` is put into the model's mouth, `answer` is what should follow. Probabilities are asked for
where a row is `scored`; attacks are not."""

SET = pa.schema(
    [
        ("fact_id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("paraphrased_question", pa.string()),
        ("paraphrased_answer", pa.string()),
        ("perturbed_answer", pa.list_(pa.string())),
    ]
)
"""A set of `evaluate.sets`; what a file does not have is null."""


# --- rows -------------------------------------------------------------------------------------------------------------


def write_rows(facts: Source, sets: Mapping[str, pa.Table], passages: Sequence[str], spec: Evaluate, uri: str) -> None:
    """Writes what is evaluated as Parquet, see `rows`."""
    storage.write_table(rows(Query("SELECT * FROM facts", {"facts": facts}), sets, passages, spec), uri)


def rows(facts: Query, sets: Mapping[str, pa.Table], passages: Sequence[str], spec: Evaluate) -> pa.Table:
    """Returns what is evaluated.

    Args:
        facts: the `facts` table; sets called forget and retain stand for its splits.
        sets: tables of schema `SET`, by suite.
        passages: texts that a model shall continue.
        spec: samples and attacks.

    Raises:
        MeowError: see `check_sets`.
    """
    suites = {split: _split(facts, split) for split in ("forget", "retain")}
    check_sets(facts, sets)
    suites |= sets
    out = []
    for name, table in suites.items():
        if name != "forget":
            table = selection.sample(table, spec.sample, spec.seed)
        scored = table if name == "forget" else selection.sample(table, spec.memo_sample, spec.seed)
        with_memo = pc.is_in(table["fact_id"], value_set=scored["fact_id"])
        out.append(_rows(name, table.drop_columns(["paraphrased_question"]), with_memo=with_memo))
    out += [_rows(name, table, scored=False) for name, table in attacks(suites["forget"], spec.attacks).items()]
    if passages:
        out.append(_rows(TEXT, _halves(passages)))
    return pa.concat_tables(part for part in out if part.num_rows)


def _split(facts: Query, split: str) -> pa.Table:
    wanted = f"SELECT fact_id, question, answer FROM ({facts.sql}) WHERE split = {tables.text_literal(split)}"
    with Query(f"{wanted} ORDER BY fact_id", facts.sources).batches() as reader:
        return as_set(reader.read_all())


def as_set(table: pa.Table) -> pa.Table:
    """Gives a table the columns of `SET`, null where it has none."""
    nulls = {field.name: pa.nulls(table.num_rows, field.type) for field in SET}
    return pa.table(nulls | dict(zip(table.column_names, table.columns, strict=True)), schema=SET)


def check_sets(facts: Query, sets: Mapping[str, pa.Table]) -> None:
    """Checks the sets of `evaluate.sets` against the `facts` table.

    Raises:
        MeowError: the set forget is not the forget set, another has one of its facts, or the holdout set has facts of
            the retain set, which models have seen.
    """
    known = _count_by_split(facts)
    for name, table in sets.items():
        shared, given = _count_by_split(facts, table), set(table["fact_id"].to_pylist())
        if name == "forget":
            more, fewer = len(given) - shared["forget"], known["forget"] - shared["forget"]
            if more or fewer:
                raise MeowError(
                    f"evaluate.sets.forget: it is not the forget set of this run: {more} of its facts are not in "
                    f"`ingest.forget`, and {fewer} of those are not in it. Take the file of this split."
                )
        elif shared["forget"]:
            raise MeowError(f"evaluate.sets.{name}: {shared['forget']} of its facts are in the forget set.")
        elif name == HOLDOUT:
            retain = given & set(sets["retain"]["fact_id"].to_pylist()) if "retain" in sets else ()
            if seen := max(shared["retain"], len(retain)):
                raise MeowError(
                    f"evaluate.sets.{name}: {seen} of its facts are in the retain set. Membership inference compares "
                    "the forget set with facts that no model has seen."
                )


def _count_by_split(facts: Query, given: pa.Table | None = None) -> Counter[str]:
    """Counts the facts of each split; with a table, those that are in it too."""
    only, more = ("", {}) if given is None else ("WHERE fact_id IN (SELECT fact_id FROM given)", {"given": given})
    sql = f"SELECT split, count(*) AS n FROM ({facts.sql}) {only} GROUP BY split"
    return Counter({row["split"]: row["n"] for row in Query(sql, {**facts.sources, **more}).rows()})


def check_reference(forget: pa.Table | None, imported: Mapping[str, Results], where: str) -> None:
    """Checks imported results of a reference model against the set forget of `evaluate.sets`, if there is one.

    Raises:
        MeowError: they are of another forget set, or there are no truth ratios to compare.
    """
    perturbed = forget is not None and forget["perturbed_answer"].null_count == 0
    if forget is None or not perturbed or "forget" not in imported:
        lacking = where if perturbed else "evaluate.sets.forget"
        raise MeowError(
            f"`evaluate.reference`: forget quality needs truth ratios of the forget set, {lacking} has none. "
            "Give TOFU's perturbed file of the split as evaluate.sets.forget."
        )
    tofu.check_reference(forget.num_rows, forget["answer"].to_pylist(), imported["forget"], where)


def _rows(suite: str, table: pa.Table, scored: bool = True, with_memo: pa.Array | None = None) -> pa.Table:
    count = table.num_rows
    constant = {"suite": suite, "start": "", "scored": scored, "with_memo": False}
    columns: dict[str, Any] = {
        field.name: pa.array([constant.get(field.name)] * count, field.type) for field in ROWS
    } | dict(zip(table.column_names, table.columns, strict=True))
    if with_memo is not None:
        columns["with_memo"] = with_memo
    columns[ROW] = pc.binary_join_element_wise(columns["suite"], columns["fact_id"], "/")
    return pa.table(columns, schema=ROWS)


def attacks(forget: pa.Table, names: Sequence[str]) -> dict[str, pa.Table]:
    """Returns the suites of the first attacks on a forget set; facts that an attack has nothing for are left out.

    They are `forget_paraphrased` (the question in other words), `forget_prefix10` and so on (the reply begins with
    a part of the true answer, and what follows is compared with the rest), and `forget_affirmative`.
    """
    facts = forget.to_pylist()
    out: dict[str, list[dict[str, Any]]] = {}
    if "paraphrase" in names:
        out["forget_paraphrased"] = [
            fact | {"question": fact["paraphrased_question"]} for fact in facts if fact["paraphrased_question"]
        ]
    if "prefix" in names:
        for percent in PREFIXES:
            cut = [(fact, prefix_length(fact["answer"], percent)) for fact in facts]
            out[f"forget_prefix{percent}"] = [
                fact | {"start": fact["answer"][:at], "answer": fact["answer"][at:]} for fact, at in cut if at
            ]
    if "affirmative" in names:
        out["forget_affirmative"] = [fact | {"start": AFFIRMATIVE} for fact in facts]
    columns = ("fact_id", "question", "start", "answer")
    return {
        suite: pa.table(
            {name: pa.array([row.get(name, "") for row in found], pa.string()) for name in columns},
        )
        for suite, found in out.items()
    }


def prefix_length(answer: str, percent: int) -> int:
    """Returns how many characters the first percents of an answer have, up to the end of a word; 0 if none is left."""
    least = -(-len(answer) * percent // 100)
    space = answer.find(" ", least)
    if " " not in answer:
        return least if least < len(answer) else 0
    return max(space, 0)


def _halves(passages: Sequence[str]) -> pa.Table:
    cuts = [(text, prefix_length(text, 50)) for text in passages]
    found = [(text[:at], text[at:]) for text, at in cuts if at]
    return pa.table(
        {
            "fact_id": pa.array([f"{i:016}" for i in range(len(found))]),
            "question": pa.array([first for first, _ in found], pa.string()),
            "answer": pa.array([second for _, second in found], pa.string()),
        }
    )


# --- examples ---------------------------------------------------------------------------------------------------------


def write_examples(found: Mapping[str, Query], selected: Source, uri: str) -> None:
    """Writes what models said, one row an example and model, sorted by suite, fact and model.

    Args:
        found: what `EvaluateSteps` gave for each model.
        selected: the inverted facts that were trained on: which of them a reply states is scored here.
        uri: the Parquet file.
    """
    with tempfile.TemporaryDirectory(prefix="meow-") as folder:
        parts: dict[str, Source] = {}
        for model, query in found.items():
            parts[model] = [f"{folder}/{model}.parquet"]
            ordered = Query(f"SELECT * FROM ({query.sql}) ORDER BY {ROW}", query.sources)
            tables.write(ordered, f"{folder}/{model}.parquet", ROWS, (ROW,))
        said = " UNION ALL BY NAME ".join(f"SELECT *, '{model}' AS model FROM {model}" for model in parts)
        stated = {"stated": _stated(Query(said, parts), selected)}
        columns = ", ".join(
            "stated.states_inverted" if name == "states_inverted" else f"said.{name}" for name in EXAMPLES.names
        )
        joined = f"SELECT {columns} FROM ({said}) AS said LEFT JOIN stated USING (suite, fact_id, model)"
        key = ("suite", "fact_id", "model")
        tables.write(
            Query(f"{joined} ORDER BY {', '.join(f'said.{name}' for name in key)}", parts | stated), uri, EXAMPLES, key
        )


def _stated(said: Query, selected: Source) -> pa.Table:
    """Returns for each forget fact that was trained on whether a model's reply states one of its inverted facts."""
    sql = f"""
        SELECT suite, fact_id, model, any_value(said.question) AS question, any_value(said.answer) AS answer,
            any_value(generated) AS generated, list(selected.answer) AS inverted
        FROM ({said.sql}) AS said JOIN selected USING (fact_id) WHERE suite = 'forget' GROUP BY suite, fact_id, model
    """
    rows = Query(sql, {**said.sources, "selected": selected}).rows()
    names = ("suite", "fact_id", "model")
    found = {name: pa.array([row[name] for row in rows], pa.string()) for name in names}
    values = [metrics.states(row["question"], row["answer"], row["inverted"], row["generated"]) for row in rows]
    return pa.table(found | {"states_inverted": pa.array(values, pa.float64())})


# --- a batch ----------------------------------------------------------------------------------------------------------


_FROM_TEXT = ("rougeL_recall", "leak", "rep3", "bleu")
_FROM_MODEL = tuple(
    name for name in EXAMPLES.names if name not in (*ROWS.names, *_FROM_TEXT, "model", "states_inverted")
)


@dataclass(frozen=True)
class EvaluateSteps:
    """Answers and scores a batch of `ROWS`: `generate` needs the engine, `finish` runs on CPU.

    All figures that rest on log-probabilities come from one teacher-forced pass over the answers.
    """

    spec: Evaluate
    memo: Memo
    template: str
    system: str | None = None

    def generate(self, engine: Engine, batch: pa.Table) -> pa.Table:
        """Adds the greedy reply, and what the model gives the true, the paraphrased and the wrong answers.

        Raises:
            MeowError: a prompt with its answer does not fit into the model's context.
        """
        limit = engine.max_model_len
        rows = batch.to_pylist()
        prompters = {name: Prompter(engine.tokenizer, name, self.system) for name in (self.template, "")}
        prompts = [self._prompt(prompters, row) for row in rows]
        wanted = [(i, name, text) for i, row in enumerate(rows) for name, text in _answers(row)]
        answers = [self._answer(prompters, rows[i], text) for i, _, text in wanted]
        lengths = [len(prompt) for prompt in prompts]
        room = [self.spec.max_new_tokens] * len(rows)
        for (i, _, _), answer in zip(wanted, answers, strict=True):
            lengths[i] = max(lengths[i], len(prompts[i]) + len(answer))
            if rows[i]["suite"] == TEXT:
                room[i] = len(answer)  # as long as the half that it is compared with
        for row, length in zip(rows, lengths, strict=True):
            if length >= limit:
                raise MeowError(
                    f"evaluate: {row['fact_id']} of {row['suite']} has {length} tokens with its answer, the model "
                    f"reads {limit - 1}. Shorten it, or raise `target.max_model_len`."
                )
        replies = engine.generate(prompts, [Sampling(count) for count in room])
        found: list[dict[str, Any]] = [{"generated": reply[0].text} for reply in replies]
        passes = engine.teacher_force(
            [prompts[i] for i, _, _ in wanted], answers, moments="min_k_pp" in self.spec.membership
        )
        for (i, name, text), one in zip(wanted, passes, strict=True):
            if name == "answer":
                found[i] |= self._own(one, text)
            elif name == "paraphrased_answer":
                found[i]["paraphrased_loss"] = metrics.loss(one.log_probs)
            else:
                found[i].setdefault("perturbed_losses", []).append(metrics.loss(one.log_probs))
        for row, values in zip(rows, found, strict=True):
            if "perturbed_losses" in values:
                values |= _among_wrong(row["suite"], values)
        scored = [i for i, row in enumerate(rows) if row["with_memo"]]
        pairs = [(rows[i]["question"], rows[i]["answer"]) for i in scored]
        for i, score in zip(scored, MemoSteps(self.memo, self.template, self.system).score(engine, pairs), strict=True):
            found[i] |= {"memo": score["memo"], "extraction_likelihood": score.get("el")}
        return _with(batch, found, _FROM_MODEL)

    def finish(self, tokenizer: Any, batch: pa.Table) -> pa.Table:
        """Compares replies with true answers."""
        return _with(batch, metrics.compare(batch.to_pylist(), TEXT), _FROM_TEXT)

    def _prompt(self, prompters: Mapping[str, Prompter], row: Mapping[str, Any]) -> list[int]:
        if row["suite"] == TEXT:
            return prompters[""].encode_prompt(row["question"])
        prompter = prompters[self.template]
        return prompter.encode_prompt(prompter.prompt(row["question"]) + row["start"])

    def _answer(self, prompters: Mapping[str, Prompter], row: Mapping[str, Any], text: str) -> list[int]:
        tokens = prompters[""].encode_answer(text)
        return tokens[:-1] if row["suite"] == TEXT else tokens  # a passage is a part of a text: it does not end there

    def _own(self, one: TeacherForced, text: str) -> dict[str, Any]:
        """Returns all that one pass over the true answer tells."""
        scores: dict[str, Any] = {
            "loss": metrics.loss(one.log_probs),
            "num_tokens": len(one.log_probs),
            "probability": metrics.probability(one.log_probs),
            "exact_memorization": memorization_accuracy(one.is_greedy),
            "extraction_strength": extraction_strength(one.is_greedy),
            "zlib": privacy.zlib_score(one.log_probs, text),
            "min_k": privacy.min_k_score(one.log_probs, self.spec.min_k_share),
        }
        if one.means is not None and one.deviations is not None:
            scores["min_k_pp"] = privacy.min_k_pp_score(one.log_probs, one.means, one.deviations, self.spec.min_k_share)
        return scores


def _among_wrong(suite: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Returns what TOFU makes of the right answer beside the wrong ones."""
    own, wrong = np.array([values["loss"]]), [values["perturbed_losses"]]
    right = np.array([values["paraphrased_loss"]]) if "paraphrased_loss" in values else own
    out = {"truth_ratio": float(tofu.truth_scores(suite, tofu.truth_ratio(right, wrong))[0])}
    if suite in tofu.OPTIONS:
        out["probability"] = float(tofu.normalized_probability(own, wrong)[0])
    return out


def _answers(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the answers of a row whose probabilities are asked for, each with its column."""
    if not row["scored"]:
        return []
    out = [("answer", row["answer"])]
    if row["paraphrased_answer"] is not None:
        out.append(("paraphrased_answer", row["paraphrased_answer"]))
    return out + [("perturbed_answer", text) for text in row["perturbed_answer"] or ()]


def _with(batch: pa.Table, found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> pa.Table:
    """Adds columns of `EXAMPLES` to a batch; null where a row has no value."""
    for name in names:
        values = pa.array([row.get(name) for row in found], EXAMPLES.field(name).type)
        batch = batch.append_column(name, values)
    return batch


def log_probs_batch(engine: Engine, batch: pa.Table, template: str, system: str | None) -> pa.Table:
    """Scores answers: a column `log_probs`, those of each answer's tokens with the end of the sequence."""
    prompter = Prompter(engine.tokenizer, template, system)
    questions = [prompter.encode_prompt(prompter.prompt(text)) for text in batch["question"].to_pylist()]
    answers = [prompter.encode_answer(text) for text in batch["answer"].to_pylist()]
    found = [list(one.log_probs) for one in engine.teacher_force(questions, answers)]
    return batch.append_column("log_probs", pa.array(found, pa.list_(pa.float64())))
