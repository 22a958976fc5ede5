"""The structure of a model without its weights: names of its parts, and a small copy to try."""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from typing import Any

from meow_ray.models import refs
from meow_ray.models.refs import ModelRef

MLP_OUTPUTS = "mlp_outputs"
"""In place of a regular expression of parameters: the last matrices of feed-forward networks."""
MLP_MATRICES = "mlp_matrices"
"""The same for all matrices of feed-forward networks, into them and out of them."""
NUM_BLOCKS = 3
"""The number of blocks, up to the one that is read, in which RMU updates parameters."""

SMALL: Mapping[str, int] = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "word_embed_proj_dim": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
"""The sizes of a small model, by the names that configurations give them."""


@cache
def skeleton(ref: ModelRef) -> Any:
    """Returns a model whose parameters have names and shapes, but no values."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            deepcopy(refs.load_model_config(ref)), trust_remote_code=ref.trust_remote_code
        )


def small_copy(ref: ModelRef) -> Any:
    """Returns a model of the same architecture, with small sizes and random weights, on CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    config = deepcopy(refs.load_model_config(ref))
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        _shrink(part)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            config, trust_remote_code=ref.trust_remote_code, dtype=torch.float32
        ).eval()


def _shrink(config: Any) -> None:
    num_layers = getattr(config, "num_hidden_layers", None)
    for name, size in SMALL.items():
        present = getattr(config, name, None)
        if isinstance(present, int) and present > size:
            setattr(config, name, size)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == num_layers:
            setattr(config, name, value[: SMALL["num_hidden_layers"]])
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(config, name, None) is not None:
            setattr(config, name, 0)


# --- names --------------------------------------------------------------------------------------


def blocks_of(model: Any) -> str | None:
    """Returns the name of the list of a model's blocks, such as `model.layers`; None if unknown."""
    import torch

    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers:
            return str(name)
    return None


def mlp_outputs(model: Any, layer: int) -> list[str]:
    """Returns the parameters that RMU updates: those of the block `layer` and two before it.

    They are the matrices outside attention that map another width to that of the hidden states,
    such as `mlp.down_proj.weight`; see RMU, arXiv 2403.03218, appendix B.
    """
    blocks = blocks_of(model)
    if blocks is None:
        return []
    first = max(0, layer - NUM_BLOCKS + 1)
    return [
        f"{blocks}.{number}.{name}"
        for number in range(first, layer + 1)
        for name in _outputs_of_block(model, f"{blocks}.{number}")
    ]


def mlp_matrices(model: Any) -> list[str]:
    """Returns the matrices into and out of the feed-forward networks of all blocks.

    Those out of them are as in `mlp_outputs`. Those into them map from the width of the hidden
    states to that which the others map back from, or to twice this width if two are in one.
    """
    blocks = blocks_of(model)
    if blocks is None:
        return []
    hidden = model.config.get_text_config().hidden_size
    found: list[str] = []
    for number in range(len(model.get_submodule(blocks))):
        block = f"{blocks}.{number}"
        matrices = list(_matrices_of_block(model, block))
        inner = {width_in for _, width_in, width_out in matrices if width_out == hidden != width_in}
        widths_in = inner | {2 * width for width in inner}
        found += [
            f"{block}.{name}"
            for name, width_in, width_out in matrices
            if (width_in == hidden and width_out in widths_in)
            or (width_out == hidden and width_in in inner)
        ]
    return found


def _outputs_of_block(model: Any, name: str) -> Iterator[str]:
    """Yields the matrices of a block's feed-forward network that lead out of it."""
    hidden = model.config.get_text_config().hidden_size
    for parameter_name, width_in, width_out in _matrices_of_block(model, name):
        if width_out == hidden != width_in:
            yield parameter_name


def _matrices_of_block(model: Any, name: str) -> Iterator[tuple[str, int, int]]:
    """Yields the matrices of a block outside attention, with the widths they map from and to."""
    block = model.get_submodule(name)
    for parameter_name, parameter in block.named_parameters():
        shape = _shape(parameter)
        if len(shape) not in (2, 3) or "att" in parameter_name:
            continue
        owner = block.get_submodule(parameter_name.rpartition(".")[0])
        width_in, width_out = shape[-1], shape[-2]
        if type(owner).__name__ == "Conv1D":  # of GPT-2, stored the other way round
            width_in, width_out = width_out, width_in
        yield parameter_name, width_in, width_out


def _shape(parameter: Any) -> tuple[int, ...]:
    """Returns the shape of a whole parameter, of which with ZeRO 3 a worker has only a part."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def trained_parameters(model: Any, trainable: str, layer: int | None) -> set[str]:
    """Returns the names of the parameters that an objective updates.

    Args:
        model: the model, or its skeleton.
        trainable: a regular expression of whole names, `MLP_OUTPUTS` or `MLP_MATRICES`.
        layer: the block that the objective reads, for `MLP_OUTPUTS`.
    """
    if trainable == MLP_OUTPUTS:
        return set(mlp_outputs(model, layer or 0))
    if trainable == MLP_MATRICES:
        return set(mlp_matrices(model))
    pattern = re.compile(trainable)
    return {name for name, _ in model.named_parameters() if pattern.fullmatch(name)}


def linear_layers(model: Any) -> list[str]:
    """Returns the names of the modules that adapters can be attached to."""
    return [
        str(name)
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D", "Embedding")
    ]


def embeddings(model: Any) -> list[str]:
    """Returns the names of the modules that turn tokens or positions into vectors."""
    return [
        str(name) for name, module in model.named_modules() if type(module).__name__ == "Embedding"
    ]
