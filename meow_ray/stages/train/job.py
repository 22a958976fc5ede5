"""A fine-tuning job: everything that a worker needs to know."""

from dataclasses import dataclass, field
from typing import Any

from meow_ray.config import FineTuning, TrainResources
from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.models.refs import ModelRef
from meow_ray.stages.train.batches import Dataset
from meow_ray.stages.train.objective_spec import ObjectiveSpec


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs to know; the same value for each."""

    model: ModelRef
    pairs: str
    """URI of a Parquet file of `batches.TOKENS`."""
    spec: FineTuning
    objective: ObjectiveSpec
    resources: TrainResources
    out: str
    """URI of the folder that the model is exported to."""
    end: int | None = None
    """The token that ends an answer; generation by the exported model stops there."""
    watched: str | None = None
    """URI of the pairs that training watches; see `watched`. None if it watches none."""
    first_adapters: str | None = None
    """URI of the tensors that adapters start from; see `fila`. None starts from zero."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """A user's own settings of DeepSpeed."""

    def load(self) -> Dataset:
        """Reads the tokenised pairs.

        Raises:
            MeowError: there are none.
        """
        data = Dataset(storage.read_table([self.pairs]), self.spec)
        if not data.roles:
            raise MeowError(
                "There is nothing to train on: no pair of question and answer was selected. "
                "`meow status` shows the rows of each stage."
            )
        return data

    def load_first_adapters(self) -> dict[str, Any] | None:
        """Reads the tensors that adapters start from; None if they start from zero."""
        if self.first_adapters is None:
            return None
        from safetensors.torch import load

        return load(storage.read_bytes(self.first_adapters))

    def num_steps(self, data: Dataset) -> int:
        """Returns the largest number of optimiser steps."""
        is_open = self.objective.until == "never_seen"
        return self.objective.max_steps if is_open else data.num_steps

    def accumulation(self, world_size: int) -> int:
        """Returns the number of micro-batches of one worker per optimiser step."""
        return -(-self.spec.batch_size // (world_size * self.resources.micro_batch_size))
