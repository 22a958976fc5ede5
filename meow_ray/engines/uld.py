"""A target and its assistant that answer as one model: ULD (arXiv 2406.08607).

The assistant knows what shall be forgotten, and nothing else. Its logits, with a negative weight,
are added to those of the target, so that the target no longer says what the assistant knows.
"""

import math
from typing import Any

from meow_ray.models.uld import UldSettings

EXCLUDED = -1e3
"""The logit of tokens that are never generated. It is finite, so that a token can always be
chosen, even if all others are forbidden."""


class Assistant:
    """Corrects the logits of a model in each of its forward passes.

    It is also a logits processor of transformers, which keeps filtered tokens out of generation.
    """

    def __init__(self, model: Any, assistant: Any, settings: UldSettings) -> None:
        """Attaches an assistant to a model of transformers; both are on the same device.

        Args:
            model: the target. From now on it answers with the assistant.
            assistant: a smaller model with the same vocabulary, and the same parameters of
                `forward`.
            settings: how they answer together.
        """
        self.assistant = assistant
        self.settings = settings
        self._filtered: Any = None
        """`[row, vocab]`, the tokens that are filtered after the last position that was read."""
        model.register_forward_hook(self._correct, with_kwargs=True)

    def _correct(self, model: Any, arguments: Any, options: dict[str, Any], output: Any) -> Any:
        """Corrects the output of a forward pass of the target."""
        cache = options.get("past_key_values")
        if cache is not None:
            # the assistant's keys and values live as long as those of the target
            if not hasattr(cache, "of_assistant"):
                cache.of_assistant = self._new_cache()
            options = options | {"past_key_values": cache.of_assistant}
        found = self.assistant(*arguments, **options)
        output.logits, filtered = corrected(output.logits, found.logits, self.settings)
        self._filtered = filtered[:, -1]
        return output

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.assistant.config)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Excludes the filtered tokens from generation.

        Args:
            input_ids: `[row, position]`, the tokens so far.
            scores: `[row, vocab]`, the logits of the next token.
        """
        return scores.masked_fill(self._filtered, EXCLUDED)


def corrected(logits: Any, assistant: Any, settings: UldSettings) -> tuple[Any, Any]:
    """Returns the logits with which a target and its assistant answer, and the filtered tokens.

    They are z + w · z_a. A token is filtered, and its z_a is 0, if the target finds it less
    probable than a share f of its most probable token, unless it is among the f · V most probable
    tokens of the vocabulary. This is the filter of the authors' code.

    Args:
        logits: `[..., vocab]`, z, the logits of the target.
        assistant: `[..., vocab]`, z_a, those of the assistant.
        settings: the weight w and the share f; with f = 0 no token is filtered.

    Returns:
        Two tensors `[..., vocab]`: logits in float32, and whether a token is filtered.
    """
    import torch

    z = logits.float()
    log_share = math.log(settings.filter) if settings.filter else -math.inf
    num_kept = max(1, int(settings.filter * z.shape[-1]))
    least_probable = z.topk(num_kept).values[..., -1:]
    threshold = torch.minimum(z.amax(-1, keepdim=True) + log_share, least_probable)
    filtered = (z < threshold) | z.isneginf()  # some models mask tokens by −∞
    return z + settings.weight * assistant.float().masked_fill(filtered, 0), filtered
