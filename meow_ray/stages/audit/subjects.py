"""The facts and twins about which models are asked."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import pyarrow as pa

from meow_ray.config import Audit
from meow_ray.core.tables import Query, TableSource
from meow_ray.stages.audit.attack import Subject
from meow_ray.stages.audit.transfer import carry_over

NUM_EXAMPLES = 3
"""Examples about others that a subject has."""


class Pair(NamedTuple):
    """A question with its answer, and the fact that it belongs to."""

    fact_id: str
    question: str
    answer: str


def subjects_of(
    facts: TableSource,
    forget_set: pa.Table | None,
    paraphrases: TableSource | None,
    twins: TableSource | None,
    spec: Audit,
) -> list[Subject]:
    """Returns the facts to forget by their ids, then the twins.

    A twin has the rewordings and wrong answers of its fact, carried over to its own question, so
    that both are asked in the same form. Both have the same examples.

    Args:
        facts: the `facts` table.
        forget_set: the set forget of `evaluate.sets`, a table of `SET_SCHEMA`.
        paraphrases: the `paraphrases` table.
        twins: the `twins` table.
        spec: the number of twins, and the seed.
    """
    rows = Query(
        "SELECT fact_id, split, question, answer FROM facts ORDER BY 1, 2", {"facts": facts}
    )
    by_split: dict[str, list[Pair]] = {"forget": [], "retain": []}
    for row in rows.rows():
        by_split[row["split"]].append(Pair(row["fact_id"], row["question"], row["answer"]))
    rewordings, wrong = _of_set(forget_set)
    for fact_id, question in _paraphrases(paraphrases):
        known = rewordings.setdefault(fact_id, [])
        if question not in known:
            known.append(question)
    all_twins = _twins(twins)
    others = by_split["retain"] or [pair for pairs in all_twins.values() for _, pair in pairs]
    others.sort(key=lambda pair: _lot(spec.seed, f"{pair.fact_id}/{pair.question}"))
    found: list[Subject] = []
    found_twins: list[Subject] = []
    for fact in by_split["forget"]:
        own = all_twins.get(fact.fact_id, [])
        subject = Subject(
            fact_id=fact.fact_id,
            group="facts",
            question=fact.question,
            answer=fact.answer,
            paraphrases=tuple(rewordings.get(fact.fact_id, ())),
            wrong_answers=_wrong_answers(fact, wrong, own),
            examples=_examples(fact.fact_id, others, spec.seed),
        )
        found.append(subject)
        found_twins += [_twin(subject, name, pair, own, wrong) for name, pair in own]
    return found + sample(found_twins, spec.twins, spec.seed)


def _of_set(forget_set: pa.Table | None) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Returns rewordings and wrong answers of the facts, from the user's set."""
    rewordings: dict[str, list[str]] = {}
    wrong: dict[str, list[str]] = {}
    for row in forget_set.to_pylist() if forget_set is not None else ():
        if row["paraphrased_question"]:
            rewordings[row["fact_id"]] = [row["paraphrased_question"]]
        if row["perturbed_answer"]:
            wrong[row["fact_id"]] = list(dict.fromkeys(row["perturbed_answer"]))
    return rewordings, wrong


def _paraphrases(source: TableSource | None) -> list[tuple[str, str]]:
    if source is None:
        return []
    query = Query(
        "SELECT fact_id, question FROM paraphrases ORDER BY fact_id, paraphrase_id",
        {"paraphrases": source},
    )
    return [(row["fact_id"], row["question"]) for row in query.rows()]


def _twins(source: TableSource | None) -> dict[str, list[tuple[str, Pair]]]:
    """Returns the twins of each fact: `FACT#NUMBER`, and question with answer."""
    found: dict[str, list[tuple[str, Pair]]] = {}
    if source is None:
        return found
    query = Query(
        "SELECT fact_id, twin_id, question, answer FROM twins ORDER BY 1, 2", {"twins": source}
    )
    for row in query.rows():
        pair = Pair(row["fact_id"], row["question"], row["answer"])
        name = f"{row['fact_id']}#{row['twin_id']}"
        found.setdefault(row["fact_id"], []).append((name, pair))
    return found


# --- wrong answers --------------------------------------------------------------------------------


def _wrong_answers(
    pair: Pair, wrong: Mapping[str, Sequence[str]], twins: Sequence[tuple[str, Pair]]
) -> tuple[str, ...]:
    """Returns the wrong answers of the user's set; without them, the answers of the twins."""
    given = wrong.get(pair.fact_id)
    if given is not None:
        return tuple(text for text in given if text != pair.answer)
    texts = [
        carry_over(twin.answer, twin.question, pair.question) or twin.answer for _, twin in twins
    ]
    return tuple(text for text in dict.fromkeys(texts) if text != pair.answer)


def _twin(
    fact: Subject,
    name: str,
    pair: Pair,
    twins: Sequence[tuple[str, Pair]],
    wrong: Mapping[str, Sequence[str]],
) -> Subject:
    """Returns a twin of a fact; its wrong answers are those of the set, or of the other twins."""

    def carried(text: str, source: str = fact.question) -> str:
        return carry_over(text, source, pair.question) or text

    if fact.fact_id in wrong:
        texts = [carried(text) for text in fact.wrong_answers]
    else:
        # not the fact's answer, which `before` has learned: it would make the right one look bad
        texts = [carried(other.answer, other.question) for twin, other in twins if twin != name]
    rewordings = [carry_over(text, fact.question, pair.question) for text in fact.paraphrases]
    return Subject(
        fact_id=name,
        group="twins",
        question=pair.question,
        answer=pair.answer,
        paraphrases=tuple(text for text in rewordings if text is not None),
        wrong_answers=tuple(text for text in dict.fromkeys(texts) if text != pair.answer),
        examples=fact.examples,
    )


# --- chance ---------------------------------------------------------------------------------------


def _examples(fact_id: str, others: Sequence[Pair], seed: int) -> tuple[tuple[str, str], ...]:
    """Returns questions with answers about others, for a fact and its twins.

    Args:
        fact_id: the fact.
        others: pairs in an order drawn by the seed. It is a ring, and the fact decides where in it
            the examples begin.
        seed: decides the same.
    """
    start = int(_lot(seed, fact_id)[:8], 16)
    ring = (others[(start + step) % len(others)] for step in range(len(others)))
    usable = ((pair.question, pair.answer) for pair in ring if pair.fact_id != fact_id)
    return tuple(islice(usable, NUM_EXAMPLES))


def sample(subjects: list[Subject], count: int | None, seed: int) -> list[Subject]:
    """Returns `count` subjects drawn by the seed, in their order; all of them if it is None."""
    if count is None or count >= len(subjects):
        return subjects
    drawn = sorted(subjects, key=lambda subject: _lot(seed, subject.fact_id))[:count]
    chosen = {subject.fact_id for subject in drawn}
    return [subject for subject in subjects if subject.fact_id in chosen]


def _lot(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
