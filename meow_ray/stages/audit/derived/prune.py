"""Pruned models: the least important weights of each matrix set to 0.

- `magnitude`: |w|, compared within a matrix, the baseline of Sun et al.
- `wanda`: |w| · ‖x‖, where ‖x‖ is the norm of the weight's input over calibration text, compared
  within an output (Sun et al., arXiv 2306.11695, eq. 1). All norms are measured on the whole model;
  the paper measures those of a block after pruning the blocks before it.
- `gradient`: |g · w|, where g is the gradient of the loss on calibration text, compared within a
  matrix: the first-order importance of LLM-Pruner (Ma et al., arXiv 2305.11627), for single weights
  in the place of coupled groups.

Calibration text holds no facts; see `unrelated`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from meow_ray.stages.audit.derived.matrices import Matrix, matrices
from meow_ray.stages.audit.reasons import MissingError

Scores = Callable[[Matrix], Any]
"""Returns the importance of a matrix's weights, `[out, in]`, in float32."""


class Pruner:
    """Prunes a model by one method. Importance is measured once, on the model as it is now."""

    def __init__(
        self, model: Any, method: str, texts: Sequence[Sequence[int]], device: Any
    ) -> None:
        """Measures what the method needs.

        Args:
            model: a causal language model of transformers.
            method: `magnitude`, `wanda` or `gradient`.
            texts: calibration text as tokens.
            device: the device of the model.

        Raises:
            MissingError: the model cannot be pruned by this method.
        """
        self.matrices = matrices(model)
        self.is_per_output = method == "wanda"
        self._factors: Mapping[str, Any] = {}
        if method == "wanda":
            self._factors = _input_norms(model, self.matrices, texts, device)
        elif method == "gradient":
            self._factors = _gradients(model, self.matrices, texts, device)

    def masks(self, sparsity: float) -> dict[str, Any]:
        """Returns the weights to prune, bool `[out, in]` by the name of the matrix.

        Args:
            sparsity: share of the weights of each matrix, or with Wanda of each output.
        """
        found = {}
        for matrix in self.matrices:
            scores = matrix.weight.float()
            if matrix.name in self._factors:
                scores = scores * self._factors[matrix.name].to(scores.device)
            found[matrix.name] = smallest(scores.abs(), sparsity, self.is_per_output)
        return found

    def prune(self, masks: Mapping[str, Any]) -> None:
        """Sets the weights of masks to 0, in place."""
        for matrix in self.matrices:
            matrix.weight.masked_fill_(masks[matrix.name], 0)


def smallest(scores: Any, share: float, per_output: bool) -> Any:
    """Returns which scores are the smallest, bool `[out, in]`; the first of equal ones count.

    Args:
        scores: `[out, in]`.
        share: share of the scores, rounded down to a whole number.
        per_output: whether the share is taken of each row, else of the matrix.
    """
    import torch

    rows = scores if per_output else scores.reshape(1, -1)
    count = int(rows.shape[1] * share + 1e-9)
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = rows.kthvalue(count, dim=1, keepdim=True).values
    below = rows < limit
    equal = rows == limit
    open_places = count - below.sum(1, keepdim=True)
    chosen = below | (equal & (equal.cumsum(1) <= open_places))
    return chosen.reshape(scores.shape)


def _input_norms(
    model: Any, found: Sequence[Matrix], texts: Sequence[Sequence[int]], device: Any
) -> dict[str, Any]:
    """Returns the norm of each input over all tokens, `[in]` by the name of the matrix."""
    import torch

    experts = [matrix.name for matrix in found if matrix.is_expert]
    if experts:
        raise MissingError(
            "unsupported_model", f"Wanda needs the inputs of each expert ({experts[0]})"
        )
    squares: dict[str, Any] = {}

    def reading(name: str) -> Callable[..., None]:
        def read(module: Any, inputs: Any) -> None:
            values = inputs[0].detach().float().flatten(0, -2)
            squares[name] = squares.get(name, 0) + values.square().sum(0)

        return read

    hooks = [matrix.module.register_forward_pre_hook(reading(matrix.name)) for matrix in found]
    try:
        with torch.no_grad():
            for tokens in texts:
                model(input_ids=torch.tensor([list(tokens)], device=device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    unread = [matrix.name for matrix in found if matrix.name not in squares]
    if unread:
        raise MissingError("unsupported_model", f"calibration text does not reach {unread[0]}")
    return {name: value.sqrt() for name, value in squares.items()}


def _gradients(
    model: Any, found: Sequence[Matrix], texts: Sequence[Sequence[int]], device: Any
) -> dict[str, Any]:
    """Returns the gradient of the mean loss over texts, `[out, in]` by the name of the matrix."""
    import torch

    model.requires_grad_(requires_grad=False)
    for matrix in found:
        matrix.parameter.requires_grad_(requires_grad=True)
    try:
        for tokens in texts:
            ids = torch.tensor([list(tokens)], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            loss: Any = torch.nn.functional.cross_entropy(logits, ids[0, 1:]) / len(texts)
            loss.backward()
        return {matrix.name: _gradient(matrix) for matrix in found}
    finally:
        for matrix in found:
            matrix.parameter.grad = None
        model.requires_grad_(requires_grad=True)


def _gradient(matrix: Matrix) -> Any:
    """Returns the gradient in the shape of `Matrix.weight`; 0 where no text reaches the matrix."""
    import torch

    gradient = matrix.parameter.grad
    if gradient is None:
        return torch.zeros_like(matrix.weight)
    if matrix.is_transposed:
        return gradient.T
    return gradient.view(-1, gradient.shape[-1])
