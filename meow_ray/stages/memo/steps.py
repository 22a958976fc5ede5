"""The three steps that score a batch of facts with MEMO: `prepare`, `generate`, `finish`.

Only `generate` needs the engine. `prepare` cuts and tokenises, `finish` decodes and scores; both
run on CPU.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from meow_ray.config import Memo
from meow_ray.core.schema import SCHEMAS
from meow_ray.distributed.figures import Figure, Figures
from meow_ray.engines import Engine, TeacherForced
from meow_ray.models.prompts import Prompter
from meow_ray.stages.memo.bounds import Choice
from meow_ray.stages.memo.characters import character_windows, distinct_prompts, window_limit
from meow_ray.stages.memo.extraction import samples_to_extract
from meow_ray.stages.memo.forced import (
    BRANCH_TYPE,
    FORCED_TYPE,
    TOKENS_TYPE,
    Branch,
    Forced,
    beginning_of,
    cuts_and_limits,
    forced_sequence,
)
from meow_ray.stages.memo.generation import (
    Batch,
    Generated,
    flatten,
    generate_all,
    generate_for_choice,
    regroup,
)
from meow_ray.stages.memo.greedy import check_lengths
from meow_ray.stages.memo.score import (
    Score,
    assemble,
    extraction_likelihood,
    extraction_strength,
    memorization_accuracy,
    score_answer,
)

SCORE_NAMES = tuple(name for name in SCHEMAS["memo"].names if name in Score.__dataclass_fields__)
"""The columns of `memo` that hold scores of an answer."""
BOUNDS_NAMES = ("memo_low", "memo_high")
"""The columns of the bounds of MEMO, if only the answers that a selection needs are scored."""
COMPARATOR_COLUMNS = {
    "ma": ("ma",),
    "el": ("el",),
    "em": ("em",),
    "es": ("es",),
    "pz": ("pz", "pz_samples"),
}
"""The columns of each comparator."""
BOUNDS_TYPE = pa.struct([("low", pa.float64()), ("high", pa.float64())])


@dataclass(frozen=True)
class Continuations:
    """The windows of one answer, each with its greedy continuation."""

    labels: list[str]
    label_tokens: list[list[int]]
    """The tokens of the labels; empty for character windows if no comparator reads them."""
    tokens: list[list[int]]
    """The tokens of the continuations."""


def score_columns(spec: Memo, choice: Choice | None = None) -> list[str]:
    """Returns the columns of an answer's scores: those of `memo`, bounds, the comparators."""
    comparators = [column for name in spec.comparators for column in COMPARATOR_COLUMNS[name]]
    return [*SCORE_NAMES, *(BOUNDS_NAMES if choice else ()), *comparators]


def score_type(spec: Memo, choice: Choice | None = None) -> pa.DataType:
    """Returns the Arrow type of one answer's scores, a struct with these columns."""
    kinds = {name: SCHEMAS["memo"].field(name).type for name in SCORE_NAMES}
    return pa.struct(
        [(name, kinds.get(name, pa.float64())) for name in score_columns(spec, choice)]
    )


@dataclass(frozen=True)
class MemoSteps:
    """The steps that score facts, each with all its answers.

    A batch has the columns `question` and `texts` (the answers to score). `finish` adds `scores`,
    one struct per answer, and `generations`, the number of prompts that the model continued. The
    model continues each distinct prompt of a fact once.
    """

    spec: Memo
    template: str
    """`target.template`; it applies if `memo.template` is `target`."""
    system: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """`target.template_variables`."""
    choice: Choice | None = None
    """What `select` will choose; None scores all answers. Otherwise the true answer is a fact's
    first, and an answer that the selection does not depend on gets bounds instead of scores."""

    @property
    def needs_forced_pass(self) -> bool:
        """Whether token windows or a comparator need a teacher-forced pass over the answers."""
        of_pass = {"ma", "em", "es", "pz"}
        return self.spec.window == "token" or bool(of_pass & set(self.spec.comparators))

    def prepare(self, tokenizer: Any, batch: pa.Table) -> pa.Table:
        """Cuts and tokenises the answers.

        Returns:
            The batch with the columns `prompts` and `limits` (of character windows: the distinct
            prompts and the largest number of new tokens of each) and `forced` (the sequences of the
            teacher-forced pass; see `Forced`).
        """
        prompter = self._prompter(tokenizer)
        prompts, limits, forced = [], [], []
        for question, texts in _questions_and_texts(batch):
            limit_of_prompt: dict[str, int] = {}
            if self.spec.window == "character":
                limit_of_prompt = distinct_prompts(prompter, question, texts, self.spec)
            prompts.append([prompter.encode_prompt(prompt) for prompt in limit_of_prompt])
            limits.append(list(limit_of_prompt.values()))
            sequences: list[Forced] = []
            if self.needs_forced_pass:
                sequences = [forced_sequence(prompter, question, text, self.spec) for text in texts]
            forced.append(sequences)
        return _append_columns(
            batch,
            prompts=pa.array(prompts, pa.list_(TOKENS_TYPE)),
            limits=pa.array(limits, TOKENS_TYPE),
            forced=pa.array(forced, pa.list_(FORCED_TYPE)),
        )

    def generate(self, engine: Engine, batch: pa.Table) -> pa.Table:
        """Runs the model on a prepared batch.

        Returns:
            The batch with the columns `replies` (the continuation of each prompt; null if the model
            did not continue it), `greedy` (for each forced sequence, which tokens are greedy),
            `log_probs` (the log-probability of the answer in each forced sequence), `branches` (of
            token windows: the continuation from each position where a forced sequence is not
            greedy; see `Branch`) and `bounds` (of each answer; null if it gets scores).

        Raises:
            MeowError: a prompt leaves no room in the model's context.
        """
        prompts = batch["prompts"].to_pylist()
        forced: list[list[Forced]] = batch["forced"].to_pylist()
        flat_forced = flatten(forced)
        check_lengths(engine, flatten(prompts), flat_forced)

        passes = engine.teacher_force(
            [sequence["prompt"] for sequence in flat_forced],
            [sequence["sequence"] for sequence in flat_forced],
        )
        generated = self._generate(
            engine,
            Batch(
                questions=batch["question"].to_pylist(),
                texts=batch["texts"].to_pylist(),
                prompts=prompts,
                limits=batch["limits"].to_pylist(),
                forced=forced,
                passes=regroup(passes, forced),
            ),
        )
        greedy = [result.is_greedy for result in passes]
        log_probs = list(map(_log_prob, passes, flat_forced))
        return _append_columns(
            batch,
            replies=pa.array(generated.replies, pa.list_(TOKENS_TYPE)),
            greedy=pa.array(regroup(greedy, forced), pa.list_(pa.list_(pa.bool_()))),
            log_probs=pa.array(regroup(log_probs, forced), pa.list_(pa.float64())),
            branches=pa.array(generated.branches, pa.list_(pa.list_(BRANCH_TYPE))),
            bounds=pa.array(generated.bounds, pa.list_(BOUNDS_TYPE)),
        )

    def _generate(self, engine: Engine, batch: Batch) -> Generated:
        if self.choice is None:
            return generate_all(engine, batch, self.spec)
        prompter = self._prompter(engine.tokenizer)
        return generate_for_choice(engine, batch, self.spec, self.choice, prompter)

    def finish(self, tokenizer: Any, batch: pa.Table) -> pa.Table:
        """Scores the continuations of a generated batch.

        Returns:
            The batch with the columns `scores` and `generations`, without those that `prepare` and
            `generate` added.
        """
        scores, generations = [], []
        for fact in batch.select(_COLUMNS_TO_SCORE).to_pylist():
            scores.append(self._score_fact(tokenizer, fact))
            generations.append(self._count_generations(fact))
        return _append_columns(
            batch.drop_columns(_WORKING_COLUMNS),
            scores=pa.array(scores, pa.list_(score_type(self.spec, self.choice))),
            generations=pa.array(generations, pa.int32()),
        )

    def figures(self, batch: pa.Table) -> Figures:
        """Returns the mean MEMO of the true answers of a finished batch, if all are scored."""
        if self.choice is not None:
            return {}
        true_scores = [scores[0]["memo"] for scores in batch["scores"].to_pylist()]
        known = [score for score in true_scores if score is not None]
        return {"memo": Figure.mean(sum(known), len(known))}

    def score(self, engine: Engine, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Returns the scores of question–answer pairs, computed by an engine in this process."""
        batch = pa.table(
            {
                "question": pa.array([question for question, _ in pairs], pa.string()),
                "texts": pa.array([[answer] for _, answer in pairs], pa.list_(pa.string())),
            }
        )
        prepared = self.prepare(engine.tokenizer, batch)
        finished = self.finish(engine.tokenizer, self.generate(engine, prepared))
        return [scores[0] for scores in finished["scores"].to_pylist()]

    def continuations(self, tokenizer: Any, fact: dict[str, Any]) -> list[Continuations]:
        """Returns the windows of each answer of a fact, a row of a generated batch."""
        if self.spec.window == "character":
            return self._character_continuations(tokenizer, fact)
        return [
            self._token_continuations(tokenizer, sequence, is_greedy, generated)
            for sequence, is_greedy, generated in zip(
                fact["forced"], fact["greedy"], fact["branches"], strict=True
            )
        ]

    def _prompter(self, tokenizer: Any) -> Prompter:
        if self.spec.template == "raw":
            return Prompter(tokenizer, "raw")
        return Prompter(tokenizer, self.template, self.system, self.variables)

    # --- windows

    def _character_continuations(self, tokenizer: Any, fact: dict[str, Any]) -> list[Continuations]:
        prompter = self._prompter(tokenizer)
        question, texts = fact["question"], fact["texts"]
        prompts = distinct_prompts(prompter, question, texts, self.spec)
        reply_to = dict(zip(prompts, fact["replies"], strict=True))
        answers = []
        for text in texts:
            cuts = character_windows(prompter, question, text, self.spec)
            labels = [window.label for window in cuts]
            label_tokens = []
            if "el" in self.spec.comparators:
                label_tokens = [prompter.encode_text(label) for label in labels]
            # a shared reply can be longer than this answer's window allows
            tokens = [
                (reply_to[window.prompt] or [])[: window_limit(prompter, window.label, self.spec)]
                for window in cuts
            ]
            answers.append(Continuations(labels=labels, label_tokens=label_tokens, tokens=tokens))
        return answers

    def _token_continuations(
        self,
        tokenizer: Any,
        forced: Forced,
        is_greedy: Sequence[bool],
        generated: Sequence[Branch],
    ) -> Continuations:
        sequence = forced["sequence"]
        cuts, limits = cuts_and_limits(forced, self.spec)
        tokens_from = {branch["at"]: branch["tokens"] for branch in generated}
        label_tokens = [sequence[cut:] for cut in cuts]
        return Continuations(
            labels=_decode(tokenizer, label_tokens),
            label_tokens=label_tokens,
            tokens=assemble(sequence, is_greedy, cuts, limits, tokens_from),
        )

    # --- scores

    def _score_fact(self, tokenizer: Any, fact: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the scores of each answer of a fact."""
        answers = self.continuations(tokenizer, fact)
        passes = _passes_of_answers(fact)
        return [
            self._score(tokenizer, answer, bounds) | self._comparators(answer, *measured)
            for answer, bounds, measured in zip(answers, fact["bounds"], passes, strict=True)
        ]

    def _score(
        self, tokenizer: Any, answer: Continuations, bounds: dict[str, float] | None
    ) -> dict[str, Any]:
        """Returns the scores of an answer; of one with bounds, these and no scores."""
        if bounds is not None:
            return {
                **dict.fromkeys(SCORE_NAMES),
                "num_windows": len(answer.labels),
                **dict(zip(BOUNDS_NAMES, (bounds["low"], bounds["high"]), strict=True)),
            }
        score = score_answer(answer.labels, _decode(tokenizer, answer.tokens), self.spec)
        values: dict[str, Any] = {name: getattr(score, name) for name in SCORE_NAMES}
        return values | (dict.fromkeys(BOUNDS_NAMES, score.memo) if self.choice else {})

    def _comparators(
        self, answer: Continuations, is_greedy: Sequence[bool] | None, log_prob: float | None
    ) -> dict[str, float | None]:
        """Returns the columns of the configured comparators.

        Args:
            answer: the windows of the answer.
            is_greedy: `[answer]`, which tokens are greedy; None without a forced pass.
            log_prob: the log-probability of the answer; None without a forced pass, or if the first
                token has no token before it.
        """
        values: dict[str, float | None] = {}
        for name in self.spec.comparators:
            if name == "el":
                labels, tokens = answer.label_tokens, answer.tokens
                values[name] = extraction_likelihood(labels, tokens, self.spec.el_n)
                continue
            assert is_greedy is not None, f"{name} needs a teacher-forced pass"
            if name == "pz":
                values["pz"] = log_prob
                values["pz_samples"] = None if log_prob is None else samples_to_extract(log_prob)
            elif name == "es":
                values[name] = extraction_strength(is_greedy)
            else:  # `ma`, and `em`, its other name
                values[name] = memorization_accuracy(is_greedy)
        return values

    def _count_generations(self, fact: dict[str, Any]) -> int:
        """Returns the number of distinct prompts that the model continued for a fact."""
        if self.spec.window == "character":
            return sum(reply is not None for reply in fact["replies"])
        beginnings = {
            beginning_of(sequence, branch["at"])
            for sequence, generated in zip(fact["forced"], fact["branches"], strict=True)
            for branch in generated
        }
        return len(beginnings)


_WORKING_COLUMNS = [
    *("prompts", "limits", "forced"),
    *("replies", "greedy", "log_probs", "branches", "bounds"),
]
"""The columns that `prepare` and `generate` add."""
_COLUMNS_TO_SCORE = ["question", "texts", *_WORKING_COLUMNS[2:]]


def _log_prob(result: TeacherForced, forced: Forced) -> float | None:
    """Returns the log-probability of an answer; None if its first token has no prediction."""
    log_probs = result.log_probs[forced["start"] :]
    if not log_probs or math.isnan(log_probs[0]):
        return None
    return min(sum(log_probs), 0.0)


def _passes_of_answers(
    fact: dict[str, Any],
) -> list[tuple[list[bool], float | None] | tuple[None, None]]:
    """Returns for each answer which of its tokens are greedy, and its log-probability.

    Both are None without a forced pass.
    """
    if not fact["greedy"]:
        return [(None, None)] * len(fact["texts"])
    return [
        (is_greedy[forced["start"] :], log_prob)
        for forced, is_greedy, log_prob in zip(
            fact["forced"], fact["greedy"], fact["log_probs"], strict=True
        )
    ]


def _decode(tokenizer: Any, sequences: Sequence[Sequence[int]]) -> list[str]:
    # an empty batch is an error in some tokenizers
    return tokenizer.batch_decode(sequences, skip_special_tokens=True) if sequences else []


def _questions_and_texts(batch: pa.Table) -> list[tuple[str, list[str]]]:
    return list(zip(batch["question"].to_pylist(), batch["texts"].to_pylist(), strict=True))


def _append_columns(batch: pa.Table, **columns: pa.Array) -> pa.Table:
    for name, values in columns.items():
        batch = batch.append_column(name, values)
    return batch
