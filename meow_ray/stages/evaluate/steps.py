"""What actors and CPU tasks of `evaluate` do with a batch of rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from meow_ray.config import Evaluate, Memo
from meow_ray.core.schema import EXAMPLES_SCHEMA
from meow_ray.engines import Engine, Sampling, TeacherForced
from meow_ray.errors import MeowError
from meow_ray.models.fact_tokens import novel_token_mask
from meow_ray.models.prompts import Prompter
from meow_ray.stages.evaluate import metrics, privacy, tofu
from meow_ray.stages.evaluate.definitions import DEFINITIONS, Definitions
from meow_ray.stages.evaluate.suites import ROWS_SCHEMA, TEXT
from meow_ray.stages.memo.score import memorization_accuracy
from meow_ray.stages.memo.steps import MemoSteps
from meow_ray.stages.never_seen import fact_log_prob, min_k_score

_FINISH_COLUMNS = ("rougeL_recall", "leak", "rep3", "bleu")
"""The columns of examples that `EvaluateSteps.finish` adds."""
_GENERATE_COLUMNS = tuple(
    name
    for name in EXAMPLES_SCHEMA.names
    if name not in (*ROWS_SCHEMA.names, *_FINISH_COLUMNS, "model", "states_inverted")
)
"""The columns of examples that `EvaluateSteps.generate` adds."""


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer whose probability is measured, with its tokens."""

    row: int
    """The number of its row in the batch."""
    column: str
    """`answer`, `paraphrased_answer` or `perturbed_answer`."""
    text: str
    tokens: list[int]
    has_end: bool
    """Whether the last token is the end of the answer."""
    is_fact_bearing: list[bool] | None = None
    """`[answer]`, whether a token of the true answer carries the fact; None for other texts."""


@dataclass(frozen=True)
class EvaluateSteps:
    """Asks a model the rows of a batch and scores its replies.

    A batch is a table of `ROWS_SCHEMA`. `generate` needs the engine; `finish` runs on CPU. One
    teacher-forced pass over the answers gives all figures that come from log-probabilities, except
    MEMO.
    """

    spec: Evaluate
    memo: Memo
    template: str
    """`target.template`, by which a question becomes a prompt."""
    system: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """`target.template_variables`."""

    @property
    def definitions(self) -> Definitions:
        """The definitions of the metrics."""
        return DEFINITIONS[self.spec.definitions]

    def generate(self, engine: Engine, batch: pa.Table) -> pa.Table:
        """Adds the greedy reply of each row that is asked, and the figures that need the model.

        Raises:
            MeowError: a prompt with its answer does not fit into the model's context.
        """
        rows = batch.to_pylist()
        prompter = Prompter(engine.tokenizer, self.template, self.system, self.variables)
        prompts = [_prompt(prompter, row) for row in rows]
        answers = list(_scored_answers(prompter, rows))
        _check_lengths(rows, prompts, answers, engine.max_model_len)

        values: list[dict[str, Any]] = [{} for _ in rows]
        self._add_replies(engine, rows, prompts, answers, values)
        self._add_probabilities(engine, rows, prompts, answers, values)
        self._add_memo(engine, rows, values)
        return _append_columns(batch, values, _GENERATE_COLUMNS)

    def finish(self, tokenizer: Any, batch: pa.Table) -> pa.Table:
        """Adds the figures that compare the replies with the true answers."""
        rows = batch.to_pylist()
        asked = _asked(rows)
        scores = metrics.score_replies(
            [rows[number] for number in asked], TEXT, self.definitions.rougeL_recall
        )
        values: list[Mapping[str, Any]] = [{} for _ in rows]
        for number, row_scores in zip(asked, scores, strict=True):
            values[number] = row_scores
        return _append_columns(batch, values, _FINISH_COLUMNS)

    def _add_replies(
        self,
        engine: Engine,
        rows: Sequence[Mapping[str, Any]],
        prompts: Sequence[list[int]],
        answers: Sequence[ScoredAnswer],
        values: Sequence[dict[str, Any]],
    ) -> None:
        """Adds the greedy reply to the `values` of rows that are asked."""
        asked = _asked(rows)
        samplings = self._samplings(rows, answers)
        replies = engine.generate(
            [prompts[number] for number in asked], [samplings[number] for number in asked]
        )
        for number, reply in zip(asked, replies, strict=True):
            values[number]["generated"] = reply[0].text

    def _samplings(
        self, rows: Sequence[Mapping[str, Any]], answers: Sequence[ScoredAnswer]
    ) -> list[Sampling]:
        """Returns how each reply is generated: greedily; of a passage, as long as its rest."""
        limits = [self.spec.max_new_tokens] * len(rows)
        for answer in answers:
            if rows[answer.row]["suite"] == TEXT:
                limits[answer.row] = len(answer.tokens)
        return [Sampling(limit) for limit in limits]

    def _add_probabilities(
        self,
        engine: Engine,
        rows: Sequence[Mapping[str, Any]],
        prompts: Sequence[list[int]],
        answers: Sequence[ScoredAnswer],
        values: Sequence[dict[str, Any]],
    ) -> None:
        """Adds the figures of one teacher-forced pass over all answers to the rows' `values`."""
        passes = self.definitions.teacher_force(
            engine,
            [prompts[answer.row] for answer in answers],
            [answer.tokens for answer in answers],
            moments="min_k_pp" in self.spec.membership,
        )
        for answer, forced in zip(answers, passes, strict=True):
            row_values = values[answer.row]
            if answer.column == "answer":
                row_values |= self._true_answer_scores(forced, answer)
            elif answer.column == "paraphrased_answer":
                row_values["paraphrased_loss"] = metrics.loss(forced.log_probs)
            else:
                losses = row_values.setdefault("perturbed_losses", [])
                losses.append(metrics.loss(forced.log_probs))
        for row, row_values in zip(rows, values, strict=True):
            if "perturbed_losses" in row_values:
                row_values |= self._scores_against_wrong_answers(row["suite"], row_values)

    def _true_answer_scores(self, forced: TeacherForced, answer: ScoredAnswer) -> dict[str, Any]:
        """Returns all figures of one pass over the true answer."""
        share = self.spec.min_k_share
        compared = self.definitions.compared_tokens(forced) if answer.has_end else forced
        attacks = {
            "zlib": privacy.zlib_score(forced.log_probs, answer.text),
            "min_k": min_k_score(compared.log_probs, share),
        }
        if compared.means is not None and compared.deviations is not None:
            attacks["min_k_pp"] = privacy.min_k_pp_score(
                compared.log_probs, compared.means, compared.deviations, share
            )
        sign = self.definitions.attack_sign
        mask = answer.is_fact_bearing
        return {
            "loss": metrics.loss(forced.log_probs),
            "num_tokens": len(forced.log_probs),
            "probability": metrics.probability(forced.log_probs),
            "exact_memorization": memorization_accuracy(compared.is_greedy),
            "extraction_strength": self.definitions.extraction_strength(compared.is_greedy),
            "fact_log_prob": None if mask is None else fact_log_prob(forced.log_probs, mask),
            **{name: sign * score for name, score in attacks.items()},
        }

    def _scores_against_wrong_answers(
        self, suite: str, values: Mapping[str, Any]
    ) -> dict[str, float]:
        """Returns TOFU's figures of a row that has wrong answers, from its losses."""
        epsilon = self.definitions.epsilon
        loss = np.array([values["loss"]])
        wrong = [values["perturbed_losses"]]
        right = np.array([values["paraphrased_loss"]]) if "paraphrased_loss" in values else loss
        ratio = tofu.truth_ratio(right, wrong, epsilon)
        scores = {"truth_ratio": float(tofu.truth_scores(suite, ratio)[0])}
        if suite in tofu.OPTIONS:
            probability = tofu.normalized_probability(loss, wrong, epsilon)
            scores["probability"] = float(probability[0])
        return scores

    def _add_memo(
        self, engine: Engine, rows: Sequence[Mapping[str, Any]], values: Sequence[dict[str, Any]]
    ) -> None:
        """Adds MEMO of the true answer to the `values` of rows that ask for it."""
        numbers = [number for number, row in enumerate(rows) if row["with_memo"]]
        pairs = [(rows[number]["question"], rows[number]["answer"]) for number in numbers]
        steps = MemoSteps(self.memo, self.template, self.system, self.variables)
        for number, score in zip(numbers, steps.score(engine, pairs), strict=True):
            values[number]["memo"] = score["memo"]
            values[number]["extraction_likelihood"] = score.get("el")


def _prompt(prompter: Prompter, row: Mapping[str, Any]) -> list[int]:
    """Returns the tokens of a question in the template; a passage is asked without one."""
    if row["suite"] == TEXT:
        return replace(prompter, template="").encode_prompt(row["question"])
    return prompter.encode_prompt(prompter.prompt(row["question"]) + row["start"])


def _scored_answers(
    prompter: Prompter, rows: Sequence[Mapping[str, Any]]
) -> Iterator[ScoredAnswer]:
    """Yields the answers of each scored row: the true, the paraphrased, and the wrong ones."""
    for number, row in enumerate(rows):
        if not row["scored"]:
            continue
        texts = [("answer", row["answer"])]
        if row["paraphrased_answer"] is not None:
            texts.append(("paraphrased_answer", row["paraphrased_answer"]))
        texts += [("perturbed_answer", text) for text in row["perturbed_answer"] or ()]
        for column, text in texts:
            tokens = prompter.encode_answer(text)
            has_end = row["suite"] != TEXT
            if not has_end:
                tokens = tokens[:-1]  # the text goes on after a passage: no end of the sequence
            mask = None
            if column == "answer" and has_end:
                mask = novel_token_mask(prompter, row["question"], text)
            yield ScoredAnswer(number, column, text, tokens, has_end, mask)


def _check_lengths(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[list[int]],
    answers: Sequence[ScoredAnswer],
    max_model_len: int,
) -> None:
    lengths = [len(prompt) for prompt in prompts]
    for answer in answers:
        length = len(prompts[answer.row]) + len(answer.tokens)
        lengths[answer.row] = max(lengths[answer.row], length)
    for row, length in zip(rows, lengths, strict=True):
        if length >= max_model_len:
            raise MeowError(
                f"evaluate: {row['fact_id']} of {row['suite']} is too long with its answer "
                f"({length} tokens; the model reads {max_model_len - 1}). Shorten it, or raise "
                "`target.max_model_len`."
            )


def _asked(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns the numbers of the rows that get a reply."""
    return [number for number, row in enumerate(rows) if row["asked"]]


def _append_columns(
    batch: pa.Table, values: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> pa.Table:
    """Appends columns of `EXAMPLES_SCHEMA` to a batch; null where a row has no value."""
    for name in names:
        column = pa.array([row.get(name) for row in values], EXAMPLES_SCHEMA.field(name).type)
        batch = batch.append_column(name, column)
    return batch
