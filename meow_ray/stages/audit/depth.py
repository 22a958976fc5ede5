"""The attack `depth`: what the layers of a model still have of a fact.

It reads weights and trains nothing. Two variants look at the fact-bearing tokens of the true answer
in teacher-forced passes:

* `logit lens`: the states after each block are read by the model's own final norm and head. The
  score is the largest mean log-probability over the blocks. A model that suppresses a fact in its
  last blocks only still has it before them.
* `patching`: the original model gets the states of another model, one layer at a time, and the
  score is 1 less the Unlearning Depth Score; see `depth_score` and `layers.drops`. 1 says that the
  layers of the other model carry the fact as well as those of the original one, 0 that they carry
  no more than those of the retain model.

Controls: the lens is compared with the retain model, or with twins in the original model. Patching
needs the retain model, which says in which layers the fact is. Without one there is no honest
substitute: nobody can tell which part of a drop is the lost fact, and a model damaged by training
would pass for one that has forgotten. All scores of the variant are then missing, so it is
inconclusive.

The depth score of the retain model itself is 1 by definition, which is no control: each model that
differs from it by chance would look as if it remembered. So the prompt is split here, which the
paper does not do. The retain model's drops are measured at the question, the drops of the model
under test at a rewording of it. For the retain model that makes a score with the noise of a
measurement, and a model that behaves like the retain model gets the same scores.

Budget: one forward pass per fact and model for the lens. For patching, one pass per layer, which
runs the layers after it, per fact and model; two times that for the retain model.

Sources: logit lens, nostalgebraist (2020); Unlearning Depth Score, arXiv 2605.24614.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pyarrow as pa

from meow_ray.core import storage
from meow_ray.core.schema import ROW
from meow_ray.engines import EngineSpec
from meow_ray.models.fact_tokens import novel_token_mask
from meow_ray.models.prompts import Prompter
from meow_ray.stages.audit.attack import Outcome, Subject
from meow_ray.stages.audit.depth_score import depth_score
from meow_ray.stages.audit.layers import LayeredModel, Places, drops, lens
from meow_ray.stages.audit.scoring import AuditContext, ScoredRow
from meow_ray.stages.inputs import target_prompt
from meow_ray.stages.paraphrases.frames import framed

NAME = "depth"
LENS, PATCHING = "logit lens", "patching"
"""The variants."""
BATCH = 8
"""Rows in one forward pass. The states of all layers are in memory at once."""
VERSION = 1
"""Raised whenever the same models and facts get other figures."""

_ROWS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in (ROW, "group", "fact_id", "question", "rewording", "answer")]
)
FIGURES = ("lens", "question", "rewording")
"""The figures of a row: the lens, and the drops of patching at the question and its rewording."""
_COLUMN = "{}_by_layer"


# --- what an actor does ---------------------------------------------------------------------------


@dataclass(frozen=True)
class PairSpec:
    """The original model and the model whose layers are examined, as an actor loads them."""

    needs_gpu: ClassVar[bool] = True
    source: EngineSpec
    """The model whose layers are examined."""
    full: EngineSpec | None = None
    """The original model that is patched; None if the lens alone is wanted."""

    def load(self) -> "LoadedPair":
        """Loads the models in this process."""
        return LoadedPair(self)


class LoadedPair:
    """The loaded models; one whose layers cannot be read or do not match is None."""

    def __init__(self, spec: PairSpec) -> None:
        engine = spec.source.load()
        self.tokenizer = engine.tokenizer
        self.max_model_len = engine.max_model_len
        self.source = self._layered(engine)
        self.full: LayeredModel | None = None
        if spec.full is not None and self.source is not None:
            full_engine = spec.full.load()
            self.max_model_len = min(self.max_model_len, full_engine.max_model_len)
            full = self._layered(full_engine)
            self.full = full if full and _shape(full) == _shape(self.source) else None

    def _layered(self, engine: Any) -> LayeredModel | None:
        try:
            model = LayeredModel(engine.model)
        except ValueError:
            return None
        # any text shows whether the lens on the last block agrees with the model
        tokens = self.tokenizer("Who was born where, and when?")["input_ids"]
        return model if model.is_readable(tokens) else None


def _shape(model: LayeredModel) -> tuple[int, int, int]:
    config = model.model.config.get_text_config()
    return model.num_layers, config.hidden_size, config.vocab_size


@dataclass(frozen=True)
class DepthSteps:
    """Examines the layers of a model for the facts of a batch."""

    wanted: tuple[str, ...]
    """Some of `FIGURES`."""
    template: str
    """`target.template`, by which a question becomes a prompt."""
    system: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """`target.template_variables`."""

    def generate(self, pair: LoadedPair, batch: pa.Table) -> pa.Table:
        """Adds a column `NAME_by_layer` for each of `FIGURES`, with one value per layer.

        It is null if the figure is not wanted, if a model's layers cannot be read or do not match
        those of the other model, or if the row does not fit into the context.
        """
        rows = batch.to_pylist()
        values: list[dict[str, list[float]]] = [{} for _ in rows]
        prompter = Prompter(pair.tokenizer, self.template, self.system, self.variables)
        for place in ("question", "rewording"):
            wants_lens = place == "question" and "lens" in self.wanted
            wants_drops = place in self.wanted and pair.full is not None
            if pair.source is None or not (wants_lens or wants_drops):
                continue
            sequences = _sequences(prompter, rows, place, pair.max_model_len)
            for start in range(0, len(sequences), BATCH):
                part = sequences[start : start + BATCH]
                figures = _examine(pair, part, place, wants_lens, wants_drops)
                for name, by_layer in figures.items():
                    for sequence, column in zip(part, by_layer.T.tolist(), strict=True):
                        values[sequence.row][name] = column
        for name in FIGURES:
            column = pa.array([row.get(name) for row in values], pa.list_(pa.float64()))
            batch = batch.append_column(_COLUMN.format(name), column)
        return batch


@dataclass(frozen=True)
class _Sequence:
    """A prompt with its answer, and the positions in it that predict the fact-bearing tokens."""

    row: int
    tokens: list[int]
    positions: list[int]


def _sequences(
    prompter: Prompter, rows: Sequence[Mapping[str, Any]], place: str, max_model_len: int
) -> list[_Sequence]:
    """Returns the rows that fit into the context, shorter ones first."""
    sequences = []
    for number, row in enumerate(rows):
        prompt = prompter.encode_prompt(prompter.prompt(row[place]))
        answer = prompter.encode_answer(row["answer"])
        mask = novel_token_mask(prompter, row["question"], row["answer"])
        predicting = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        positions = [
            position
            for position, bears_fact in zip(predicting, mask, strict=True)
            if bears_fact and position >= 0
        ]
        if positions and len(prompt) + len(answer) <= max_model_len:
            sequences.append(_Sequence(number, [*prompt, *answer], positions))
    return sorted(sequences, key=lambda sequence: len(sequence.tokens))


def _examine(
    pair: LoadedPair, batch: Sequence[_Sequence], place: str, wants_lens: bool, wants_drops: bool
) -> dict[str, Any]:
    """Returns the wanted figures of a batch by name, each `[layer, row]`."""
    import torch

    assert pair.source is not None
    device = pair.source.device
    width = max(len(sequence.tokens) for sequence in batch)
    padding = [width - len(sequence.tokens) for sequence in batch]
    pad = pair.tokenizer.pad_token_id
    rows = zip(batch, padding, strict=True)
    ids = torch.tensor([[*row.tokens, *[pad] * n] for row, n in rows], device=device)
    mask = torch.tensor([[1] * (width - n) + [0] * n for n in padding], device=device)
    places = Places(
        *(
            torch.tensor(values, device=device)
            for values in zip(
                *(
                    (number, position, row.tokens[position + 1])
                    for number, row in enumerate(batch)
                    for position in row.positions
                ),
                strict=True,
            )
        )
    )
    states = pair.source.states(ids, mask)
    figures = {}
    if wants_lens:
        figures["lens"] = lens(pair.source, states, places, len(batch))
    if wants_drops:
        assert pair.full is not None
        figures[place] = drops(pair.full, states, ids, mask, places)
    return figures


# --- the rows of the audit ------------------------------------------------------------------------

_Key = tuple[str, str]
"""Group and fact id."""
_Figures = dict[_Key, dict[str, list[float] | None]]


def depth_rows(audit: AuditContext) -> Iterator[ScoredRow]:
    """Yields the scores of the lens for all models, then those of patching."""
    has_retain_model = "retain_model" in audit.models
    figures: dict[str, _Figures] = {}
    for model in audit.models:
        wanted = ["lens"]
        if has_retain_model and model != "before":
            wanted.append("rewording")
        if model == "retain_model":
            wanted.append("question")
        figures[model] = _figures(audit, model, tuple(wanted))
    for model, by_subject in figures.items():
        for subject in audit.asked_of(model):
            by_layer = by_subject[subject.group, subject.fact_id]["lens"]
            outcome = Outcome(max(by_layer) if by_layer else None, 1)
            yield _row(LENS, model, subject, outcome)
    for model in audit.models:
        for subject in audit.asked_of(model):
            if subject.group == "facts":
                yield _row(PATCHING, model, subject, _patched(subject, model, figures))


def _patched(subject: Subject, model: str, figures: Mapping[str, _Figures]) -> Outcome:
    """Returns the outcome of patching one fact; without a retain model it has no score."""
    key = (subject.group, subject.fact_id)
    never_taught = figures.get("retain_model", {}).get(key, {}).get("question")
    if never_taught is None:
        return Outcome(None, 0)
    if model == "before":  # its own states change nothing
        own: list[float] | None = [0.0] * len(never_taught)
    else:
        own = figures[model][key]["rewording"]
    erased = None if own is None else depth_score(never_taught, own)
    return Outcome(None if erased is None else 1 - erased, len(never_taught))


def _row(variant: str, model: str, subject: Subject, outcome: Outcome) -> ScoredRow:
    return ScoredRow(
        attack=NAME,
        variant=variant,
        tier="static weights",
        model=model,
        group=subject.group,
        fact_id=subject.fact_id,
        outcome=outcome,
    )


def _figures(audit: AuditContext, model: str, wanted: tuple[str, ...]) -> _Figures:
    """Examines a model on the cluster; returns the figures by group and fact."""
    from meow_ray.distributed import map_rows

    context, target = audit.context, audit.context.config.target
    rows = _table(audit.asked_of(model))
    resources = context.config.resources
    source, full = (
        replace(
            context.engine_spec(audit.models[name], target, resources.audit), engine="transformers"
        )
        for name in (model, "before")
    )
    spec = PairSpec(source, full if len(wanted) > 1 else None)
    steps = DepthSteps(wanted, target.template, target.system, target.template_variables)
    key = {
        "version": VERSION,
        "models": [
            [engine.model.digest, engine.dtype, engine.max_model_len]
            for engine in (spec.source, spec.full)
            if engine
        ],
        "wanted": wanted,
        "rows": storage.json_digest(rows.to_pydict()),
        "target": target.spec(),
        "prompt": target_prompt(context.config, context.inputs),
    }
    work = map_rows.BatchWork(steps.generate)
    with context.shared_work(f"audit-depth-{storage.json_digest(key)[:32]}") as folder:
        found = map_rows.map_rows(rows, ROW, spec, work, folder, "audit", resources)
    with found.batches() as reader:
        return {
            (row["group"], row["fact_id"]): {name: row[_COLUMN.format(name)] for name in FIGURES}
            for batch in reader
            for row in batch.to_pylist()
        }


def _table(subjects: Sequence[Subject]) -> pa.Table:
    """Returns the rows to examine, longest first; each has a rewording of its question."""
    rows = [
        {
            ROW: hashlib.sha256(f"{subject.group}/{subject.fact_id}".encode()).hexdigest()[:32],
            "group": subject.group,
            "fact_id": subject.fact_id,
            "question": subject.question,
            "rewording": _rewording(subject),
            "answer": subject.answer,
        }
        for subject in subjects
    ]
    rows.sort(key=lambda row: (-len(row["question"]) - len(row["answer"]), row[ROW]))
    return pa.Table.from_pylist(rows, schema=_ROWS_SCHEMA)


def _rewording(subject: Subject) -> str:
    """Returns the first rewording that the subject has, or its question in a fixed frame."""
    return next(iter(subject.paraphrases), None) or next(framed(subject.question))
