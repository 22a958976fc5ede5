"""Memory of inference engines: weights, and the cache of keys and values."""

from dataclasses import dataclass

from meow_ray.config import Config, EngineResources, ModelSection
from meow_ray.errors import MeowError
from meow_ray.planning import shapes
from meow_ray.planning.shapes import Architecture


@dataclass(frozen=True)
class EngineRow:
    """Bytes that an engine of a stage takes of each of its GPUs."""

    stage: str
    model: str
    gpus: int
    """That its weights are cut over."""
    weights: int
    cache: int
    """Keys and values of one token."""
    context: int
    """Tokens of the longest sequence."""
    room: int | None
    """Tokens that fit beside the weights into the share of a GPU's memory that it may take; None without a GPU."""
    fits: bool | None
    """The longest sequence does."""


def engines(
    config: Config, name: str, target: Architecture, gpu_memory: int | None
) -> tuple[tuple[EngineRow, ...], str]:
    """Says what an engine of each stage takes (of `invert`, if its model runs here), and which are left out and why.

    Args:
        config: the configuration.
        name: of the target.
        target: its shapes.
        gpu_memory: of one GPU; None leaves out what fits.
    """
    left_out = list[str]()
    found: list[tuple[str, str, Architecture, ModelSection]]
    found = [(stage, name, target, config.target) for stage in ("memo", "evaluate")]
    if config.invert.engine != "openai" and config.invert.model:
        try:
            found.insert(0, ("invert", *shapes.read(config.invert, "invert.model"), config.invert))
        except MeowError as error:  # training can be planned without it
            left_out.append(str(error))
    rows = []
    for stage, name, a, section in found:
        if a.dtype == "quantized":
            left_out.append(
                f"{stage}: the weights of {name} are quantised, which is not planned for."
            )
            continue
        own: EngineResources = getattr(config.resources, stage)
        size = 4 if (a.dtype if section.dtype == "auto" else section.dtype) == "float32" else 2
        gpus, context = own.tensor_parallel_size, min(a.context, section.max_model_len or a.context)
        weights, heads = (
            size * a.parameters // gpus,
            max(1, a.cache_heads // gpus),
        )  # a head is not cut
        cache = 2 * size * a.layers * heads * a.head_size
        room = None
        if gpu_memory is not None:
            room = max(0, int(own.gpu_memory_utilization * gpu_memory - weights) // cache)
        fits = None if room is None else room >= context
        rows.append(EngineRow(stage, name, gpus, weights, cache, context, room, fits))
    return tuple(rows), " ".join(left_out)
