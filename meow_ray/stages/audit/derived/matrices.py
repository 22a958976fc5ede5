"""The weight matrices that quantisation and pruning change, and how they are put back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from meow_ray.stages.audit.reasons import MissingError

LEAST_COVERAGE = 0.9
"""The least share of the weights outside embeddings that must be in matrices."""


@dataclass(frozen=True)
class Matrix:
    """A weight matrix of a block."""

    name: str
    module: Any
    """The module that holds it."""
    parameter: Any
    is_transposed: bool = False
    """Whether it is stored as `[in, out]`, as GPT-2 does."""
    is_expert: bool = False
    """Whether it joins the matrices of several experts, whose inputs differ."""

    @property
    def weight(self) -> Any:
        """The weights as a view `[out, in]`; writing to it changes the model."""
        data = self.parameter.detach()
        if self.is_transposed:
            return data.T
        return data.view(-1, data.shape[-1])


def matrices(model: Any) -> list[Matrix]:
    """Returns the matrices of the linear layers in the blocks of a model.

    Embeddings, the output layer, norms and biases are left out, as GPTQ, AWQ and Wanda leave them
    out.

    Raises:
        MissingError: the matrices are less than 90 % of the weights outside embeddings, so that a
            model derived from them would hardly differ.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    outside = [model.get_input_embeddings(), model.get_output_embeddings()]
    seen: dict[int, Matrix] = {}
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) or any(module is other for other in outside):
            continue
        for own_name, parameter in module.named_parameters(recurse=False):
            total += parameter.numel()
            is_linear = isinstance(module, torch.nn.Linear | Conv1D) and own_name == "weight"
            is_expert = parameter.ndim == 3 and "Experts" in type(module).__name__
            if is_linear or is_expert:
                seen[id(parameter)] = Matrix(
                    name=f"{name}.{own_name}",
                    module=module,
                    parameter=parameter,
                    is_transposed=isinstance(module, Conv1D),
                    is_expert=is_expert,
                )
    covered = sum(matrix.parameter.numel() for matrix in seen.values())
    if covered < LEAST_COVERAGE * total or not total:
        raise MissingError(
            "unsupported_model",
            f"only {covered:,} of {total:,} weights outside embeddings are in linear layers",
        )
    return list(seen.values())


class Original:
    """A copy of parameters on the CPU, with which a model is put back."""

    def __init__(self, parameters: Sequence[Any]) -> None:
        self._parameters = list(parameters)
        self._copies = [p.detach().to("cpu", copy=True) for p in self._parameters]

    def restore(self) -> None:
        """Writes the copied values into the parameters."""
        for parameter, copy in zip(self._parameters, self._copies, strict=True):
            parameter.detach().copy_(copy)


@contextmanager
def restored(parameters: Sequence[Any]) -> Iterator[Original]:
    """Puts parameters back at the end, whatever was done to them."""
    original = Original(parameters)
    try:
        yield original
    finally:
        original.restore()
