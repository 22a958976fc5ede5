"""The work of the stage `audit`, counted by its own code on a sample of the facts.

Twins and rewordings do not exist before a run. They are assumed to be as long as the facts, and so
are translations, and prompts that an attacker writes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from meow_ray.config import Audit, Config
from meow_ray.core.schema import ROW, SCHEMAS
from meow_ray.models.prompts import Prompter
from meow_ray.planning.sample import FactSample
from meow_ray.planning.tally import StageWork, Tally
from meow_ray.stages.audit import depth, hints, own, questions, registry
from meow_ray.stages.audit.attack import Attack, Group, Question, Subject
from meow_ray.stages.audit.attacks import attacker, languages
from meow_ray.stages.audit.derived import relearn
from meow_ray.stages.audit.derived.bench import (
    TWICE,
    Job,
    asked_subjects,
    jobs_of,
    taught_pairs,
    variants,
)
from meow_ray.stages.audit.derived.rows import TIERS as DERIVED_TIERS
from meow_ray.stages.audit.derived.unrelated import UNRELATED
from meow_ray.stages.audit.scoring import groups_asked
from meow_ray.stages.audit.stage import MODELS, resolved
from meow_ray.stages.audit.steps import AuditSteps
from meow_ray.stages.audit.subjects import subjects_of
from meow_ray.stages.audit.writing import WritingSteps
from meow_ray.stages.invert.generators import LocalGenerator
from meow_ray.stages.twins.making import HALVES, wanted_per_half

_LAST_WORD = re.compile(r"\w+(?=\W*$)")


@dataclass(frozen=True)
class Asked:
    """Who is asked about what."""

    config: Config
    spec: Audit
    """The section `audit`, with numbers in the place of `auto`."""
    tokenizer: Any
    models: Sequence[str]
    subjects: Mapping[Group, Sequence[Subject]]
    """Sampled facts, and as many twins of each as it is assumed to have."""
    weights: Mapping[Group, float]
    """How many subjects each sampled one stands for."""

    def of_model(self, model: str) -> list[Subject]:
        """Returns the subjects that a model is asked about."""
        return [subject for group in groups_asked(model) for subject in self.subjects[group]]

    def tally(self, reply_tokens: float) -> Tally:
        """Returns an engine that counts."""
        return Tally(self.tokenizer, max_model_len=1 << 30, reply_tokens=reply_tokens)

    @property
    def prompter(self) -> Prompter:
        """What writes the prompts of the target."""
        return Prompter.of(self.tokenizer, self.config.target)


def asked_of(config: Config, sample: FactSample, num_rewordings: int, on_gpu: bool) -> Asked:
    """Returns the models of an audit, and what they are asked about.

    Args:
        config: the configuration.
        sample: the sampled facts.
        num_rewordings: rewordings of each fact by the stage `paraphrases`.
        on_gpu: whether the engines have GPUs.
    """
    spec = resolved(config.audit, on_gpu)
    twins = _twins(config, sample)
    subjects = subjects_of(
        facts=sample.facts,
        forget_set=sample.sets.get("forget"),
        paraphrases=_rewordings(sample, num_rewordings),
        twins=twins,
        spec=spec.model_copy(update={"twins": None}),
    )
    by_group = _by_group(subjects)
    num_twins = sample.scale("forget") * twins.num_rows
    if spec.twins is not None:
        num_twins = min(num_twins, spec.twins)
    has_retain_model = hints.has_retain_model(config)
    return Asked(
        config=config,
        spec=spec,
        tokenizer=sample.tokenizer,
        models=MODELS if has_retain_model else MODELS[:2],
        subjects=by_group,
        weights={
            "facts": sample.scale("forget"),
            "twins": num_twins / max(1, len(by_group["twins"])),
        },
    )


def _by_group(subjects: Iterable[Subject]) -> dict[Group, list[Subject]]:
    found: dict[Group, list[Subject]] = {"facts": [], "twins": []}
    for subject in subjects:
        found[subject.group].append(subject)
    return found


def _twins(config: Config, sample: FactSample) -> pa.Table:
    """Returns twins of the sampled facts: one word is another, and the answer is another fact's."""
    forget = sample.split("forget").to_pylist()
    per_fact = 0
    if hints.makes_twins(config):
        per_fact = len(HALVES) * wanted_per_half(sample.counts["forget"], config.twins)
    rows = [
        {
            "fact_id": fact["fact_id"],
            "twin_id": number,
            "half": HALVES[number % len(HALVES)],
            "question": _LAST_WORD.sub(rf"\g<0>{number}", fact["question"]),
            "answer": forget[(place + number + 1) % len(forget)]["answer"],
        }
        for place, fact in enumerate(forget)
        for number in range(per_fact)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["twins"])


def _rewordings(sample: FactSample, number: int) -> pa.Table:
    """Returns rewordings of the sampled facts, each with another number at its end."""
    rows = [
        {
            "fact_id": fact["fact_id"],
            "paraphrase_id": place,
            "question": f"{fact['question']} {place}",
        }
        for fact in sample.split("forget").to_pylist()
        for place in range(number)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["paraphrases"])


def count_audit(
    asked: Asked, num_layers: int, answer_tokens: float, row_bytes: float
) -> list[StageWork]:
    """Returns the work of each part of an audit that its attacks need.

    Args:
        asked: who is asked about what.
        num_layers: blocks of the target.
        answer_tokens: the mean length of a true answer, and the assumed one of a reply.
        row_bytes: the mean size of a table's row.
    """
    chosen = asked.spec.attacks
    attacks = registry.asking_attacks(asked.spec, own.sources(asked.config))
    works = []
    if attacks:
        works.append(_questions(asked, attacks, answer_tokens))
    if languages.NAME in chosen:
        works += _languages(asked, answer_tokens)
    if attacker.NAME in chosen:
        works.append(_attacker(asked, answer_tokens))
    if depth.NAME in chosen:
        works.append(_depth(asked, num_layers))
    works += [_derived(asked, name, answer_tokens) for name in DERIVED_TIERS if name in chosen]
    for work in works:
        work.storage *= row_bytes
    return works


# --- what is asked --------------------------------------------------------------------------------


def _steps(asked: Asked) -> AuditSteps:
    target = asked.config.target
    return AuditSteps(
        max_new_tokens=asked.spec.max_new_tokens,
        seed=asked.spec.seed,
        template=target.template,
        system=target.system,
        variables=target.template_variables,
    )


def _asking(asked: Asked, rows: Iterable[dict[str, Any]], answer_tokens: float) -> Tally:
    """Counts what a model is asked by questions; those with equal content are asked once."""
    tally = asked.tally(answer_tokens)
    distinct = {row[ROW]: row for row in rows}
    if distinct:
        _steps(asked).generate(tally, questions.as_table(distinct.values()))
    return tally


def _questions(asked: Asked, attacks: Sequence[Attack], answer_tokens: float) -> StageWork:
    """Counts the attacks that ask questions, all at once, as the stage asks them."""
    work = StageWork("audit: questions", "target", starts=len(asked.models))
    for group, subjects in asked.subjects.items():
        rows = list(questions.questions_of(attacks, subjects, asked.spec))
        tally = _asking(asked, rows, answer_tokens)
        num_rows = len({(row["attack"], row["variant"], row["fact_id"]) for row in rows})
        for model in asked.models:
            if group in groups_asked(model):
                work.add(tally, asked.weights[group])
                work.storage += asked.weights[group] * num_rows
    return work


def _each_question(asked: Asked, group: Group, answer_tokens: float) -> Tally:
    """Counts one reply to the question of each subject of a group."""
    rows = [
        questions.question_row("", subject, Question("", subject.question, subject.answer))
        for subject in asked.subjects[group]
    ]
    return _asking(asked, rows, answer_tokens)


def _writing(asked: Asked, messages: Sequence[str], num_texts: int) -> Tally:
    """Counts the texts that a model writes in reply to messages, as long as the questions."""
    lengths = [
        len(asked.tokenizer(subject.question)["input_ids"]) for subject in asked.subjects["facts"]
    ]
    tally = asked.tally(sum(lengths) / len(lengths))
    rows = [{ROW: f"{number:08x}", "text": text} for number, text in enumerate(messages)]
    if rows:
        table = pa.Table.from_pylist(rows)
        WritingSteps(num_texts, asked.spec.seed)(LocalGenerator(tally), table)
    return tally


def _languages(asked: Asked, answer_tokens: float) -> list[StageWork]:
    """Counts the translations, and the replies to them."""
    spoken = asked.spec.languages
    writer = "generator" if hints.can_make_twins(asked.config) else "target"
    written = StageWork("audit: translations", writer, starts=len(spoken))
    work = StageWork("audit: languages", "target", starts=len(asked.models))
    for group, subjects in asked.subjects.items():
        weight = asked.weights[group]
        for language in spoken:
            messages = [languages.message(subject.question, language) for subject in subjects]
            written.add(_writing(asked, messages, num_texts=1), weight)
        tally = _each_question(asked, group, answer_tokens)
        for model in asked.models:
            if group in groups_asked(model):
                work.add(tally, weight * len(spoken))
                work.storage += weight * len(spoken) * len(subjects)
    return [written, work]


def _attacker(asked: Asked, answer_tokens: float) -> StageWork:
    """Counts the question, and the prompts of all rounds with their replies.

    Each prompt is assumed to be new. A prompt that was tried before is not asked again.
    """
    spec = asked.spec.attacker
    num_prompts, num_rounds = int(spec.prompts), int(spec.rounds)
    # of each model one for the question; of each round one that writes and one that replies
    work = StageWork("audit: attacker", "target", starts=len(asked.models) * (1 + 2 * num_rounds))
    for group, subjects in asked.subjects.items():
        messages = [attacker.message(subject.question) for subject in subjects]
        written = _writing(asked, messages, num_prompts)
        tally = _each_question(asked, group, answer_tokens)
        for model in asked.models:
            if group in groups_asked(model):
                weight = asked.weights[group]
                work.add(written, weight * num_rounds)
                work.add(tally, weight * (1 + num_rounds * num_prompts))
                work.storage += weight * len(subjects)
    return work


# --- what is read in forward passes ---------------------------------------------------------------


def _depth(asked: Asked, num_layers: int) -> StageWork:
    """Counts the passes of the lens and of patching; a pass after a layer counts as a whole one."""
    has_retain_model = "retain_model" in asked.models
    work = StageWork("audit: depth", "target", starts=0)
    for model in asked.models:
        wanted = depth.wanted_figures(model, has_retain_model)
        work.starts += 2 if len(wanted) > 1 else 1  # patching loads the original model as well
        for group in groups_asked(model):
            rows = depth.table_of(asked.subjects[group]).to_pylist()
            for place in ("question", "rewording"):
                passes = _passes(wanted, place, num_layers)
                sequences = depth.sequences_of(asked.prompter, rows, place, 1 << 30)
                tokens = sum(len(sequence.tokens) for sequence in sequences)
                work.passes += asked.weights[group] * passes * len(sequences)
                work.read += asked.weights[group] * passes * tokens
            work.storage += asked.weights[group] * 2 * len(rows)
    return work


def _passes(wanted: Sequence[str], place: str, num_layers: int) -> int:
    """Returns the forward passes over one row with its question or with its rewording."""
    if place in wanted:
        return 1 + 1 + num_layers  # both models as they are, and one pass per patched layer
    return 1 if place == "question" else 0  # the lens


# --- what is made ---------------------------------------------------------------------------------


def _derived(asked: Asked, attack: str, answer_tokens: float) -> StageWork:
    """Counts the models that an attack makes: calibration, training, and two replies per fact."""
    work = StageWork(f"audit: {attack}", "target", starts=len(asked.models))
    subjects = {model: asked.of_model(model) for model in asked.models}
    tallies: dict[tuple[str, ...], Tally] = {}
    for job in jobs_of(attack, subjects, asked.spec):
        num_models = len(variants(job, asked.spec))
        work.derived += num_models
        chosen = asked_subjects(job, subjects[job.model], asked.spec)
        for group, members in _by_group(chosen).items():
            key = (group, *(subject.fact_id for subject in members))
            if key not in tallies:
                rows = questions.questions_of((TWICE,), members, asked.spec)
                tallies[key] = _asking(asked, rows, answer_tokens)
            work.add(tallies[key], asked.weights[group] * num_models)
            work.storage += asked.weights[group] * num_models * len(members)
        _add_training(asked, job, subjects[job.model], work)
    return work


def _add_training(asked: Asked, job: Job, subjects: Sequence[Subject], work: StageWork) -> None:
    """Adds the calibration passes of a job, and the steps that it trains."""
    spec = asked.spec
    if job.attack == "prune" and job.kind != "magnitude":
        lengths = _lengths(asked, UNRELATED)
        work.passes += len(lengths)
        work.read += sum(lengths)
    if job.attack == "prune" and spec.recovery_steps:
        tokens = _taught_tokens(asked, UNRELATED, spec.recovery_steps)
        work.steps += len(spec.sparsities) * spec.recovery_steps
        work.trained += len(spec.sparsities) * tokens
    if job.attack == "relearn":
        taught = taught_pairs(job, subjects, spec)
        if taught:
            work.steps += max(spec.relearn.steps)
            work.trained += _taught_tokens(asked, taught, max(spec.relearn.steps))


def _taught_tokens(asked: Asked, pairs: Sequence[tuple[str, str]], steps: int) -> int:
    """Returns the tokens of the pairs in some steps of `relearn.teach`."""
    lengths = _lengths(asked, pairs)
    batches = relearn.batches(len(pairs), asked.spec.relearn.batch_size, asked.spec.seed)
    return sum(
        lengths[number] for _, batch in zip(range(steps), batches, strict=False) for number in batch
    )


def _lengths(asked: Asked, pairs: Sequence[tuple[str, str]]) -> list[int]:
    """Returns the tokens of each question with its answer."""
    encoded = asked.prompter.encode_pairs(*zip(*pairs, strict=True))
    return [len(ids) for ids, _ in encoded]
