"""A model whose blocks can be read and replaced: the logit lens and activation patching.

Nothing here knows an architecture. The states after a block are what its module returns. They are
read by a forward hook, and set by a module that returns given states instead of computing them. So
the final norm, the head and all that a model does after its blocks are always its own code.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from meow_ray.models import refs
from meow_ray.stages.train.structure import blocks_of

CHUNK = 256
"""States that are turned into probabilities at once, which bounds the memory of the logits."""
_TOLERANCE = 0.02
"""Largest difference of log-probabilities, in nats, between the last block read by the lens and the
model itself. It leaves room for the rounding of bfloat16."""


@dataclass(frozen=True)
class Places:
    """The positions of a padded batch that predict the tokens of interest."""

    rows: Any
    """`[place]`, the row of the batch."""
    positions: Any
    """`[place]`, the position whose state predicts the token."""
    tokens: Any
    """`[place]`, the token."""


class LayeredModel:
    """A causal language model of transformers with access to the states after each block."""

    def __init__(self, model: Any) -> None:
        """Takes a loaded model.

        Raises:
            ValueError: the model's blocks cannot be found.
        """
        name = blocks_of(model)
        if name is None:
            raise ValueError("the model has no list of blocks")
        self.model = model
        self.blocks = list(model.get_submodule(name))
        self.device = next(model.parameters()).device
        self._returns_tuple = False
        accepts = refs.forward_parameters(model)
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}
        if "use_cache" in accepts:
            self._options["use_cache"] = False

    @property
    def num_layers(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    def states(self, ids: Any, mask: Any, layer: int = -1, given: Any = None) -> list[Any]:
        """Returns the states after each block, `[layer]` of `[row, position, hidden]`.

        Args:
            ids: `[row, position]`, the tokens, padded on the right.
            mask: `[row, position]`, 1 for tokens and 0 for padding.
            layer: the blocks up to this one do not run; -1 runs all.
            given: `[row, position, hidden]`, the states after the block `layer`.
        """
        import torch

        found: list[Any] = []

        def keep(module: Any, inputs: Any, output: Any) -> None:
            self._returns_tuple = isinstance(output, tuple)
            found.append(output[0] if isinstance(output, tuple) else output)

        handles = [block.register_forward_hook(keep) for block in self.blocks]
        try:
            with self._replaced(layer, given), torch.inference_mode():
                self.model(input_ids=ids, attention_mask=mask, **self._options)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def log_probs(self, states: Any, tokens: Any) -> Any:
        """Returns log p(token) as the model reads it from states after any block, `[place]`.

        These are the logit lens of nostalgebraist (2020): final norm and head are applied to the
        states as if the block were the last one.

        Args:
            states: `[place, hidden]`.
            tokens: `[place]`.
        """
        import torch

        parts = []
        last = self.num_layers - 1
        for start in range(0, len(tokens), CHUNK):
            given = states[start : start + CHUNK, None]  # [place, 1, hidden]
            wanted = tokens[start : start + CHUNK, None]
            ids = torch.zeros_like(wanted)
            with self._replaced(last, given), torch.inference_mode():
                output = self.model(
                    input_ids=ids, attention_mask=torch.ones_like(ids), **self._options
                )
            logits = output.logits[:, -1].float()  # [place, vocab]
            parts.append(logits.gather(1, wanted)[:, 0] - logits.logsumexp(-1))
        return torch.cat(parts)

    @contextmanager
    def _replaced(self, layer: int, given: Any) -> Iterator[None]:
        """Lets the blocks up to `layer` return the given states without running."""

        def give(*arguments: Any, **named: Any) -> Any:
            return (given,) if self._returns_tuple else given

        try:
            for block in self.blocks[: layer + 1]:
                block.forward = give
            yield
        finally:
            for block in self.blocks[: layer + 1]:
                del block.forward

    def is_readable(self, tokens: Sequence[int]) -> bool:
        """Tells whether the lens on the last block gives the probabilities of the model itself.

        It does not for a model whose blocks return something else than the states, or which uses
        them in more places than after the last block.

        Args:
            tokens: some tokens of a text, at least two.
        """
        import torch

        ids = torch.tensor([list(tokens)], device=self.device)
        mask = torch.ones_like(ids)
        try:
            states = self.states(ids, mask)
            read = self.log_probs(states[-1][0, :-1], ids[0, 1:])
        except (ValueError, TypeError, IndexError, AttributeError, RuntimeError):
            return False
        with torch.inference_mode():
            logits = self.model(input_ids=ids, attention_mask=mask).logits[0, :-1].float()
        own = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        is_close: bool = torch.allclose(read, own, atol=_TOLERANCE, rtol=_TOLERANCE)
        return len(states) == self.num_layers and is_close


def lens(model: LayeredModel, states: Sequence[Any], places: Places, num_rows: int) -> Any:
    """Returns the mean log-probability of each row's tokens after each block, `[layer, row]`.

    Args:
        model: the model that has made the states, and whose norm and head read them.
        states: `[layer]` of `[row, position, hidden]`.
        places: the positions that predict the tokens; each row has at least one.
        num_rows: the number of rows.
    """
    import torch

    values = [
        model.log_probs(layer[places.rows, places.positions], places.tokens) for layer in states
    ]
    return torch.stack([_means(value, places, num_rows) for value in values])


def drops(
    full: LayeredModel, source_states: Sequence[Any], ids: Any, mask: Any, places: Places
) -> Any:
    """Returns by how much a fact gets less probable in a model if one layer is of another model.

    At each layer, the states of the positions that predict the tokens are those of the source; all
    other positions keep their own, and the blocks after it run as usual (arXiv 2605.24614, section
    3.2).

    Args:
        full: the model that is patched.
        source_states: `[layer]` of `[row, position, hidden]`, of the source on the same tokens.
        ids: `[row, position]`, the tokens, padded on the right.
        mask: `[row, position]`, 1 for tokens and 0 for padding.
        places: the positions that predict the tokens; each row has at least one.

    Returns:
        `[layer, row]`, mean of log p(full) - log p(patched) over the row's tokens, in nats.
    """
    import torch

    at = (places.rows, places.positions)
    own_states = full.states(ids, mask)
    own = full.log_probs(own_states[-1][at], places.tokens)
    values = []
    for layer, source in enumerate(source_states):
        patched = own_states[layer].clone()
        patched[at] = source[at].to(patched)
        last = full.states(ids, mask, layer, patched)[-1]
        values.append(own - full.log_probs(last[at], places.tokens))
    return torch.stack([_means(value, places, len(ids)) for value in values])


def _means(values: Any, places: Places, num_rows: int) -> Any:
    """Returns the mean over the places of each row, `[row]`."""
    import torch

    sums = torch.zeros(num_rows, dtype=values.dtype, device=values.device)
    counts = torch.bincount(places.rows, minlength=num_rows)
    return sums.index_add(0, places.rows, values) / counts
