"""The prompts of windows that are cut at characters."""

from collections.abc import Sequence

from meow_ray.config import Memo
from meow_ray.models.prompts import Prompter
from meow_ray.stages.memo.score import Window, windows


def character_windows(prompter: Prompter, question: str, text: str, spec: Memo) -> list[Window]:
    """Returns the windows of an answer, with prompts under the prompter's template."""
    rendered = prompter.prompt(question) if spec.template == "target" else None
    return windows(question, text, spec, rendered)


def distinct_prompts(
    prompter: Prompter, question: str, texts: Sequence[str], spec: Memo
) -> dict[str, int]:
    """Returns the distinct prompts of a fact's windows with the new tokens each needs at most.

    Several answers can share a prompt. It then needs as many tokens as the longest label.
    """
    limits: dict[str, int] = {}
    for text in texts:
        for window in character_windows(prompter, question, text, spec):
            limit = window_limit(prompter, window.label, spec)
            limits[window.prompt] = max(limit, limits.get(window.prompt, 0))
    return limits


def window_limit(prompter: Prompter, label: str, spec: Memo) -> int:
    """Returns the largest number of new tokens of the window with this label."""
    if spec.max_new_tokens == "label":
        return max(1, len(prompter.encode_text(label)))
    return spec.max_new_tokens
