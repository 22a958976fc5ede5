"""What merging needs to know of the inputs of adapted layers: roots of their Gram matrices.

`meow merge` weights each adapter by the inputs of its layers on the request's own pairs (EUL,
arXiv 2310.20150). Of these inputs X, `[tokens, in]`, it needs the Gram matrix XᵀX alone, which
holds no text. Stored is a root R with RᵀR = XᵀX: it has at most as many rows as X, and keeps small
directions in float32 that the matrix itself would lose.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from meow_ray.stages.train import layout
from meow_ray.stages.train.batches import Dataset
from meow_ray.stages.train.forward import forward
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.passes import Workers, chunks_of_worker
from meow_ray.stages.train.zero import Model

GRAM_FILE = "gram.safetensors"
"""The roots, `[rows, in]` by the name of the layer, in the folder of an adapter."""
WRAPPER = "base_model.model."
"""What PEFT puts before the name of each module of the model that it adapts."""
_ROWS_PER_COLUMN = 2
"""Inputs are reduced to a root when they have more rows than this, for each of their columns."""


def root_of(inputs: Any) -> Any:
    """Returns the root of the Gram matrix of some inputs.

    Args:
        inputs: X, `[tokens, in]`.

    Returns:
        R, `[min(tokens, in), in]` in float32 with RᵀR = XᵀX: the triangular factor of X.
    """
    import torch

    # contiguous, because safetensors writes no other tensors
    return torch.linalg.qr(inputs.double(), mode="r").R.float().contiguous()


class Root:
    """The root of the Gram matrix of a layer's inputs, which come in pieces."""

    def __init__(self) -> None:
        self._pieces: list[Any] = []
        self._num_rows = 0

    def add(self, inputs: Any) -> None:
        """Adds inputs, `[..., in]`; keeps no more than a few times the rows of the root."""
        rows = inputs.detach().flatten(0, -2).float().cpu()
        self._pieces.append(rows)
        self._num_rows += rows.shape[0]
        if self._num_rows > _ROWS_PER_COLUMN * rows.shape[1]:
            self._pieces = [self.value()]
            self._num_rows = self._pieces[0].shape[0]

    def value(self) -> Any:
        """Returns the root of all inputs that were added, `[rows, in]`."""
        import torch

        return root_of(torch.cat(self._pieces))


def measure(job: Job, model: Model, data: Dataset, workers: Workers) -> dict[str, Any]:
    """Returns the roots for the inputs of all adapted layers, by the name of the layer.

    The pairs are those of the items, in all wordings: what the request trains on, without the
    retain set. Each is read alone, so that no input is padding. Every worker calls this and takes
    a part of the pairs; the first one gets the roots, the others get none.

    Args:
        job: how batches are laid out.
        model: the model with its adapters, after training.
        data: the pairs.
        workers: the position of this worker.
    """
    import torch

    network = model.engine.module
    network.eval()
    roots: dict[str, Root] = {}
    rows = range(data.pairs.num_rows - data.num_retain)
    for chunk, is_own in chunks_of_worker([[row] for row in rows], workers):
        items = [{"pair": data.pair(row)} for row in chunk]
        laid_out = layout.lay_out(
            items, model.pad, model.engine.device, packed=job.resources.packing
        )
        seen = roots if is_own else {}
        with _recording(network, seen), torch.no_grad():
            # all logits, so that a head with an adapter reads all tokens as well
            forward(network, laid_out, keeps_logits=False, layer=None)
    network.train()
    return _joined({name: root.value() for name, root in roots.items()}, workers)


@contextmanager
def _recording(network: Any, roots: dict[str, Root]) -> Iterator[None]:
    """Adds what adapted layers read to their roots, while the network runs."""
    from peft.tuners.lora import LoraLayer

    def recorder(name: str) -> Any:
        def record(layer: Any, inputs: tuple[Any, ...]) -> None:
            roots.setdefault(name, Root()).add(inputs[0])

        return record

    hooks = [
        module.register_forward_pre_hook(recorder(name.removeprefix(WRAPPER)))
        for name, module in network.named_modules()
        if isinstance(module, LoraLayer)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _joined(roots: dict[str, Any], workers: Workers) -> dict[str, Any]:
    """Returns the roots of the inputs of all workers to the first one, and none to the others."""
    import torch

    if workers.world_size == 1:
        return roots
    parts: list[Any] | None = [None] * workers.world_size if workers.rank == 0 else None
    torch.distributed.gather_object(roots, parts)
    if parts is None:
        return {}
    names = {name for part in parts for name in part}  # a worker may have had no pair
    return {
        name: root_of(torch.cat([part[name] for part in parts if name in part]))
        for name in sorted(names)
    }
