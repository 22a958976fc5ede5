"""Inverted facts for a batch of facts: ask, check, ask again."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import combinations
from statistics import fmean
from typing import Any

import pyarrow as pa

from meow_ray.config import Invert
from meow_ray.core.tables import Query, TableSource
from meow_ray.distributed.figures import Figure, Figures
from meow_ray.engines import Completion, Sampling
from meow_ray.models import prompts
from meow_ray.models.text import novel_words, rouge, written_words
from meow_ray.stages.invert.endpoint import EndpointSpec
from meow_ray.stages.invert.generators import Ask, Generator
from meow_ray.stages.invert.replies import (
    VERDICT_SCHEMA,
    as_long,
    choose,
    fact_seed,
    frame,
    parse_reply,
    parse_verdict,
    reply_schema,
    statement,
)
from meow_ray.stages.invert.rules import Fact, Proposal

MAX_TEMPERATURE = 2.0
_CANDIDATE = pa.struct(
    [("text", pa.string()), ("style", pa.string()), ("attempt", pa.int32()), ("seed", pa.int64())]
)
_REJECT = pa.struct(
    [
        ("text", pa.string()),
        ("reason", pa.string()),
        ("style", pa.string()),
        ("attempt", pa.int32()),
    ]
)


@dataclass
class _Progress:
    """What one fact has so far."""

    fact_id: str
    fact: Fact
    candidates: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [candidate["text"] for candidate in self.candidates]

    @property
    def judged(self) -> list[str]:
        return [reject["text"] for reject in self.rejects if reject["reason"] == "judge"]


@dataclass(frozen=True)
class _Attempt:
    number: int
    style: str
    temperature: float


@dataclass(frozen=True)
class InvertSteps:
    """Writes inverted facts for rows of `fact_id`, `question` and `answer`.

    Adds `candidates` and `rejects` (lists of structs), and two means over a fact's candidates, null where there are
    none: `distance`, 1 - ROUGE-L F1 to the true answer, and `distinctness`, the same between two of them.
    """

    spec: Invert
    style: str
    """`chat` or `prefill`: `invert.style`, resolved."""
    facts: TableSource = field(default=(), repr=False)
    """The `facts` table, whose retain split no candidate may state."""
    judge: EndpointSpec | None = None
    """Who judges in place of the generator."""

    def __call__(self, generator: Generator, batch: pa.Table) -> pa.Table:
        """Asks until every fact has its candidates or the attempts are used up."""
        rows = [
            _Progress(row["fact_id"], Fact(row["question"], row["answer"]))
            for row in batch.select(["fact_id", "question", "answer"]).to_pylist()
        ]
        for attempt in self._attempts(generator):
            pending = [row for row in rows if len(row.candidates) < self.spec.num_candidates]
            if not pending:
                break
            self._attempt(generator, pending, attempt)
        columns = {
            "candidates": pa.array([row.candidates for row in rows], pa.list_(_CANDIDATE)),
            "rejects": pa.array([row.rejects for row in rows], pa.list_(_REJECT)),
            "distance": pa.array(
                [_mean_distance([(row.fact.answer, text) for text in row.texts]) for row in rows],
                pa.float64(),
            ),
            "distinctness": pa.array(
                [_mean_distance(combinations(row.texts, 2)) for row in rows], pa.float64()
            ),
        }
        for name, values in columns.items():
            batch = batch.append_column(name, values)
        return batch

    def figures(self, batch: pa.Table) -> Figures:
        """Returns the numbers of candidates and rejects of a finished batch."""
        return {
            name: Figure.total(sum(map(len, batch[name].to_pylist())))
            for name in ("candidates", "rejects")
        }

    def _attempts(self, generator: Generator) -> Iterator[_Attempt]:
        """Yields the attempts: warmer each time, then the same in the other style."""
        spec = self.spec
        others = [s for s in generator.styles if s != self.style] if spec.fallback else []
        for round_, style in enumerate([self.style, *others]):
            for i in range(spec.max_attempts):
                temperature = min(spec.temperature + i * spec.temperature_step, MAX_TEMPERATURE)
                yield _Attempt(round_ * spec.max_attempts + i, style, temperature)

    def _attempt(self, generator: Generator, rows: Sequence[_Progress], attempt: _Attempt) -> None:
        asks = [self._ask(row, attempt) for row in rows]
        made = {"style": attempt.style, "attempt": attempt.number}
        found: list[tuple[_Progress, str, int | None]] = []
        for row, ask, replies in zip(rows, asks, generator.ask(asks), strict=True):
            if replies is None:
                row.rejects.append({"text": "", "reason": "prompt_too_long", **made})
                continue
            proposals = [
                proposal
                for reply in replies
                for proposal in _proposals(ask, reply, attempt.style, row.fact.answer)
            ]
            valid, rejected = choose(
                proposals, row.fact, self.spec, row.texts, row.judged, self._retained
            )
            row.rejects += [{"text": text, "reason": reason, **made} for text, reason in rejected]
            found += [(row, text, ask.sampling.seed) for text in valid]
        contradicts = self._judged(generator, [(row.fact, text) for row, text, _ in found])
        for (row, text, seed), fine in zip(found, contradicts, strict=True):
            if fine:
                row.candidates.append({"text": text, "seed": seed, **made})
            else:
                row.rejects.append({"text": text, "reason": "judge", **made})

    def _ask(self, row: _Progress, attempt: _Attempt) -> Ask:
        spec, question, answer = self.spec, row.fact.question, row.fact.answer
        seed = None if spec.seed is None else fact_seed(spec.seed, row.fact_id, attempt.number)
        common: dict[str, Any] = {
            "temperature": attempt.temperature,
            "top_p": spec.top_p,
            "seed": seed,
        }
        fields = {"question": question, "answer": answer, "k": spec.num_candidates}
        if attempt.style == "chat":
            k = spec.num_candidates + spec.spare
            text = prompts.fill(spec.chat_prompt, "invert.chat_prompt", **fields | {"k": k})
            return Ask(
                text, Sampling(spec.max_new_tokens * k, json_schema=reply_schema(k), **common)
            )
        text = prompts.fill(spec.prefill_prompt, "invert.prefill_prompt", **fields)
        banned = tuple(written_words(answer, novel_words(answer, question)))
        enough = len(answer.encode()) // 2 + 16  # tokens have more than two bytes in any script
        sampling = Sampling(
            min(enough, spec.max_new_tokens),
            n=spec.samples,
            stop=("\n",),
            bad_words=banned,
            **common,
        )
        return Ask(text, sampling, frame(question, answer))

    # --- checks that need more than the fact

    @cached_property
    def _retained(self) -> Container[bytes]:
        """What the facts to keep state."""
        if not len(self.facts):
            return ()
        retained = Query("SELECT answer FROM facts WHERE split = 'retain'", {"facts": self.facts})
        with retained.batches() as reader:
            return {statement(text) for batch in reader for text in batch["answer"].to_pylist()}

    def _judged(self, generator: Generator, pairs: Sequence[tuple[Fact, str]]) -> list[bool]:
        """Returns whether the judge says that a text contradicts the true answer; True for all without a judge."""
        if self.spec.judge == "none" or not pairs:
            return [True] * len(pairs)
        sampling = Sampling(32, json_schema=VERDICT_SCHEMA)
        asks = [
            Ask(
                prompts.fill(
                    self.spec.judge_prompt,
                    "invert.judge_prompt",
                    question=fact.question,
                    answer=fact.answer,
                    candidate=text,
                ),
                sampling,
            )
            for fact, text in pairs
        ]
        judge = _loaded(self.judge) if self.judge else generator
        return [
            replies is not None and parse_verdict(replies[0].text) for replies in judge.ask(asks)
        ]


def probe(generator: Generator, batch: pa.Table, spec: Invert) -> pa.Table:
    """Tries both styles once, without a judge: adds `chat` and `prefill`, the valid candidates of each."""
    once = spec.model_copy(update={"max_attempts": 1, "fallback": False, "judge": "none"})
    for style in ("chat", "prefill"):
        tried = InvertSteps(once, style)(generator, batch.select(["fact_id", "question", "answer"]))
        counts = [len(found) for found in tried["candidates"].to_pylist()]
        batch = batch.append_column(style, pa.array(counts, pa.int32()))
    return batch


def _proposals(ask: Ask, reply: Completion, style: str, answer: str) -> list[Proposal]:
    if style == "chat":
        return parse_reply(reply.text, reply.finished)
    return [as_long(ask.head + reply.text, answer, reply.finished)]


def _mean_distance(pairs: Any) -> float | None:
    references, texts = zip(*pairs, strict=True) if (pairs := list(pairs)) else ((), ())
    if not texts:
        return None
    return fmean(1.0 - scores["rougeL"].f1 for scores in rouge(references, texts))


@cache
def _loaded(spec: EndpointSpec) -> Any:
    return spec.load()
