"""The steps of `invert` for a batch of facts: ask the generator, check the replies, ask again."""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from statistics import fmean
from typing import Any

import pyarrow as pa

from meow_ray.config import Invert
from meow_ray.core.tables import Query, TableSource
from meow_ray.distributed.figures import Figure, Figures
from meow_ray.engines import Completion, Sampling
from meow_ray.models import prompts
from meow_ray.models.text import rouge, written_forms
from meow_ray.stages.invert.generators import Ask, Generator, GeneratorSpec
from meow_ray.stages.invert.parsing import (
    cut_to_sentences,
    is_reasoning_only,
    parse_reply,
    parse_verdict,
)
from meow_ray.stages.invert.replies import (
    VERDICT_SCHEMA,
    choose,
    fact_seed,
    frame,
    reply_schema,
    statement_digest,
)
from meow_ray.stages.invert.rules import Fact, Proposal

MAX_TEMPERATURE = 2.0
STYLES = ("chat", "prefill")
_INPUT_COLUMNS = ["fact_id", "question", "answer"]
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


@dataclass(frozen=True)
class _Attempt:
    """A round in which facts with too few candidates are asked for more."""

    number: int
    style: str
    temperature: float


@dataclass
class _Progress:
    """A fact with its candidates and rejects so far."""

    fact_id: str
    fact: Fact
    candidates: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """The texts of the candidates."""
        return [candidate["text"] for candidate in self.candidates]

    @property
    def judged(self) -> list[str]:
        """The texts that the judge rejected."""
        return [reject["text"] for reject in self.rejects if reject["reason"] == "judge"]

    def accept(self, text: str, seed: int | None, attempt: _Attempt) -> None:
        self.candidates.append(
            {"text": text, "seed": seed, "style": attempt.style, "attempt": attempt.number}
        )

    def reject(self, text: str, reason: str, attempt: _Attempt) -> None:
        self.rejects.append(
            {"text": text, "reason": reason, "style": attempt.style, "attempt": attempt.number}
        )


@dataclass(frozen=True)
class _Choice:
    """A proposal for a fact that breaks no rule; the judge, if there is one, still has to agree."""

    progress: _Progress
    text: str
    seed: int | None


@dataclass(frozen=True)
class InvertSteps:
    """A function that writes inverted facts for a batch of `fact_id`, `question` and `answer`.

    It adds `candidates` and `rejects` (lists of structs) and two means over the candidates of a
    fact, null where there are none: `distance`, 1 - ROUGE-L F1 between a candidate and the true
    answer, and `distinctness`, the same between two candidates. `left_out` lists the settings that
    the generator refused, and those of a separate judge as `judge.NAME`.
    """

    spec: Invert
    style: str
    """`chat` or `prefill`: `invert.style`, resolved."""
    facts: TableSource = field(default=(), repr=False)
    """The `facts` table; no candidate may say the same as a fact of its retain split."""
    judge: GeneratorSpec | None = None
    """The model that judges the candidates; None lets the generator judge."""

    def __call__(self, generator: Generator, batch: pa.Table) -> pa.Table:
        """Asks until each fact has its candidates or the attempts are used up."""
        progress = [
            _Progress(row["fact_id"], Fact(row["question"], row["answer"]))
            for row in batch.select(_INPUT_COLUMNS).to_pylist()
        ]
        for attempt in self._attempts(generator):
            pending = [fact for fact in progress if len(fact.candidates) < self.spec.num_candidates]
            if not pending:
                break
            self._run(attempt, generator, pending)
        return _with_results(batch, progress, self._left_out(generator))

    def figures(self, batch: pa.Table) -> Figures:
        """Returns the numbers of candidates and rejects of a finished batch."""
        return {
            name: Figure.total(sum(map(len, batch[name].to_pylist())))
            for name in ("candidates", "rejects")
        }

    # --- attempts -------------------------------------------------------------------------------

    def _attempts(self, generator: Generator) -> Iterator[_Attempt]:
        """Yields the attempts: each is warmer than the last; then the same in the other style."""
        spec = self.spec
        styles = [self.style]
        if spec.fallback:
            styles += [style for style in generator.styles if style != self.style]
        for position, style in enumerate(styles):
            for step in range(spec.max_attempts):
                temperature = spec.temperature + step * spec.temperature_step
                yield _Attempt(
                    number=position * spec.max_attempts + step,
                    style=style,
                    temperature=min(temperature, MAX_TEMPERATURE),
                )

    def _run(self, attempt: _Attempt, generator: Generator, pending: Sequence[_Progress]) -> None:
        """Asks once for each pending fact and adds what comes back to its candidates or rejects."""
        asks = [self._ask(progress, attempt) for progress in pending]
        choices: list[_Choice] = []
        for progress, ask, replies in zip(pending, asks, generator.ask(asks), strict=True):
            if replies is None:
                progress.reject("", "prompt_too_long", attempt)
            else:
                choices += self._choose(progress, ask, replies, attempt)
        verdicts = self._verdicts(generator, choices)
        for choice, contradicts in zip(choices, verdicts, strict=True):
            if contradicts:
                choice.progress.accept(choice.text, choice.seed, attempt)
            else:
                reason = "no_verdict" if contradicts is None else "judge"
                choice.progress.reject(choice.text, reason, attempt)

    def _choose(
        self, progress: _Progress, ask: Ask, replies: Sequence[Completion], attempt: _Attempt
    ) -> list[_Choice]:
        """Returns the valid proposals in the replies for a fact, and records the others."""
        proposals: list[Proposal] = []
        for reply in replies:
            if is_reasoning_only(reply.text, reply.finished):
                progress.reject("", "only_reasoning", attempt)
            proposals += _proposals(ask, reply, attempt.style, progress.fact.answer)
        texts, rejected = choose(
            proposals,
            progress.fact,
            self.spec,
            taken=progress.texts,
            judged=progress.judged,
            retained=self._retained,
        )
        for text, reason in rejected:
            progress.reject(text, reason, attempt)
        return [_Choice(progress, text, ask.sampling.seed) for text in texts]

    # --- messages -------------------------------------------------------------------------------

    def _ask(self, progress: _Progress, attempt: _Attempt) -> Ask:
        """Returns the message for a fact in an attempt."""
        seed = None
        if self.spec.seed is not None:
            seed = fact_seed(self.spec.seed, progress.fact_id, attempt.number)
        if attempt.style == "chat":
            return self._chat_ask(progress.fact, attempt.temperature, seed)
        return self._prefill_ask(progress.fact, attempt.temperature, seed)

    def _chat_ask(self, fact: Fact, temperature: float, seed: int | None) -> Ask:
        """Returns a message that asks for several answers in one reply."""
        spec = self.spec
        k = spec.num_candidates + spec.spare
        text = prompts.fill(
            spec.chat_prompt,
            "invert.chat_prompt",
            question=fact.question,
            answer=fact.answer,
            k=k,
            bare=fact.is_bare,
        )
        sampling = Sampling(
            max_new_tokens=spec.max_new_tokens * k,
            temperature=temperature,
            top_p=spec.top_p,
            seed=seed,
            json_schema=reply_schema(k),
        )
        return Ask(text, sampling)

    def _prefill_ask(self, fact: Fact, temperature: float, seed: int | None) -> Ask:
        """Returns a message whose replies complete the frame, each with a single answer."""
        spec = self.spec
        text = prompts.fill(
            spec.prefill_prompt,
            "invert.prefill_prompt",
            question=fact.question,
            answer=fact.answer,
            k=spec.num_candidates,
            bare=fact.is_bare,
        )
        # a token has more than two bytes on average in all scripts
        enough_tokens = len(fact.answer.encode()) // 2 + 16
        sampling = Sampling(
            max_new_tokens=min(enough_tokens, spec.max_new_tokens),
            temperature=temperature,
            top_p=spec.top_p,
            n=spec.samples,
            seed=seed,
            stop=("\n",),
            bad_words=tuple(written_forms(fact.answer, fact.novel)),
        )
        return Ask(text, sampling, head=frame(fact.question, fact.answer))

    # --- checks that need more than the fact ----------------------------------------------------

    @cached_property
    def _retained(self) -> Container[bytes]:
        """Digests of the answers of the retain set."""
        if not len(self.facts):
            return ()
        retained = Query("SELECT answer FROM facts WHERE split = 'retain'", {"facts": self.facts})
        with retained.batches() as reader:
            return {
                statement_digest(answer)
                for batch in reader
                for answer in batch["answer"].to_pylist()
            }

    @cached_property
    def _separate_judge(self) -> Generator | None:
        """The loaded judge; None lets the generator judge."""
        return self.judge.load() if self.judge else None

    def _left_out(self, generator: Generator) -> list[str]:
        """Returns the settings that generator and judge have refused."""
        judge = self._separate_judge
        of_judge = [f"judge.{name}" for name in judge.left_out] if judge else []
        return [*generator.left_out, *of_judge]

    def _verdicts(self, generator: Generator, choices: Sequence[_Choice]) -> list[bool | None]:
        """Returns whether each text contradicts its true answer, according to the judge.

        Without a judge, all do. The entry is None if the judge states no verdict.
        """
        if self.spec.judge == "none" or not choices:
            return [True] * len(choices)
        judge = self._separate_judge or generator
        replies = judge.ask([self._judge_ask(choice) for choice in choices])
        return [
            None if completions is None else parse_verdict(completions[0].text)
            for completions in replies
        ]

    def _judge_ask(self, choice: _Choice) -> Ask:
        """Returns the message that asks a judge about a proposal."""
        text = prompts.fill(
            self.spec.judge_prompt,
            "invert.judge_prompt",
            question=choice.progress.fact.question,
            answer=choice.progress.fact.answer,
            candidate=choice.text,
        )
        return Ask(text, Sampling(self.spec.judge_max_new_tokens, json_schema=VERDICT_SCHEMA))


def probe_styles(generator: Generator, batch: pa.Table, spec: Invert) -> pa.Table:
    """Tries each style once, without a judge.

    Adds the columns `chat` and `prefill`: the number of valid candidates of each fact.
    """
    once = spec.model_copy(update={"max_attempts": 1, "fallback": False, "judge": "none"})
    for style in STYLES:
        results = InvertSteps(once, style)(generator, batch.select(_INPUT_COLUMNS))
        counts = [len(candidates) for candidates in results["candidates"].to_pylist()]
        batch = batch.append_column(style, pa.array(counts, pa.int32()))
    return batch


def _with_results(
    batch: pa.Table, progress: Sequence[_Progress], left_out: Sequence[str]
) -> pa.Table:
    """Returns a batch with the columns that `InvertSteps` adds."""
    distances = [
        _mean_distance((fact.fact.answer, text) for text in fact.texts) for fact in progress
    ]
    distinctness = [_mean_distance(combinations(fact.texts, 2)) for fact in progress]
    columns = {
        "candidates": pa.array([fact.candidates for fact in progress], pa.list_(_CANDIDATE)),
        "rejects": pa.array([fact.rejects for fact in progress], pa.list_(_REJECT)),
        "distance": pa.array(distances, pa.float64()),
        "distinctness": pa.array(distinctness, pa.float64()),
        "left_out": pa.array([left_out] * len(progress), pa.list_(pa.string())),
    }
    for name, values in columns.items():
        batch = batch.append_column(name, values)
    return batch


def _proposals(ask: Ask, reply: Completion, style: str, answer: str) -> list[Proposal]:
    """Returns the answers that a reply proposes."""
    if style == "chat":
        return parse_reply(reply.text, reply.finished, answer)
    return [cut_to_sentences(ask.head + reply.text, answer, reply.finished)]


def _mean_distance(pairs: Iterable[tuple[str, str]]) -> float | None:
    """Returns the mean of 1 - ROUGE-L F1 over (reference, text) pairs, or None without pairs."""
    listed = list(pairs)
    if not listed:
        return None
    references = [reference for reference, _ in listed]
    texts = [text for _, text in listed]
    return fmean(1.0 - scores["rougeL"].f1 for scores in rouge(references, texts))
