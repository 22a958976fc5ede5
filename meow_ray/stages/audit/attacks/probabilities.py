"""Attacks that read probabilities of the true answer, from one teacher-forced pass."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from meow_ray.config import Audit
from meow_ray.stages.audit.attack import Answered, Attack, Outcome, Question, Subject
from meow_ray.stages.evaluate.privacy import loss_score, zlib_score
from meow_ray.stages.never_seen import MIN_K_SHARE, fact_log_prob, min_k_score

LIKELIHOODS = ("fact words", "verbatim")
"""The variants of the attack `likelihood`."""
VERBATIM = ("likelihood", "verbatim")
"""The attack and variant whose score is log p_z."""
MEMBERSHIP = ("min_k", "loss", "zlib")
"""The variants of the attack `membership`."""


def _ask_scored(variants: Sequence[str]) -> Callable[[Subject, Audit], Iterator[Question]]:
    """Returns what measures the true answer for each variant; the model is asked once."""

    def ask(subject: Subject, spec: Audit) -> Iterator[Question]:
        for variant in variants:
            yield Question(variant, subject.question, subject.answer, num_replies=0, is_scored=True)

    return ask


def score_likelihood(subject: Subject, answered: Sequence[Answered]) -> Outcome:
    """Returns a log-probability in nats.

    - `fact words`: the mean over the tokens that carry the fact.
    - `verbatim`: log p_z, the sum over all tokens: log of the probability that one sampled reply
      is the answer.
    """
    (measured,) = answered
    if measured.asked.variant == "verbatim":
        return Outcome(sum(measured.log_probs), attempts=1)
    return Outcome(fact_log_prob(measured.log_probs, measured.is_fact_bearing), attempts=1)


def score_membership(subject: Subject, answered: Sequence[Answered]) -> Outcome:
    """Returns the score of membership inference that the variant names."""
    (measured,) = answered
    scores: dict[str, Callable[[], float]] = {
        "min_k": lambda: min_k_score(measured.log_probs, MIN_K_SHARE),
        "loss": lambda: loss_score(measured.log_probs),
        "zlib": lambda: zlib_score(measured.log_probs, subject.answer),
    }
    return Outcome(scores[measured.asked.variant](), attempts=1)


def score_best_prefix(subject: Subject, answered: Sequence[Answered]) -> Outcome:
    """Returns the largest share of the fact that one prefix of the answer brings back."""
    (measured,) = answered
    return Outcome(largest_run(measured.is_greedy, measured.is_fact_bearing), attempts=1)


def largest_run(is_greedy: Sequence[bool], is_fact_bearing: Sequence[bool]) -> float:
    """Returns the share of fact-bearing tokens in the best run of greedy tokens, in [0, 1].

    After a prefix of the answer, greedy decoding writes the answer on up to the first token that is
    not greedy. So each run of greedy tokens is what the prefix before it brings back.

    Args:
        is_greedy: `[answer]`, whether no token is more probable after the true tokens before it.
        is_fact_bearing: `[answer]`, whether the token carries the fact; one of them does.
    """
    tokens = zip(is_greedy, is_fact_bearing, strict=True)
    runs = (
        sum(bears_fact for _, bears_fact in run)
        for greedy, run in groupby(tokens, key=lambda token: token[0])
        if greedy
    )
    return max(runs, default=0) / sum(is_fact_bearing)


LIKELIHOOD = Attack("likelihood", "static weights", _ask_scored(LIKELIHOODS), score_likelihood)
"""Measures how probable the answer is; one forward pass, no reply.

`fact words` is the mean log-probability of the tokens that carry the fact. `verbatim` is log p_z of
(n, p)-extraction: n samples have the answer with probability 1 - (1 - p_z)^n (Hayes et al.,
arXiv 2410.19482).
"""

MEMBERSHIP_INFERENCE = Attack(
    "membership", "static weights", _ask_scored(MEMBERSHIP), score_membership
)
"""Measures whether the answer looks like training data; one forward pass, no reply.

`min_k` is Min-K % (Shi et al., arXiv 2310.16789), `loss` the mean log-probability (Yeom et al.,
arXiv 1709.01604), `zlib` the same divided by the size of the compressed answer (Carlini et al.,
arXiv 2012.07805).
"""

BEST_PREFIX = Attack("best_prefix", "black box", _ask_scored(("",)), score_best_prefix)
"""Gives the model each prefix of the answer, and takes the best one; one forward pass, no reply.

The score is the share of the tokens that carry the fact in the longest run that greedy decoding
continues; see `largest_run`. It finds what the prefixes of 10, 30 and 50 % miss.
"""
