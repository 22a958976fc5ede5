"""The sides that `benchmarks.memo` measures, each run in a process of its own by `common.fresh`."""

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from benchmarks import reference
from benchmarks.common import published, sampled, stopwatch
from benchmarks.host import PROJECT, peak_rss_mib
from benchmarks.reference import Pair, Procedure
from meow_ray.config import Memo, Resources
from meow_ray.core.schema import TRUE_ANSWER
from meow_ray.engines import Completion, Engine, EngineSpec, Sampling, TeacherForced
from meow_ray.models import refs
from meow_ray.models.prompts import Prompter
from meow_ray.stages.ingest.readers import read_records
from meow_ray.stages.invert import own_candidates
from meow_ray.stages.memo import score
from meow_ray.stages.memo.steps import Continuations, MemoSteps

Tokens = Sequence[int]


@dataclass(frozen=True)
class Fact:
    """A question with all answers that are scored, the true one first."""

    question: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """What is scored, and how."""

    facts: tuple[Fact, ...]
    engine: EngineSpec
    memo: Memo
    template: str
    """`target.template`, used if `memo.template` is `target`."""
    batch_size: int = Resources().memo.batch_size

    @property
    def steps(self) -> MemoSteps:
        """The three steps of the stage."""
        return MemoSteps(self.memo, self.template)

    def batches(self) -> list[pa.Table]:
        """Returns the facts in batches, as the stage sends them to an actor: longest work first."""
        order = sorted(range(len(self.facts)), key=lambda i: -sum(map(len, self.facts[i].texts)))
        parts = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        return [
            pa.table(
                {
                    "fact": pa.array(part, pa.int32()),
                    "question": pa.array([self.facts[i].question for i in part], pa.string()),
                    "texts": pa.array([self.facts[i].texts for i in part], pa.list_(pa.string())),
                }
            )
            for part in parts
        ]


def candidates(path: Path, count: int | None) -> pa.Table:
    """Reads the first `count` facts of a file, with or without inverted ones, as candidates."""
    table = own_candidates.complete(read_records(str(path)), path.name)
    kept = list(dict.fromkeys(table["fact_id"].to_pylist()))[:count]
    return table.filter(pc.is_in(table["fact_id"], value_set=pa.array(kept)))


def facts_of(table: pa.Table) -> tuple[Fact, ...]:
    """Groups a candidates table by fact, in its order."""
    found: dict[str, list[Any]] = {}
    for row in table.to_pylist():
        texts = found.setdefault(row["fact_id"], [row["question"], row["answer"]])
        if row["candidate_id"] != TRUE_ANSWER:
            texts.append(row["inverted_answer"])
    return tuple(Fact(question, tuple(texts)) for question, *texts in found.values())


# --- the reference ------------------------------------------------------------------------------


def plain_loop(case: Case, chosen: Sequence[tuple[int, int]]) -> reference.Measured:
    """Scores the chosen answers, given as (fact, answer), with the paper's plain loop."""
    raw = case.memo.template == "raw"
    prompter = Prompter(refs.load_tokenizer(case.engine.model), "raw" if raw else case.template)
    pairs = []
    for i, j in chosen:
        question, answer = case.facts[i].question, case.facts[i].texts[j]
        pairs.append(Pair(question, f"{question} " if raw else prompter.prompt(question), answer))
    procedure = Procedure(
        window=case.memo.window,
        step=case.memo.step,
        max_new_tokens=case.memo.max_new_tokens,
        raw=raw,
        special_tokens=prompter.template != "chat",
    )
    return reference.measure(str(case.engine.model.folder), case.engine.dtype, pairs, procedure)


# --- the bare engine ----------------------------------------------------------------------------


@dataclass
class Bare:
    """What the engine alone took for each distinct prompt once, all given at once."""

    prompts: int
    tokens: int
    seconds: float
    peak_rss_mib: float


def bare_engine(case: Case) -> Bare:
    """Gives the engine each distinct prompt of the windows of a fact once."""
    engine: Any = case.engine.load()
    jobs = [job for batch in case.batches() for job in _distinct_prompts(case, engine, batch)]
    warm_up(engine)
    seconds: dict[str, float] = {}
    if case.engine.engine == "vllm":
        import vllm

        inputs = [{"prompt_token_ids": list(prompt)} for prompt, _ in jobs]
        params = [
            vllm.SamplingParams(temperature=0.0, max_tokens=limit, detokenize=False)
            for _, limit in jobs
        ]
        with stopwatch(seconds, "generate"):
            outputs = engine.llm.generate(inputs, params, use_tqdm=False)
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    else:
        with stopwatch(seconds, "generate"):
            replies = engine.generate(
                [prompt for prompt, _ in jobs], [Sampling(limit) for _, limit in jobs]
            )
        tokens = sum(map(_spoken, (reply[0] for reply in replies)))
    return Bare(len(jobs), tokens, seconds["generate"], peak_rss_mib())


def _distinct_prompts(case: Case, engine: Engine, batch: pa.Table) -> list[tuple[Tokens, int]]:
    rows = case.steps.prepare(engine.tokenizer, batch).select(["prompts", "limits", "forced"])
    out: list[tuple[Tokens, int]] = []
    for row in rows.to_pylist():
        found: dict[tuple[int, ...], int] = {}
        jobs = list(zip(row["prompts"], row["limits"], strict=True))
        if case.memo.window == "token":
            jobs = [
                (
                    (*one["prompt"], *one["sequence"][:cut]),
                    _limit(case.memo, len(one["sequence"]) - cut),
                )
                for one in row["forced"]
                for cut in score.token_cuts(len(one["sequence"]), case.memo)
            ]
        for prompt, limit in jobs:
            found[tuple(prompt)] = max(limit, found.get(tuple(prompt), 0))
        out += found.items()
    return out


def _limit(spec: Memo, label_tokens: int) -> int:
    return max(1, label_tokens) if spec.max_new_tokens == "label" else spec.max_new_tokens


def warm_up(engine: Engine) -> None:
    """Runs an engine once, so that its first call is not measured."""
    prompt = list(engine.tokenizer("Warm up")["input_ids"])
    engine.generate([prompt] * 2, [Sampling(4)] * 2)
    engine.teacher_force([prompt], [prompt])


def _spoken(completion: Completion) -> int:
    """Returns the tokens that a completion took, the end of the sequence too."""
    return len(completion.tokens) + completion.finished


# --- ours, in one process -----------------------------------------------------------------------


@dataclass
class Answer:
    """What came out for one answer."""

    memo: float | None
    texts: list[str]
    """The continuation of each window."""
    window_tokens: int
    """The tokens that a model generates which continues each window by itself."""


@dataclass
class Ours:
    """What the three steps found and took."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Of `prepare`, `generate` and `finish`."""
    answers: dict[tuple[int, int], Answer] = field(default_factory=dict)
    """By (fact, answer)."""
    prompts: int = 0
    tokens: int = 0
    """Generated for the prompts, ends of sequences too."""
    forced_tokens: int = 0
    """Read in teacher-forced passes, prompts too."""
    peak_rss_mib: float = 0.0


@dataclass
class Counting:
    """Counts what passes through an engine."""

    engine: Engine
    found: Ours

    def __post_init__(self) -> None:
        self.tokenizer, self.max_model_len = self.engine.tokenizer, self.engine.max_model_len
        self.ends = self.engine.ends
        self.generated = 0

    def generate(
        self, prompts: Sequence[Tokens], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        """See `Engine.generate`."""
        out = self.engine.generate(prompts, sampling)
        self.found.prompts += len(prompts)
        self.found.tokens += sum(map(_spoken, (reply[0] for reply in out)))
        return out

    def teacher_force(
        self, prompts: Sequence[Tokens], answers: Sequence[Tokens], moments: bool = False
    ) -> list[TeacherForced]:
        """See `Engine.teacher_force`."""
        self.found.forced_tokens += sum(map(len, prompts)) + sum(map(len, answers))
        return self.engine.teacher_force(prompts, answers)


def our_steps(case: Case) -> Ours:
    """Scores the facts with `MemoSteps`, one step after the other."""
    engine = case.engine.load()
    warm_up(engine)
    return take_steps(case, engine)


def take_steps(case: Case, engine: Engine) -> Ours:
    """Scores the facts with an engine that is loaded."""
    found, steps, tokenizer = Ours(), case.steps, engine.tokenizer
    counting = Counting(engine, found)
    for batch in case.batches():
        with stopwatch(found.seconds, "prepare"):
            prepared = steps.prepare(tokenizer, batch)
        with stopwatch(found.seconds, "generate"):
            said = steps.generate(counting, prepared)
        with stopwatch(found.seconds, "finish"):
            done = steps.finish(tokenizer, said)
        # once more and untimed, to see the continuations that are scored
        for row, scored in zip(said.to_pylist(), done.to_pylist(), strict=True):
            for j, windows in enumerate(steps.continuations(tokenizer, row)):
                found.answers[row["fact"], j] = Answer(
                    memo=scored["scores"][j]["memo"],
                    texts=_decode(tokenizer, windows.tokens),
                    window_tokens=_window_tokens(case, tokenizer, windows),
                )
    found.peak_rss_mib = peak_rss_mib()
    return found


def _decode(tokenizer: Any, sequences: Sequence[Sequence[int]]) -> list[str]:
    return list(tokenizer.batch_decode(sequences, skip_special_tokens=True)) if sequences else []


def _window_tokens(case: Case, tokenizer: Any, windows: Continuations) -> int:
    """Returns the tokens that a plain loop generates for the windows of an answer, with the end."""
    lengths = [len(tokens) for tokens in windows.label_tokens]
    if not lengths and case.memo.max_new_tokens == "label":
        lengths = [
            len(tokenizer(label, add_special_tokens=False)["input_ids"]) for label in windows.labels
        ]
    limits = [_limit(case.memo, length) for length in lengths or [0] * len(windows.tokens)]
    return sum(
        min(len(tokens) + 1, limit) for tokens, limit in zip(windows.tokens, limits, strict=True)
    )


def variants(case: Case, specs: Sequence[Memo]) -> list[Ours]:
    """Scores the facts under several settings with one engine."""
    engine = case.engine.load()
    warm_up(engine)
    return [
        take_steps(Case(case.facts, case.engine, spec, case.template, case.batch_size), engine)
        for spec in specs
    ]


# --- ours, through Ray --------------------------------------------------------------------------


@dataclass
class Staged:
    """What the stage `memo` took, the start of Ray and of the engine in it."""

    seconds: float
    prompts: int
    peak_pss_mib: float
    """Of the driver, Ray and its workers together."""


def ray_stage(case: Case, rows: pa.Table) -> Staged:
    """Runs `pipelines/stage.py memo` on a candidates table over a fresh storage root."""
    with tempfile.TemporaryDirectory(prefix="meow-bench-") as folder:
        root, table, config = (
            Path(folder, "root"),
            Path(folder, "candidates.parquet"),
            Path(folder, "config.yaml"),
        )
        pq.write_table(rows, table)
        target = {"model": case.engine.model.uri, "template": case.template}
        target |= {
            name: getattr(case.engine, name) for name in ("engine", "dtype", "max_model_len")
        }
        sections = {
            "target": target,
            "memo": case.memo.model_dump(mode="json"),
            "resources": {"memo": {"batch_size": case.batch_size}},
            "storage": {"root": str(root)},
        }
        config.write_text(yaml.safe_dump(sections))
        command = [
            sys.executable,
            "pipelines/stage.py",
            "memo",
            f"--config={config}",
            f"--input=candidates={table}",
        ]
        process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL)
        with sampled(process.pid, tree=True, interval=1.0) as memory:
            status = process.wait()
        if status:
            raise SystemExit(f"pipelines/stage.py memo ended with status {status}.")
        _, manifest = published(root, "memo")
        return Staged(manifest.seconds, int(manifest.summary["generations"]), memory.peak_pss_mib)


# --- agreement ----------------------------------------------------------------------------------

Scores = dict[tuple[int, int], float]
"""MEMO by (fact, answer); answers that are too short for a window are left out."""


def scores(answers: Mapping[tuple[int, int], Answer]) -> Scores:
    """Returns the MEMO of each answer that has one."""
    return {key: answer.memo for key, answer in answers.items() if answer.memo is not None}


def compare(first: Scores, second: Scores, top_k: int) -> dict[str, Any]:
    """Compares two measurements of the same answers: MEMO, and the `top_k` selected candidates.

    Only facts with more than `top_k` candidates among the answers have a choice; there may be none.
    """
    from scipy.stats import spearmanr

    assert first.keys() == second.keys()
    a, b = list(first.values()), [second[key] for key in first]
    varied = len(set(a)) > 1 and len(set(b)) > 1
    facts = [
        fact for fact, count in Counter(fact for fact, j in first if j).items() if count > top_k
    ]
    same = sum(_largest(first, fact, top_k) == _largest(second, fact, top_k) for fact in facts)
    return {
        "answers": len(a),
        "memo_first": fmean(a),
        "memo_second": fmean(b),
        "memo_mean_absolute_difference": fmean(abs(x - y) for x, y in zip(a, b, strict=True)),
        "memo_max_absolute_difference": max(abs(x - y) for x, y in zip(a, b, strict=True)),
        "memo_spearman": float(spearmanr(a, b).statistic) if varied else None,
        "selection_facts": len(facts),
        "selection_same": same / len(facts) if facts else None,
    }


def _largest(found: Scores, fact: int, top_k: int) -> set[int]:
    own = sorted((-value, j) for (i, j), value in found.items() if i == fact and j)
    return {j for _, j in own[:top_k]}
