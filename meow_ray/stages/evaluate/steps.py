"""What is evaluated, and what actors and CPU tasks do with a batch of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from meow_ray.config import Evaluate, Memo
from meow_ray.core.schema import EXAMPLES_SCHEMA
from meow_ray.engines import Engine, Sampling, TeacherForced
from meow_ray.errors import MeowError
from meow_ray.models.prompts import Prompter
from meow_ray.stages.evaluate import metrics, privacy, tofu
from meow_ray.stages.evaluate.suites import ROWS_SCHEMA, TEXT
from meow_ray.stages.memo.score import extraction_strength, memorization_accuracy
from meow_ray.stages.memo.steps import MemoSteps

# --- rows ----------------------------------------------------------------------------------------


# --- examples -----------------------------------------------------------------------------------


# --- a batch ------------------------------------------------------------------------------------


_FROM_TEXT = ("rougeL_recall", "leak", "rep3", "bleu")
_FROM_MODEL = tuple(
    name
    for name in EXAMPLES_SCHEMA.names
    if name not in (*ROWS_SCHEMA.names, *_FROM_TEXT, "model", "states_inverted")
)


@dataclass(frozen=True)
class EvaluateSteps:
    """Answers and scores a batch of `ROWS_SCHEMA`: `generate` needs the engine, `finish` runs on CPU.

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
        prompters = {
            name: Prompter(engine.tokenizer, name, self.system) for name in (self.template, "")
        }
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
        for i, score in zip(
            scored,
            MemoSteps(self.memo, self.template, self.system).score(engine, pairs),
            strict=True,
        ):
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

    def _answer(
        self, prompters: Mapping[str, Prompter], row: Mapping[str, Any], text: str
    ) -> list[int]:
        tokens = prompters[""].encode_answer(text)
        return (
            tokens[:-1] if row["suite"] == TEXT else tokens
        )  # a passage is a part of a text: it does not end there

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
            scores["min_k_pp"] = privacy.min_k_pp_score(
                one.log_probs, one.means, one.deviations, self.spec.min_k_share
            )
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
    """Adds columns of `EXAMPLES_SCHEMA` to a batch; null where a row has no value."""
    for name in names:
        values = pa.array([row.get(name) for row in found], EXAMPLES_SCHEMA.field(name).type)
        batch = batch.append_column(name, values)
    return batch
