"""The definitions of metrics that this project and open-unlearning measure differently.

The setting `evaluate.definitions` chooses one of the two, so that figures can be compared with
those of open-unlearning, example by example.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from meow_ray.engines import Engine, TeacherForced, force_to_any_end
from meow_ray.engines.base import Tokens
from meow_ray.stages.evaluate.metrics import rougeL_recall
from meow_ray.stages.memo.score import extraction_strength


class Definitions:
    """This project's definitions; see `OpenUnlearning` for the other ones."""

    epsilon = 0.0
    """What is added to denominators of truth ratio, probability among options, and PrivLeak."""
    attack_sign = 1
    """1 if the scores of attacks in the table of examples are larger for members, else -1."""

    def teacher_force(
        self, engine: Engine, prompts: Sequence[Tokens], answers: Sequence[Tokens], moments: bool
    ) -> list[TeacherForced]:
        """Runs `Engine.teacher_force`, with any token that ends a reply as the end of an answer."""
        return force_to_any_end(engine, prompts, answers, moments)

    def compared_tokens(self, forced: TeacherForced) -> TeacherForced:
        """Returns what exact memorisation, extraction strength and Min-K read of an answer.

        Args:
            forced: the pass over an answer and its end.
        """
        return forced

    def extraction_strength(self, is_greedy: Sequence[bool]) -> float | None:
        """Returns the share of an answer that its longest suffix of greedy tokens takes."""
        return extraction_strength(is_greedy)

    def rougeL_recall(self, answers: Sequence[str], generated: Sequence[str]) -> list[float]:
        """Returns the ROUGE-L recall of each reply: the share of the answer in it, in order."""
        return rougeL_recall(answers, generated)


class OpenUnlearning(Definitions):
    """The definitions of open-unlearning, after its code (`src/evals/metrics`)."""

    epsilon = 1e-10
    attack_sign = -1

    def teacher_force(
        self, engine: Engine, prompts: Sequence[Tokens], answers: Sequence[Tokens], moments: bool
    ) -> list[TeacherForced]:
        """Runs `Engine.teacher_force`, with the one end that the answers have."""
        return engine.teacher_force(prompts, answers, moments)

    def compared_tokens(self, forced: TeacherForced) -> TeacherForced:
        """Returns the pass without its last token, the end."""
        return replace(
            forced,
            log_probs=forced.log_probs[:-1],
            is_greedy=forced.is_greedy[:-1],
            means=None if forced.means is None else forced.means[:-1],
            deviations=None if forced.deviations is None else forced.deviations[:-1],
        )

    def extraction_strength(self, is_greedy: Sequence[bool]) -> float | None:
        """Returns the same, but at least one token's share."""
        strength = extraction_strength(is_greedy)
        return None if strength is None else max(strength, 1 / len(is_greedy))

    def rougeL_recall(self, answers: Sequence[str], generated: Sequence[str]) -> list[float]:
        """Returns the same over the words of the package `rouge_score`: a to z, and digits."""
        results = _rouge_scorer().score_batch(list(answers), list(generated))
        return [float(result["rougeL"].recall) for result in results]


@cache
def _rouge_scorer() -> Any:
    from rouge_score_rs.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


DEFINITIONS: dict[str, Definitions] = {"meow": Definitions(), "open_unlearning": OpenUnlearning()}
"""By the value of `evaluate.definitions`."""
