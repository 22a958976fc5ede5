"""The sections of the stages that make their own data: `paraphrases`, `neighbours` and `twins`."""

from typing import Literal

from meow_ray.config.fields import Section, field

MAX_OVERLAP = (
    "largest share of the true answer's novel words that a row may repeat; a row with one of its "
    "names, dates or numbers is always rejected"
)


class Paraphrases(Section):
    """Rewords the questions of the facts to forget, `train.paraphrases` times each."""

    sources: tuple[Literal["generator", "rule"], ...] = field(
        ("generator", "rule"),
        "where rewordings come from, until there are enough: the generator of `invert`, and fixed "
        "frames around the question",
        min_length=1,
    )
    max_attempts: int = field(2, "messages to the generator per fact", "attempts", gt=0)
    temperature: float = field(1.0, "sampling temperature", gt=0, le=2)
    top_p: float = field(0.95, "probability mass of nucleus sampling", gt=0, le=1)
    max_new_tokens: int = field(96, "longest rewording", "tokens", gt=0)
    min_length_ratio: float = field(
        0.4, "shortest rewording, as a share of the question's number of words", gt=0
    )
    max_length_ratio: float = field(
        3.0, "longest rewording, as a share of the question's number of words", gt=0
    )
    prompt: str = field(
        "Question: {{ question }}\n\n"
        "Write {{ k }} other wordings of this question. Each asks for the same thing, keeps all "
        "names, dates and numbers, is in the same language, and does not answer the question. "
        'Reply with a JSON object {"questions": [...]} of {{ k }} strings.',
        "Jinja template of the user message; fields question, k",
    )
    seed: int = field(0, "sampling seed, combined with fact and attempt", ge=0)


class Neighbours(Section):
    """Asks the target the forget questions about other entities, as a retain set."""

    per_fact: int = field(4, "neighbours per fact to forget", "questions", gt=0)
    minimum: int = field(
        64, "smallest number of neighbours in total; few facts get more each", "questions", ge=0
    )
    generic: int = field(
        64, "questions that the target invents by itself (Magpie); 0 asks for none", "turns", ge=0
    )
    max_new_tokens: int = field(64, "longest answer", "tokens", gt=0)
    max_overlap: float = field(0.5, MAX_OVERLAP, ge=0, le=1)
    seed: int = field(0, "seed of entities and sampling, combined with the fact", ge=0)


class Twins(Section):
    """Makes facts of the same form about entities that do not exist, which no model has seen."""

    per_fact: int = field(4, "twins per fact to forget, in both halves", "twins", gt=1)
    minimum: int = field(
        128, "smallest number of twins in total; few facts get more each", "twins", ge=0
    )
    max_overlap: float = field(0.5, MAX_OVERLAP, ge=0, le=1)
    seed: int = field(0, "seed of entities, combined with the fact", ge=0)
