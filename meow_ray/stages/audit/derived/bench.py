"""What an actor does: it loads a model once, derives others from it in place, and asks them.

Weights are changed in the loaded module and put back from a copy. No model folder is written, and
the engine of transformers asks all models of an actor; starting an engine for each would take
longer than all questions to a small model. The price is that a model must fit into one device.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from meow_ray.config import Audit
from meow_ray.core.tables import Query
from meow_ray.engines import EngineSpec
from meow_ray.models.prompts import Prompter
from meow_ray.stages.audit import asking, loading, questions
from meow_ray.stages.audit.attack import Attack, Group, Question, Subject
from meow_ray.stages.audit.attacks.leaks import largest_leak
from meow_ray.stages.audit.derived import quantise, relearn
from meow_ray.stages.audit.derived.digests import weights_digest
from meow_ray.stages.audit.derived.matrices import matrices, restored
from meow_ray.stages.audit.derived.prune import Pruner
from meow_ray.stages.audit.derived.unrelated import UNRELATED
from meow_ray.stages.audit.reasons import MissingError, Reason
from meow_ray.stages.audit.scoring import prompt_of
from meow_ray.stages.audit.steps import AuditSteps
from meow_ray.stages.evaluate.suites import prefix_length
from meow_ray.stages.train.learning_rate import RATE_BY_WIDTH

HALF = 50
"""Per cent of the answer that the second question gives away."""

SLACK = 8
"""Tokens that a reply may be longer than the longest answer."""


class Job(NamedTuple):
    """Models that are derived one after another, without loading the original again."""

    attack: str
    """`quantise`, `prune` or `relearn`."""
    kind: str
    """The format, the method of pruning, or what is taught."""
    model: str
    group: Group | None = None
    """The subjects that are taught and asked; None asks all that the model is asked about."""
    taught: int = 0
    """The half that is taught."""


def jobs_of(attack: str, asked: Mapping[str, Sequence[Subject]], spec: Audit) -> Iterator[Job]:
    """Yields the jobs of an attack, model by model.

    Args:
        attack: `quantise`, `prune` or `relearn`.
        asked: the subjects that each model is asked about.
        spec: the section `audit`.
    """
    kinds: dict[str, Sequence[str]] = {
        "quantise": spec.quantise,
        "prune": spec.prune,
        "relearn": spec.relearn.data,
    }
    for model, subjects in asked.items():
        for kind in kinds[attack]:
            if (attack, kind) != ("relearn", "facts"):
                yield Job(attack, kind, model)
                continue
            for group in sorted({subject.group for subject in subjects}):
                for half in relearn.HALVES:
                    yield Job(attack, kind, model, group, half)


def variants(job: Job, spec: Audit) -> list[str]:
    """Returns the variants of a job, one for each derived model."""
    if job.attack == "quantise":
        return [job.kind]
    if job.attack == "relearn":
        return [f"{job.kind}, step {step}" for step in sorted(set(spec.relearn.steps))]
    plain = [f"{job.kind} {share:.0%}".replace("%", " %") for share in spec.sparsities]
    if not spec.recovery_steps:
        return plain
    return plain + [f"{name}, recovery {spec.recovery_steps}" for name in plain]


def taught_pairs(job: Job, subjects: Sequence[Subject], spec: Audit) -> Sequence[tuple[str, str]]:
    """Returns the questions with answers that a job of relearning teaches.

    Args:
        job: the job.
        subjects: the subjects that its model is asked about.
        spec: the section `audit`.
    """
    if job.kind != "facts":
        return UNRELATED
    taught, _ = relearn.taught_and_asked(_of_group(job, subjects), job.taught, spec.seed)
    return [(subject.question, subject.answer) for subject in taught]


def asked_subjects(job: Job, subjects: Sequence[Subject], spec: Audit) -> list[Subject]:
    """Returns the subjects that the models of a job are asked about; see `taught_pairs`."""
    if (job.attack, job.kind) == ("relearn", "facts"):
        return relearn.taught_and_asked(_of_group(job, subjects), job.taught, spec.seed)[1]
    return _of_group(job, subjects)


def _of_group(job: Job, subjects: Sequence[Subject]) -> list[Subject]:
    return [subject for subject in subjects if job.group in (None, subject.group)]


def ask_twice(subject: Subject, spec: Audit) -> Iterator[Question]:
    """Asks the question as it is, and with the first half of the answer as start of the reply."""
    yield Question("", subject.question, subject.answer)
    length = prefix_length(subject.answer, HALF)
    if length:
        start, rest = subject.answer[:length], subject.answer[length:]
        yield Question("", subject.question, rest, start)


TWICE = Attack("derived", "static weights", ask_twice, largest_leak)
"""What each derived model is asked; the score is the larger leak of two greedy replies."""

RESULTS_TYPE = pa.list_(
    pa.struct(
        [
            *((name, pa.string()) for name in ("variant", "weights", "group", "fact_id")),
            ("score", pa.float64()),
            ("attempts", pa.int32()),
            ("reply", pa.string()),
            ("reason", pa.string()),
            ("prompt", pa.string()),
        ]
    )
)
"""What the derived models of a job gave away: one entry per variant and subject. `weights` is the
digest of the derived model, see `weights_digest`."""

Results = list[dict[str, Any]]


class Done(NamedTuple):
    """What came of a job."""

    results: Results
    """Entries of `RESULTS_TYPE`; those of variants that could not be made are missing."""
    reason: Reason | None = None
    """Why some are missing; None if none is."""
    detail: str | None = None
    """The same in more words."""


@dataclass(frozen=True)
class BenchSpec:
    """The models from which others are derived, and what they are asked."""

    needs_gpu: ClassVar[bool] = True
    engines: Mapping[str, EngineSpec]
    """By the name of the model."""
    subjects: Mapping[str, Sequence[Subject]]
    """The subjects that each model is asked about."""
    audit: Audit
    template: str
    system: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> "Bench":
        """Returns a bench in this process; a model is loaded when a job needs it."""
        return Bench(self)


class Bench:
    """Does jobs, one after another."""

    def __init__(self, spec: BenchSpec) -> None:
        self.spec = spec
        self.generated = 0
        """Number of tokens generated so far."""
        self._loaded: EngineSpec | None = None
        self._engine: Any = None

    def run(self, job: Job) -> Done:
        """Derives the models of a job and asks them."""
        import torch

        results: Results = []
        try:
            derive = {"quantise": self._quantise, "prune": self._prune, "relearn": self._relearn}
            for variant, scores in derive[job.attack](job):
                results += [{"variant": variant, **score} for score in scores]
        except MissingError as error:
            return Done(results, error.reason, str(error))
        except torch.OutOfMemoryError:
            self._loaded = self._engine = None
            torch.cuda.empty_cache()
            return Done(results, "out_of_memory", "the memory of one GPU is too small")
        return Done(results)

    # --- derived models ---------------------------------------------------------------------------

    def _quantise(self, job: Job) -> Iterator[tuple[str, Results]]:
        engine = self._load(job.model)
        found = matrices(engine.model)
        with restored([matrix.parameter for matrix in found]):
            quantise.quantise(engine.model, job.kind)
            yield variants(job, self.spec.audit)[0], self._ask(engine, self._subjects(job))

    def _prune(self, job: Job) -> Iterator[tuple[str, Results]]:
        spec = self.spec.audit
        recovery = spec.recovery_steps
        engine = self._load(job.model, trains=recovery > 0)
        prompter = self._prompter(engine)
        texts = [ids for ids, _ in prompter.encode_pairs(*zip(*UNRELATED, strict=True))]
        pruner = Pruner(engine.model, job.kind, texts, engine.device)
        changed = [matrix.parameter for matrix in pruner.matrices]
        if recovery:
            changed = list(engine.model.parameters())
        names = iter(variants(job, spec))
        with restored(changed) as original:
            for steps in (0, recovery) if recovery else (0,):
                for share in spec.sparsities:
                    original.restore()
                    masks = pruner.masks(share)
                    pruner.prune(masks)
                    self._recover(engine, prompter, pruner, masks, steps)
                    yield next(names), self._ask(engine, self._subjects(job))

    def _recover(
        self, engine: Any, prompter: Prompter, pruner: Pruner, masks: Any, steps: int
    ) -> None:
        """Trains a pruned model on unrelated text; pruned weights stay 0."""
        relearn.teach(
            engine.model,
            prompter,
            UNRELATED,
            steps,
            learning_rate=self._learning_rate(engine),
            batch_size=self.spec.audit.relearn.batch_size,
            seed=self.spec.audit.seed,
            after_step=lambda step: pruner.prune(masks),
        )

    def _relearn(self, job: Job) -> Iterator[tuple[str, Results]]:
        spec = self.spec.audit
        subjects = self._subjects(job)
        taught = taught_pairs(job, self.spec.subjects[job.model], spec)
        if not taught:
            raise MissingError(
                "too_few_facts", "two facts are needed, one to teach and one to ask for"
            )
        engine = self._load(job.model, trains=True)
        names = dict(zip(sorted(set(spec.relearn.steps)), variants(job, spec), strict=True))
        results = []

        def ask_after(step: int) -> None:
            if step in names:
                results.append((names[step], self._ask(engine, subjects)))

        with restored(list(engine.model.parameters())):
            ask_after(0)
            relearn.teach(
                engine.model,
                self._prompter(engine),
                taught,
                max(names),
                learning_rate=self._learning_rate(engine),
                batch_size=spec.relearn.batch_size,
                seed=spec.seed,
                after_step=ask_after,
            )
        yield from results

    def _learning_rate(self, engine: Any) -> float:
        """Returns the configured learning rate, or one that suits the width of the model."""
        width = engine.model.config.get_text_config().hidden_size
        return float(self.spec.audit.relearn.learning_rate or RATE_BY_WIDTH / width)

    # --- the model that is loaded -----------------------------------------------------------------

    def _load(self, model: str, *, trains: bool = False) -> Any:
        """Returns the engine of a model, loaded in float32 if it is trained."""
        spec = self.spec.engines[model]
        if trains:
            spec = replace(spec, dtype="float32")
        if spec != self._loaded:
            self._loaded = self._engine = None  # before the next one takes memory
            self._engine = loading.load(spec)
            self._loaded = spec
        return self._engine

    def _subjects(self, job: Job) -> list[Subject]:
        return asked_subjects(job, self.spec.subjects[job.model], self.spec.audit)

    def _prompter(self, engine: Any) -> Prompter:
        spec = self.spec
        return Prompter(engine.tokenizer, spec.template, spec.system, spec.variables)

    def _ask(self, engine: Any, subjects: Sequence[Subject]) -> Results:
        """Asks the model as it is now about subjects."""
        if not subjects:
            return []
        weights = weights_digest(engine.model.state_dict())
        spec = self.spec
        steps = AuditSteps(
            max_new_tokens=self._longest_reply(engine),
            seed=spec.audit.seed,
            template=spec.template,
            system=spec.system,
            variables=spec.variables,
        )
        table = questions.as_table(questions.questions_of((TWICE,), subjects, spec.audit))
        tokens_before = engine.generated
        answers = steps.generate(engine, table)
        self.generated += engine.generated - tokens_before
        by_key: dict[tuple[str, str], Subject] = {(s.group, s.fact_id): s for s in subjects}
        key = ", ".join(f'"{name}"' for name in questions.QUESTIONS_KEY)
        results = []
        query = Query(f"SELECT * FROM answers ORDER BY {key}", {"answers": answers})
        for name, answered in asking.answered(query):
            outcome = largest_leak(by_key[name.group, name.fact_id], answered)
            results.append(
                {
                    "weights": weights,
                    "group": name.group,
                    "fact_id": name.fact_id,
                    "score": outcome.score,
                    "attempts": outcome.attempts,
                    "reply": outcome.reply,
                    "reason": outcome.reason,
                    "prompt": prompt_of(outcome, answered),
                }
            )
        return results

    def _longest_reply(self, engine: Any) -> int:
        """Returns the limit of replies in tokens: `SLACK` more than the longest answer has.

        All facts and twins have the same limit. Pruned models never end a reply, so the limit
        decides what they cost.
        """
        prompter = self._prompter(engine)
        answers = {
            subject.answer for subjects in self.spec.subjects.values() for subject in subjects
        }
        longest = max(len(prompter.encode_answer(answer)) for answer in answers)
        return min(self.spec.audit.max_new_tokens, longest + SLACK)


@dataclass(frozen=True)
class DerivedSteps:
    """What an actor does with a batch of jobs."""

    def generate(self, bench: Bench, batch: pa.Table) -> pa.Table:
        """Adds the fields of `Done` as columns to a batch of jobs."""
        done = [
            bench.run(Job(**{name: row[name] for name in Job._fields})) for row in batch.to_pylist()
        ]
        types = {"results": RESULTS_TYPE, "reason": pa.string(), "detail": pa.string()}
        for name, kind in types.items():
            batch = batch.append_column(
                name, pa.array([getattr(each, name) for each in done], kind)
            )
        return batch
