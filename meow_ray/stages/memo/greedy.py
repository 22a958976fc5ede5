"""Greedy continuations of prompts: whole ones, and ones that grow until enough of them is known."""

from collections.abc import Mapping, Sequence

from meow_ray.engines import Completion, Engine, Sampling
from meow_ray.errors import MeowError
from meow_ray.stages.memo.forced import Forced

Prompt = tuple[int, ...]
"""The tokens of a prompt."""

FIRST_TOKENS = 16
"""Number of tokens that are first generated from a prompt whose continuation grows."""


def check_lengths(
    engine: Engine, prompts: Sequence[Sequence[int]], sequences: Sequence[Forced]
) -> None:
    """Checks that each prompt and forced sequence leaves room for one new token.

    Raises:
        MeowError: one does not.
    """
    lengths = [len(prompt) for prompt in prompts]
    lengths += [len(forced["prompt"]) + len(forced["sequence"]) for forced in sequences]
    longest = max(lengths, default=0)
    if longest >= engine.max_model_len:
        raise MeowError(
            f"`memo`: a window of {longest} tokens leaves no room in the target's context "
            f"({engine.max_model_len} tokens). Remove long facts, or raise `target.max_model_len`."
        )


def continue_greedily(
    engine: Engine, prompts: Sequence[Sequence[int]], limits: Sequence[int]
) -> list[Completion]:
    """Continues prompts greedily; starts the longest first, so that none runs alone at the end."""
    order = sorted(range(len(prompts)), key=lambda i: -limits[i])
    replies = engine.generate([prompts[i] for i in order], [Sampling(limits[i]) for i in order])
    reply_to = dict(zip(order, replies, strict=True))
    return [reply_to[i][0] for i in range(len(prompts))]


class GrowingReplies:
    """What an engine has generated so far after each of some prompts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokens: dict[Prompt, list[int]] = {}
        self._ended: set[Prompt] = set()

    def after(self, prompt: Prompt) -> list[int] | None:
        """Returns the tokens after a prompt so far; None if nothing was generated from it."""
        return self._tokens.get(prompt)

    def is_complete(self, prompt: Prompt, limit: int) -> bool:
        """Tells whether the continuation has ended, or has as many tokens as the limit."""
        return prompt in self._ended or len(self._tokens.get(prompt, ())) >= limit

    def grow(self, limits: Mapping[Prompt, int]) -> None:
        """Doubles the continuations of prompts, up to a limit each; they have 16 tokens at first.

        Args:
            limits: the largest number of new tokens after each prompt.
        """
        missing: dict[Prompt, int] = {}
        for prompt, limit in limits.items():
            if not self.is_complete(prompt, limit):
                done = len(self._tokens.get(prompt, ()))
                missing[prompt] = min(limit - done, max(FIRST_TOKENS, done))
        prompts = [(*prompt, *self._tokens.get(prompt, ())) for prompt in missing]
        replies = continue_greedily(self._engine, prompts, list(missing.values()))
        for (prompt, wanted), reply in zip(missing.items(), replies, strict=True):
            tokens = self._tokens.setdefault(prompt, [])
            tokens += reply.tokens
            is_full = len(prompt) + len(tokens) >= self._engine.max_model_len
            if reply.finished or is_full or len(reply.tokens) < wanted:
                self._ended.add(prompt)
