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
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from meow_ray.core import storage
from meow_ray.core.schema import ROW
from meow_ray.engines import EngineSpec
from meow_ray.models import refs
from meow_ray.models.fact_tokens import novel_token_mask
from meow_ray.models.prompts import Prompter
from meow_ray.stages.audit import loading
from meow_ray.stages.audit.attack import Outcome, Subject, Tier
from meow_ray.stages.audit.depth_score import depth_score
from meow_ray.stages.audit.layers import LayeredModel, Places, drops, lens
from meow_ray.stages.audit.reasons import MissingError, Reason
from meow_ray.stages.audit.scoring import AuditContext, ScoredRow, scored_row
from meow_ray.stages.inputs import target_prompt
from meow_ray.stages.paraphrases.frames import framed

NAME = "depth"
TIER: Tier = "static weights"
LENS, PATCHING = "logit lens", "patching"
"""The variants."""
BATCH = 8
"""Rows in one forward pass. The states of all layers are in memory at once."""
VERSION = 2
"""Raised whenever the same models and facts get other figures."""

_ROWS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in (ROW, "group", "fact_id", "question", "rewording", "answer")]
)
FIGURES = ("lens", "question", "rewording")
"""The figures of a row: the lens, and the drops of patching at the question and its rewording."""
_COLUMN, _REASON = "{}_by_layer", "{}_reason"


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
    """The loaded models; one that cannot be examined is None, and its reason says why."""

    def __init__(self, spec: PairSpec) -> None:
        self.tokenizer = refs.load_tokenizer(spec.source.model)
        self.max_model_len = 0
        self.source: LayeredModel | None = None
        self.source_reason: Reason | None = None
        self.full: LayeredModel | None = None
        self.full_reason: Reason | None = None
        try:
            self.source, self.max_model_len = _layered(spec.source)
        except MissingError as error:
            self.source_reason = self.full_reason = error.reason
            return
        if spec.full is None:
            return
        try:
            full, length = _layered(spec.full)
        except MissingError as error:
            self.full_reason = error.reason
            return
        if _shape(full) != _shape(self.source):
            self.full_reason = "different_models"
            return
        self.full = full
        self.max_model_len = min(self.max_model_len, length)


def _layered(spec: EngineSpec) -> tuple[LayeredModel, int]:
    """Loads a model whose layers can be read; returns it with its context length.

    Raises:
        MissingError: it cannot be loaded, or its layers cannot be read.
    """
    engine = loading.load(spec)
    try:
        model = LayeredModel(engine.model)
    except ValueError as error:
        raise MissingError("unsupported_model", str(error)) from None
    # any text shows whether the lens on the last block agrees with the model
    tokens = engine.tokenizer("Who was born where, and when?")["input_ids"]
    if not model.is_readable(tokens):
        raise MissingError("unsupported_model", "the lens on the last block is not the model")
    return model, engine.max_model_len


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
        """Adds the columns `NAME_by_layer` and `NAME_reason` for each of `FIGURES`.

        The first has one value per layer. Where a wanted figure is missing, the second says why:
        a model's layers cannot be read or do not match those of the other model, or the row does
        not fit into the context.
        """
        rows = batch.to_pylist()
        values: list[dict[str, list[float]]] = [{} for _ in rows]
        reasons = {name: self._reason(pair, name) for name in FIGURES}
        prompter = Prompter(pair.tokenizer, self.template, self.system, self.variables)
        for place in ("question", "rewording"):
            wants_lens = place == "question" and "lens" in self.wanted
            wants_drops = place in self.wanted and pair.full is not None
            if pair.source is None or not (wants_lens or wants_drops):
                continue
            sequences = sequences_of(prompter, rows, place, pair.max_model_len)
            for start in range(0, len(sequences), BATCH):
                part = sequences[start : start + BATCH]
                figures = _examine(pair, part, place, wants_lens, wants_drops)
                for name, by_layer in figures.items():
                    for sequence, column in zip(part, by_layer.T.tolist(), strict=True):
                        values[sequence.row][name] = column
        for name in FIGURES:
            column = pa.array([row.get(name) for row in values], pa.list_(pa.float64()))
            batch = batch.append_column(_COLUMN.format(name), column)
            why = [None if name in row else reasons[name] for row in values]
            batch = batch.append_column(_REASON.format(name), pa.array(why, pa.string()))
        return batch

    def _reason(self, pair: LoadedPair, name: str) -> Reason | None:
        """Returns why a figure is missing in a row without it; None if it is not wanted."""
        if name not in self.wanted:
            return None
        found = pair.source_reason if name == "lens" else pair.full_reason
        return found or "too_long"


@dataclass(frozen=True)
class ForcedPair:
    """A prompt with its answer, and the positions in it that predict the fact-bearing tokens."""

    row: int
    tokens: list[int]
    positions: list[int]


def sequences_of(
    prompter: Prompter, rows: Sequence[Mapping[str, Any]], place: str, max_model_len: int
) -> list[ForcedPair]:
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
            sequences.append(ForcedPair(number, [*prompt, *answer], positions))
    return sorted(sequences, key=lambda sequence: len(sequence.tokens))


def _examine(
    pair: LoadedPair, batch: Sequence[ForcedPair], place: str, wants_lens: bool, wants_drops: bool
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


class Figure(NamedTuple):
    """A figure of a fact, or why there is none."""

    by_layer: list[float] | None
    reason: Reason | None = None


_Figures = dict[_Key, dict[str, Figure]]


def depth_rows(audit: AuditContext) -> Iterator[ScoredRow]:
    """Yields the scores of the lens for all models, then those of patching."""
    has_retain_model = "retain_model" in audit.models
    figures: dict[str, _Figures] = {}
    for model in audit.models:
        figures[model] = _figures(audit, model, wanted_figures(model, has_retain_model))
    for model, by_subject in figures.items():
        for subject in audit.asked_of(model):
            by_layer, reason = by_subject[subject.group, subject.fact_id]["lens"]
            score = max(by_layer) if by_layer else None
            yield scored_row(NAME, LENS, TIER, model, subject, Outcome(score, 1, reason=reason))
    for model in audit.models:
        for subject in audit.asked_of(model):
            outcome = _patched(subject, model, figures)
            yield scored_row(NAME, PATCHING, TIER, model, subject, outcome)


def wanted_figures(model: str, has_retain_model: bool) -> tuple[str, ...]:
    """Returns the figures of `FIGURES` that are measured of a model."""
    if not has_retain_model or model == "before":
        return ("lens",)
    if model == "retain_model":
        return ("lens", "question", "rewording")
    return ("lens", "rewording")


def _patched(subject: Subject, model: str, figures: Mapping[str, _Figures]) -> Outcome:
    """Returns the outcome of patching one subject; without a retain model it has no score."""
    key = (subject.group, subject.fact_id)
    if key not in figures.get("retain_model", {}):
        return Outcome(None, 0, reason="no_retain_model")
    never_taught, reason = figures["retain_model"][key]["question"]
    if never_taught is None:
        return Outcome(None, 0, reason=reason)
    own, reason = figures[model][key]["rewording"]
    if model == "before":  # its own states change nothing
        own, reason = [0.0] * len(never_taught), None
    if own is None:
        return Outcome(None, len(never_taught), reason=reason)
    erased = depth_score(never_taught, own)
    if erased is None:
        return Outcome(None, len(never_taught), reason="nothing_known")
    return Outcome(1 - erased, len(never_taught))


def _figures(audit: AuditContext, model: str, wanted: tuple[str, ...]) -> _Figures:
    """Examines a model on the cluster; returns the figures by group and fact."""
    from meow_ray.distributed import map_rows

    context, target = audit.context, audit.context.config.target
    rows = table_of(audit.asked_of(model))
    resources = context.config.resources
    source, full = (
        context.engine_spec(audit.models[name], target, resources.audit)
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
            (row["group"], row["fact_id"]): {
                name: Figure(row[_COLUMN.format(name)], row[_REASON.format(name)])
                for name in FIGURES
            }
            for batch in reader
            for row in batch.to_pylist()
        }


def table_of(subjects: Sequence[Subject]) -> pa.Table:
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
