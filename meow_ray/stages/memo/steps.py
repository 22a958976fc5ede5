"""The three steps that score a batch of facts with MEMO: `prepare`, `generate`, `finish`.

Only `generate` needs the engine. `prepare` cuts and tokenises, `finish` decodes and scores; both
run on CPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from meow_ray.config import Memo
from meow_ray.core.schema import SCHEMAS
from meow_ray.distributed.figures import Figure, Figures
from meow_ray.engines import Engine, Sampling, TeacherForced
from meow_ray.errors import MeowError
from meow_ray.models.prompts import Prompter
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
from meow_ray.stages.memo.score import (
    Score,
    Window,
    assemble,
    branches,
    extraction_likelihood,
    extraction_strength,
    memorization_accuracy,
    score_answer,
    windows,
)

SCORE_NAMES = tuple(name for name in SCHEMAS["memo"].names if name in Score.__dataclass_fields__)
"""The columns of `memo` that hold scores of an answer."""


@dataclass(frozen=True)
class Continuations:
    """The windows of one answer, each with its greedy continuation."""

    labels: list[str]
    label_tokens: list[list[int]]
    """The tokens of the labels; empty for character windows if no comparator reads them."""
    tokens: list[list[int]]
    """The tokens of the continuations."""


def score_type(spec: Memo) -> pa.DataType:
    """Returns the Arrow type of one answer's scores: columns of `memo`, then the comparators."""
    fields = [SCHEMAS["memo"].field(name) for name in SCORE_NAMES]
    return pa.struct([*fields, *(pa.field(name, pa.float64()) for name in spec.comparators)])


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

    @property
    def needs_forced_pass(self) -> bool:
        """Whether token windows or a comparator need a teacher-forced pass over the answers."""
        return self.spec.window == "token" or bool({"ma", "em", "es"} & set(self.spec.comparators))

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
                limit_of_prompt = self._distinct_prompts(prompter, question, texts)
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
            The batch with the columns `replies` (the continuation of each prompt), `greedy` (for
            each forced sequence, which tokens are greedy) and `branches` (of token windows: the
            continuation from each position where a forced sequence is not greedy; see `Branch`).

        Raises:
            MeowError: a prompt leaves no room in the model's context.
        """
        prompts = batch["prompts"].to_pylist()
        forced: list[list[Forced]] = batch["forced"].to_pylist()
        flat_prompts, flat_forced = _flatten(prompts), _flatten(forced)
        _check_lengths(engine, flat_prompts, flat_forced)

        passes = engine.teacher_force(
            [sequence["prompt"] for sequence in flat_forced],
            [sequence["sequence"] for sequence in flat_forced],
        )
        replies = _continue_greedily(engine, flat_prompts, _flatten(batch["limits"].to_pylist()))
        branches_of_facts: list[list[list[Branch]]] = [[] for _ in forced]
        if self.spec.window == "token":
            generated = self._generate_branches(engine, flat_forced, passes)
            branches_of_facts = _regroup(generated, forced)
        greedy = _regroup([result.is_greedy for result in passes], forced)
        return _append_columns(
            batch,
            replies=pa.array(_regroup(replies, prompts), pa.list_(TOKENS_TYPE)),
            greedy=pa.array(greedy, pa.list_(pa.list_(pa.bool_()))),
            branches=pa.array(branches_of_facts, pa.list_(pa.list_(BRANCH_TYPE))),
        )

    def finish(self, tokenizer: Any, batch: pa.Table) -> pa.Table:
        """Scores the continuations of a generated batch.

        Returns:
            The batch with the columns `scores` and `generations`, without the columns of tokens.
        """
        scores, generations = [], []
        for fact in batch.select(_COLUMNS_TO_SCORE).to_pylist():
            scores.append(self._score_fact(tokenizer, fact))
            generations.append(self._count_generations(fact))
        return _append_columns(
            batch.drop_columns(_TOKEN_COLUMNS),
            scores=pa.array(scores, pa.list_(score_type(self.spec))),
            generations=pa.array(generations, pa.int32()),
        )

    def figures(self, batch: pa.Table) -> Figures:
        """Returns the mean MEMO of the true answers of a finished batch."""
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

    # --- character windows

    def _character_windows(self, prompter: Prompter, question: str, text: str) -> list[Window]:
        rendered = prompter.prompt(question) if self.spec.template == "target" else None
        return windows(question, text, self.spec, rendered)

    def _distinct_prompts(
        self, prompter: Prompter, question: str, texts: Sequence[str]
    ) -> dict[str, int]:
        """Returns the distinct prompts of a fact's windows with the new tokens each needs at most.

        Several answers can share a prompt. It then needs as many tokens as the longest label.
        """
        limits: dict[str, int] = {}
        for text in texts:
            for window in self._character_windows(prompter, question, text):
                limit = self._limit(prompter, window.label)
                limits[window.prompt] = max(limit, limits.get(window.prompt, 0))
        return limits

    def _limit(self, prompter: Prompter, label: str) -> int:
        """Returns the largest number of new tokens of the window with this label."""
        if self.spec.max_new_tokens == "label":
            return max(1, len(prompter.encode_text(label)))
        return self.spec.max_new_tokens

    def _character_continuations(self, tokenizer: Any, fact: dict[str, Any]) -> list[Continuations]:
        prompter = self._prompter(tokenizer)
        question, texts = fact["question"], fact["texts"]
        prompts = self._distinct_prompts(prompter, question, texts)
        reply_to = dict(zip(prompts, fact["replies"], strict=True))
        answers = []
        for text in texts:
            cuts = self._character_windows(prompter, question, text)
            labels = [window.label for window in cuts]
            label_tokens = []
            if "el" in self.spec.comparators:
                label_tokens = [prompter.encode_text(label) for label in labels]
            # a shared reply can be longer than this answer's window allows
            tokens = [
                reply_to[window.prompt][: self._limit(prompter, window.label)] for window in cuts
            ]
            answers.append(Continuations(labels=labels, label_tokens=label_tokens, tokens=tokens))
        return answers

    # --- token windows

    def _generate_branches(
        self, engine: Engine, sequences: Sequence[Forced], passes: Sequence[TeacherForced]
    ) -> list[list[Branch]]:
        """Generates from the branches of each forced sequence, each distinct beginning once.

        A beginning is the tokens before a branch. Several answers, or facts, can share it;
        the longest of their windows then decides how many tokens are generated.
        """
        branches_of_sequences = []
        limits: dict[tuple[int, ...], int] = {}
        for sequence, result in zip(sequences, passes, strict=True):
            cuts, limits_of_cuts = cuts_and_limits(sequence, self.spec)
            needed = branches(result.is_greedy, result.ends, cuts, limits_of_cuts)
            branches_of_sequences.append([(at, beginning_of(sequence, at)) for at in needed])
            for at, limit in needed.items():
                beginning = beginning_of(sequence, at)
                limits[beginning] = max(limit, limits.get(beginning, 0))
        replies = _continue_greedily(engine, list(limits), list(limits.values()))
        reply_to = dict(zip(limits, replies, strict=True))
        return [
            [{"at": at, "tokens": reply_to[beginning]} for at, beginning in positions]
            for positions in branches_of_sequences
        ]

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
        greedy = _greedy_tokens_of_answers(fact)
        return [
            self._score_answer(tokenizer, answer, is_greedy)
            for answer, is_greedy in zip(answers, greedy, strict=True)
        ]

    def _score_answer(
        self, tokenizer: Any, answer: Continuations, is_greedy: Sequence[bool] | None
    ) -> dict[str, Any]:
        texts = _decode(tokenizer, answer.tokens)
        score = score_answer(answer.labels, texts, self.spec)
        values: dict[str, Any] = {name: getattr(score, name) for name in SCORE_NAMES}
        for name in self.spec.comparators:
            values[name] = self._comparator(name, answer, is_greedy)
        return values

    def _comparator(
        self, name: str, answer: Continuations, is_greedy: Sequence[bool] | None
    ) -> float | None:
        if name == "el":
            return extraction_likelihood(answer.label_tokens, answer.tokens, self.spec.el_n)
        assert is_greedy is not None, f"{name} needs a teacher-forced pass"
        if name == "es":
            return extraction_strength(is_greedy)
        return memorization_accuracy(is_greedy)  # `ma`, and `em`, its other name

    def _count_generations(self, fact: dict[str, Any]) -> int:
        """Returns the number of distinct prompts that the model continued for a fact."""
        if self.spec.window == "character":
            return len(fact["replies"])
        beginnings = {
            beginning_of(sequence, branch["at"])
            for sequence, generated in zip(fact["forced"], fact["branches"], strict=True)
            for branch in generated
        }
        return len(beginnings)


_TOKEN_COLUMNS = ["prompts", "limits", "forced", "replies", "greedy", "branches"]
_COLUMNS_TO_SCORE = ["question", "texts", "replies", "forced", "greedy", "branches"]


def _check_lengths(
    engine: Engine, prompts: Sequence[Sequence[int]], sequences: Sequence[Forced]
) -> None:
    """Checks that each prompt and forced sequence leaves room for one new token."""
    lengths = [len(prompt) for prompt in prompts]
    lengths += [len(forced["prompt"]) + len(forced["sequence"]) for forced in sequences]
    longest = max(lengths, default=0)
    if longest >= engine.max_model_len:
        raise MeowError(
            f"`memo`: a window of {longest} tokens leaves no room in the target's context "
            f"({engine.max_model_len} tokens). Remove long facts, or raise `target.max_model_len`."
        )


def _continue_greedily(
    engine: Engine, prompts: Sequence[Sequence[int]], limits: Sequence[int]
) -> list[list[int]]:
    """Continues prompts greedily; starts the longest first, so that none runs alone at the end."""
    order = sorted(range(len(prompts)), key=lambda i: -limits[i])
    replies = engine.generate([prompts[i] for i in order], [Sampling(limits[i]) for i in order])
    reply_to = dict(zip(order, replies, strict=True))
    return [list(reply_to[i][0].tokens) for i in range(len(prompts))]


def _greedy_tokens_of_answers(fact: dict[str, Any]) -> list[list[bool] | None]:
    """Returns for each answer which of its tokens are greedy; None without a forced pass."""
    if not fact["greedy"]:
        return [None] * len(fact["texts"])
    return [
        is_greedy[forced["start"] :]
        for forced, is_greedy in zip(fact["forced"], fact["greedy"], strict=True)
    ]


def _decode(tokenizer: Any, sequences: Sequence[Sequence[int]]) -> list[str]:
    # an empty batch is an error in some tokenizers
    return tokenizer.batch_decode(sequences, skip_special_tokens=True) if sequences else []


def _questions_and_texts(batch: pa.Table) -> list[tuple[str, list[str]]]:
    return list(zip(batch["question"].to_pylist(), batch["texts"].to_pylist(), strict=True))


def _flatten(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return [item for items in lists for item in items]


def _regroup(items: Sequence[Any], like: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Cuts a flat list into lists as long as those of `like`."""
    rest = iter(items)
    return [[next(rest) for _ in group] for group in like]


def _append_columns(batch: pa.Table, **columns: pa.Array) -> pa.Table:
    for name, values in columns.items():
        batch = batch.append_column(name, values)
    return batch
