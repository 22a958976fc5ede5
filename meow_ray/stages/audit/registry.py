"""All attacks: those that ask questions, and those that make models or ask in several rounds."""

from collections.abc import Mapping

from meow_ray.config import Audit
from meow_ray.stages.audit import own
from meow_ray.stages.audit.attack import Attack
from meow_ray.stages.audit.attacks import (
    attacker,
    languages,
    multiple_choice,
    probabilities,
    sampling,
    starts,
    wordings,
)
from meow_ray.stages.audit.depth import depth_rows
from meow_ray.stages.audit.derived import rows
from meow_ray.stages.audit.scoring import FurtherRows

_ATTACKS = (
    wordings.DIRECT,
    wordings.PARAPHRASE,
    wordings.CLOZE,
    wordings.COMPLETION,
    wordings.FEW_SHOT,
    wordings.EXPERT_ROLE,
    wordings.STORY,
    multiple_choice.MULTIPLE_CHOICE,
    starts.PREFIX,
    starts.AFFIRMATIVE_START,
    probabilities.BEST_PREFIX,
    sampling.SAMPLING,
    probabilities.LIKELIHOOD,
    probabilities.MEMBERSHIP_INFERENCE,
)

QUESTIONS: dict[str, Attack] = {attack.name: attack for attack in _ATTACKS}
"""The attacks that ask questions, by name. The stage asks each model all of them at once."""

FURTHER: dict[str, FurtherRows] = {
    "languages": languages.languages_rows,
    "attacker": attacker.attacker_rows,
    "depth": depth_rows,
    "quantise": rows.quantise,
    "prune": rows.prune,
    "relearn": rows.relearn_rows,
}
"""The attacks that make models or ask in several rounds, by name. Each is called once and returns
its rows for all models."""


def asking_attacks(spec: Audit, sources: Mapping[str, str]) -> list[Attack]:
    """Returns the attacks of a configuration that ask questions, those of the user last.

    Args:
        spec: the section `audit`.
        sources: the texts of the user's files; see `own.load`.
    """
    chosen = [attack for name, attack in QUESTIONS.items() if name in spec.attacks]
    return chosen + own.load(sources)
