"""MEMO for a batch of facts, in three steps: prepare and finish run on CPU, only `generate` needs the engine."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from meow_ray.config import Memo
from meow_ray.core.schema import SCHEMAS
from meow_ray.distributed.figures import Figure, Figures
from meow_ray.engines import Engine, Sampling
from meow_ray.errors import MeowError
from meow_ray.models.prompts import Prompter
from meow_ray.stages.memo.score import (
    Score,
    Window,
    assemble,
    branches,
    extraction_likelihood,
    extraction_strength,
    memorization_accuracy,
    score_answer,
    token_cuts,
    windows,
)

_TOKENS = pa.list_(pa.int32())
_SEQUENCE = pa.struct([("prompt", _TOKENS), ("sequence", _TOKENS), ("start", pa.int32())])
"""What is teacher-forced: `sequence` behind `prompt`; from `start` on it is the answer."""
_BRANCH = pa.struct([("at", pa.int32()), ("tokens", _TOKENS)])
SCORE_NAMES = tuple(name for name in SCHEMAS["memo"].names if name in Score.__dataclass_fields__)


def score_type(spec: Memo) -> pa.DataType:
    """Returns the type of one answer's scores: the columns of `memo` and the configured comparators."""
    fields = [SCHEMAS["memo"].field(name) for name in SCORE_NAMES]
    return pa.struct([*fields, *(pa.field(name, pa.float64()) for name in spec.comparators)])


@dataclass(frozen=True)
class MemoSteps:
    """Scores facts, each with all its answers, so that every distinct prompt of a fact is generated once.

    A batch has the columns `question` and `texts` (the answers to score); `finish` adds `scores`, one struct an
    answer, and `generations`, how many prompts were continued.
    """

    spec: Memo
    template: str
    """`target.template`, used where `memo.template` says so."""
    system: str | None = None

    @property
    def forces(self) -> bool:
        """Whether a teacher-forced pass is needed."""
        return self.spec.window == "token" or bool({"ma", "em", "es"} & set(self.spec.comparators))

    def prepare(self, tokenizer: Any, batch: pa.Table) -> pa.Table:
        """Cuts and tokenises: adds `prompts` with their `limits`, and the `forced` sequences."""
        prompter, prompts, limits, forced = self._prompter(tokenizer), [], [], []
        for question, texts in _rows(batch, "question", "texts"):
            found = (
                self._distinct(prompter, question, texts) if self.spec.window == "character" else {}
            )
            prompts.append([prompter.encode_prompt(prompt) for prompt in found])
            limits.append(list(found.values()))
            forced.append(
                [self._sequence(prompter, question, text) for text in texts] if self.forces else []
            )
        return _with(
            batch,
            prompts=pa.array(prompts, pa.list_(_TOKENS)),
            limits=pa.array(limits, _TOKENS),
            forced=pa.array(forced, pa.list_(_SEQUENCE)),
        )

    def generate(self, engine: Engine, batch: pa.Table) -> pa.Table:
        """Lets the model speak: adds `replies` to the prompts, and `greedy`, `branches` of the forced sequences.

        Raises:
            MeowError: a prompt leaves no room in the model's context.
        """
        prompts, forced = batch["prompts"].to_pylist(), batch["forced"].to_pylist()
        flat = _flat(forced)
        lengths = [len(tokens) for tokens in _flat(prompts)]
        longest = max(
            [*lengths, *(len(one["prompt"]) + len(one["sequence"]) for one in flat)], default=0
        )
        if longest >= engine.max_model_len:
            raise MeowError(
                f"A window of MEMO has {longest} tokens, the target reads {engine.max_model_len}; skip long facts."
            )
        passes = engine.teacher_force(
            [one["prompt"] for one in flat], [one["sequence"] for one in flat]
        )
        greedy = _nest([one.is_greedy for one in passes], forced)
        replies = _continue(engine, _flat(prompts), _flat(batch["limits"].to_pylist()))
        needs = []
        if self.spec.window == "token":
            for one, found in zip(flat, passes, strict=True):
                cuts, limits = self._cuts(one)
                needs.append(branches(found.is_greedy, found.ends, cuts, limits))
        said = self._branches(engine, flat, needs)
        return _with(
            batch,
            replies=pa.array(_nest(replies, prompts), pa.list_(_TOKENS)),
            greedy=pa.array(greedy, pa.list_(pa.list_(pa.bool_()))),
            branches=pa.array(
                _nest(said, forced) if needs else [[] for _ in forced], pa.list_(pa.list_(_BRANCH))
            ),
        )

    def finish(self, tokenizer: Any, batch: pa.Table) -> pa.Table:
        """Compares what was said with what was cut off: adds `scores` and `generations`, drops the tokens."""
        scores, generations = [], []
        for row in batch.select(
            ["question", "texts", "replies", "forced", "greedy", "branches"]
        ).to_pylist():
            if self.spec.window == "character":
                found = list(self._character_scores(tokenizer, row))
                generations.append(len(row["replies"]))
            else:
                found = list(self._token_scores(tokenizer, row))
                distinct = {
                    (*one["prompt"], *one["sequence"][: branch["at"]])
                    for one, said in zip(row["forced"], row["branches"], strict=True)
                    for branch in said
                }
                generations.append(len(distinct))
            scores.append(found)
        kept = batch.drop_columns(["prompts", "limits", "forced", "replies", "greedy", "branches"])
        return _with(
            kept,
            scores=pa.array(scores, pa.list_(score_type(self.spec))),
            generations=pa.array(generations, pa.int32()),
        )

    def figures(self, batch: pa.Table) -> Figures:
        """Returns the mean MEMO of the true answers of a finished batch."""
        found = [
            row[0]["memo"] for row in batch["scores"].to_pylist() if row[0]["memo"] is not None
        ]
        return {"memo": Figure.mean(sum(found), len(found))}

    def score(self, engine: Engine, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Takes question–answer pairs through the three steps in this process."""
        batch = pa.table(
            {
                "question": pa.array([question for question, _ in pairs], pa.string()),
                "texts": pa.array([[answer] for _, answer in pairs], pa.list_(pa.string())),
            }
        )
        prepared = self.prepare(engine.tokenizer, batch)
        done = self.finish(engine.tokenizer, self.generate(engine, prepared))
        return [row[0] for row in done["scores"].to_pylist()]

    def _prompter(self, tokenizer: Any) -> Prompter:
        return Prompter(
            tokenizer, self.template if self.spec.template == "target" else "raw", self.system
        )

    # --- character windows

    def _windows(self, prompter: Prompter, question: str, text: str) -> list[Window]:
        rendered = prompter.prompt(question) if self.spec.template == "target" else None
        return windows(question, text, self.spec, rendered)

    def _distinct(self, prompter: Prompter, question: str, texts: Sequence[str]) -> dict[str, int]:
        """Returns the distinct prompts of a fact's windows, each with the tokens that its longest label needs."""
        out: dict[str, int] = {}
        for text in texts:
            for window in self._windows(prompter, question, text):
                out[window.prompt] = max(
                    out.get(window.prompt, 0), self._limit(prompter.tokenizer, window.label)
                )
        return out

    def _limit(self, tokenizer: Any, label: str) -> int:
        if self.spec.max_new_tokens == "label":
            return max(1, len(_tokens(tokenizer, label)))
        return self.spec.max_new_tokens

    def _character_scores(self, tokenizer: Any, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        prompter = self._prompter(tokenizer)
        said = dict(
            zip(
                self._distinct(prompter, row["question"], row["texts"]), row["replies"], strict=True
            )
        )
        for i, text in enumerate(row["texts"]):
            cuts = self._windows(prompter, row["question"], text)
            labels = [window.label for window in cuts]
            tokens = [said[w.prompt][: self._limit(tokenizer, w.label)] for w in cuts]
            label_tokens = (
                [_tokens(tokenizer, label) for label in labels]
                if "el" in self.spec.comparators
                else []
            )
            yield self._scores(tokenizer, labels, tokens, label_tokens, _answer(row, i))

    # --- token windows

    def _sequence(self, prompter: Prompter, question: str, text: str) -> dict[str, Any]:
        """Returns what is teacher-forced for an answer; see `_SEQUENCE`.

        Through `target.template`, prompt and answer have the tokens of training; as bare text, those of the whole.
        """
        if self.spec.template == "target":
            prompt = prompter.encode_prompt(prompter.prompt(question))
            return {"prompt": prompt, "sequence": prompter.encode_answer(text)[:-1], "start": 0}
        whole, head = prompter.encode_prompt(f"{question} {text}"), prompter.encode_prompt(question)
        start = next(
            (i for i, (a, b) in enumerate(zip(whole, head, strict=False)) if a != b), len(head)
        )
        if self.spec.mode == "suffix":
            return {"prompt": whole[:start], "sequence": whole[start:], "start": 0}
        special = len(prompter.encode_prompt(""))
        return {"prompt": whole[:special], "sequence": whole[special:], "start": start - special}

    def _cuts(self, forced: dict[str, Any]) -> tuple[range, list[int]]:
        """Returns the cuts of a forced sequence and the most new tokens of each."""
        length = len(forced["sequence"])
        cuts = token_cuts(length if self.spec.mode == "suffix" else forced["start"], self.spec)
        most = self.spec.max_new_tokens
        return cuts, [length - cut if most == "label" else most for cut in cuts]

    def _branches(
        self, engine: Engine, forced: Sequence[dict[str, Any]], needs: Sequence[dict[int, int]]
    ) -> list[list[dict[str, Any]]]:
        """Generates from every branch, each distinct beginning once."""
        beginnings = [
            [(*one["prompt"], *one["sequence"][:at]) for at in need]
            for one, need in zip(forced, needs, strict=False)
        ]
        limits: dict[tuple[int, ...], int] = {}
        for row, need in zip(beginnings, needs, strict=True):
            for beginning, limit in zip(row, need.values(), strict=True):
                limits[beginning] = max(limit, limits.get(beginning, 0))
        said = dict(
            zip(limits, _continue(engine, list(limits), list(limits.values())), strict=True)
        )
        return [
            [{"at": at, "tokens": said[beginning]} for at, beginning in zip(need, row, strict=True)]
            for row, need in zip(beginnings, needs, strict=True)
        ]

    def _token_scores(self, tokenizer: Any, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for i, (one, greedy, said) in enumerate(
            zip(row["forced"], row["greedy"], row["branches"], strict=True)
        ):
            cuts, limits = self._cuts(one)
            branches = {branch["at"]: branch["tokens"] for branch in said}
            tokens = assemble(one["sequence"], greedy, cuts, limits, branches)
            label_tokens = [one["sequence"][cut:] for cut in cuts]
            labels = (
                tokenizer.batch_decode(label_tokens, skip_special_tokens=True)
                if label_tokens
                else []
            )
            yield self._scores(tokenizer, labels, tokens, label_tokens, _answer(row, i))

    def _scores(
        self,
        tokenizer: Any,
        labels: Sequence[str],
        tokens: Sequence[Sequence[int]],
        label_tokens: Sequence[Sequence[int]],
        is_greedy: Sequence[bool] | None,
    ) -> dict[str, Any]:
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True) if tokens else []
        found = score_answer(labels, texts, self.spec)
        out: dict[str, Any] = {name: getattr(found, name) for name in SCORE_NAMES}
        for name in self.spec.comparators:
            if name == "el":
                out[name] = extraction_likelihood(label_tokens, tokens, self.spec.el_n)
            else:
                assert is_greedy is not None
                out[name] = (extraction_strength if name == "es" else memorization_accuracy)(
                    is_greedy
                )
        return out


def _answer(row: dict[str, Any], i: int) -> list[bool] | None:
    """Returns which of the answer's own tokens are greedy; None if no pass was made."""
    return row["greedy"][i][row["forced"][i]["start"] :] if row["greedy"] else None


def _continue(
    engine: Engine, prompts: Sequence[Sequence[int]], limits: Sequence[int]
) -> list[list[int]]:
    """Continues prompts greedily, the longest work first, so that none is left alone at the end."""
    order = sorted(range(len(prompts)), key=lambda i: -limits[i])
    replies = engine.generate([prompts[i] for i in order], [Sampling(limits[i]) for i in order])
    found = dict(zip(order, replies, strict=True))
    return [list(found[i][0].tokens) for i in range(len(prompts))]


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _rows(batch: pa.Table, *names: str) -> Iterable[tuple[Any, ...]]:
    return zip(*(batch[name].to_pylist() for name in names), strict=True)


def _flat(rows: Sequence[Sequence[Any]]) -> list[Any]:
    return [item for row in rows for item in row]


def _nest(items: Sequence[Any], like: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Cuts a flat list into rows as long as those of `like`."""
    left = iter(items)
    return [[next(left) for _ in row] for row in like]


def _with(batch: pa.Table, **columns: pa.Array) -> pa.Table:
    for name, values in columns.items():
        batch = batch.append_column(name, values)
    return batch
