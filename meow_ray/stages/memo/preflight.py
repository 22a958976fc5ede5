"""What `memo` would find wrong only in its actors, found before the run."""

from collections.abc import Iterator

import pyarrow.compute as pc

from meow_ray.config import Config
from meow_ray.core.schema import TRUE_ANSWER
from meow_ray.core.stage import Known
from meow_ray.models import checks
from meow_ray.stages.inputs import target_prompter
from meow_ray.stages.invert.own_candidates import places_of
from meow_ray.stages.model_checks import (
    LongText,
    check_target,
    check_target_engine,
    context_limit,
    long_pairs,
    long_texts,
    target_ahead,
)


def _check_exact(config: Config, known: Known) -> Iterator[str]:
    """Finds settings under which no answer can do without an exact score."""
    if config.memo.exact == "all":
        return
    if config.select.order == "random":
        yield (
            "`memo.exact`: selection scores the answers that the order of `select` depends on, but "
            "the order random needs no score (select.order=random). Set memo.exact=all."
        )
    if "el" in config.memo.comparators:
        yield (
            "`memo.comparators`: el needs the continuations of all answers, and a selection does "
            "without some of them (memo.exact=selection). Remove el, or set memo.exact=all."
        )
    if "candidates" in known:
        ids = known["candidates"].table["candidate_id"]
        if not pc.any(pc.greater(ids, TRUE_ANSWER)).as_py():
            yield (
                "`memo.exact`: there is nothing to select, because the candidates have no inverted "
                "answer (memo.exact=selection). Set memo.exact=all."
            )


def _check_lengths(config: Config, known: Known) -> Iterator[str]:
    """Finds candidates, or true answers next to them, that are longer than the target's context."""
    target = target_ahead(config, known)
    if "candidates" not in known or target is None or checks.model_faults(*target):
        return
    limit = context_limit(target[0], config.target)
    prompter = target_prompter(target[0], config.target)
    rows = known["candidates"].table.to_pylist()
    true_answers = {(row["fact_id"], row["question"], row["answer"]) for row in rows}
    inverted = [(row["fact_id"], row["question"], row["inverted_answer"]) for row in rows]
    texts = [*(text for text in inverted if text[2] is not None), *sorted(true_answers)]
    keys, questions, answers = zip(*texts, strict=True) if texts else ((), (), ())
    too_long = long_pairs(prompter, questions, answers, limit)
    if too_long:
        places = places_of(known["candidates"])
        found = [
            LongText(places.get((keys[index], answers[index]), f"fact {keys[index]}"), tokens)
            for index, tokens in too_long.items()
        ]
        yield long_texts("`candidates`", found, limit)


CHECKS = (check_target, check_target_engine, _check_exact, _check_lengths)
