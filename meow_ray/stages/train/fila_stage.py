"""The stage `fila`: what adapters start from, by the Fisher information of forget and retain set.

It is computed once, in one process that holds the target and, for each adapted matrix, two more of
the same size in float32. All workers of `train` read the same tensors, however many they are.
"""

from dataclasses import replace
from typing import Any

from meow_ray.config import Config, FineTuning, Lora
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import OutsideInput
from meow_ray.core.stage import Context, Input, Stage
from meow_ray.models import refs
from meow_ray.models.prompts import Prompter
from meow_ray.models.refs import ModelRef
from meow_ray.stages.inputs import TARGET, TEMPLATE, model_ref, target_prompt
from meow_ray.stages.model_checks import check_target
from meow_ray.stages.train import batches, fila, objectives
from meow_ray.stages.train.adapters import with_adapters
from meow_ray.stages.train.batches import Dataset
from meow_ray.stages.train.objective_spec import ObjectiveSpec
from meow_ray.stages.train.stage import pair_inputs, pairs_from_inputs

ROLES = ("forget", "retain")


def _fila(context: Context) -> dict[str, Any]:
    """Writes the tensors that adapters start from; returns the figures for the manifest."""
    from meow_ray.distributed import cluster, placement

    config = context.config
    resources = config.resources.train
    lora = config.train.lora
    assert lora is not None
    model = model_ref(context.inputs["target"])
    model = replace(model, trust_remote_code=config.target.trust_remote_code)
    prompter = Prompter.of(refs.load_tokenizer(model), config.target)
    pairs = storage.join(context.work, "pairs.parquet")
    objective: ObjectiveSpec = context.inputs["retained"].value
    read = pairs_from_inputs(context, ROLES, objective)
    batches.write_token_pairs(read, prompter, config.train.max_length, pairs)
    figures: dict[str, Any] = cluster.call(
        write_tensors,
        model,
        pairs,
        lora,
        context.path(fila.FILE),
        cpus=placement.cpus_per_worker("train", config.resources),
        gpus=int(placement.has_gpus(config.resources, resources.node_labels)),
        labels=resources.node_labels,
    )
    return figures


def write_tensors(ref: ModelRef, pairs: str, lora: Lora, uri: str) -> dict[str, Any]:
    """Computes the tensors in a task of the cluster and writes them to a file."""
    import torch
    from safetensors.torch import save

    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    model = with_adapters(refs.load_in_float32(ref).to(device).eval(), lora)
    data = Dataset(storage.read_table([pairs]), FineTuning())  # takes no steps, so any settings do
    forget, retain = ([data.pair(row) for row in data.rows_of(role)] for role in ROLES)
    tensors = fila.first_adapters(model, forget, retain, device)
    storage.write_bytes(uri, save(tensors))
    return {"layers": len(tensors) // 2, "forget": len(forget), "retain": len(retain)}


# --- the stage ------------------------------------------------------------------------------------


def _retained(config: Config, verify: bool) -> Artifact:
    """Returns the part of the objective that the stage depends on: what it retains."""
    objective = objectives.configured(config.train)
    digest = storage.json_digest([objective.retain])
    return Artifact("retained", "", digest, value=objective)


def _inputs(config: Config) -> tuple[Input, ...]:
    objective = objectives.configured(config.train)
    return (*pair_inputs(ROLES, objective), TARGET, OutsideInput("retained", _retained))


def _is_enabled(config: Config) -> bool:
    return fila.is_configured(config.train)


FILA = Stage(
    name="fila",
    artifact="fila",
    version=1,
    sections=("train.lora", "train.max_length", *TEMPLATE, "target.trust_remote_code"),
    inputs=_inputs,
    run=_fila,
    prompt=target_prompt,
    enabled=_is_enabled,
    resources="train",
    checks=(check_target,),
)
