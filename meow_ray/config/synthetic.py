"""The sections of the stages that make their own training data: `neighbours` and `twins`."""

from meow_ray.config.fields import Section, field

MAX_OVERLAP = (
    "largest share of the true answer's novel words that a row may repeat; a row with one of its "
    "names, dates or numbers is always rejected"
)


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
