"""Memory of inference engines: their weights, and their cache of keys and values."""

from dataclasses import dataclass

from meow_ray.config import Config, EngineResources, ModelSection
from meow_ray.errors import MeowError
from meow_ray.planning.shapes import Architecture, read_shapes

GIB = 1 << 30


@dataclass(frozen=True)
class EngineRow:
    """The bytes that the engine of one stage takes on each of its GPUs."""

    stage: str
    model: str
    gpus: int
    """GPUs over which the weights are partitioned."""
    weights: int
    cache: int
    """Keys and values of one token."""
    context: int
    """Length of the longest sequence, in tokens."""
    room: int | None
    """Tokens whose cache fits next to the weights; None if the memory of a GPU is unknown."""
    fits: bool | None
    """Whether the longest sequence fits; None if the memory of a GPU is unknown."""
    room_on_cpu: int
    """Tokens whose cache fits into `kv_cache_gib`, which is vLLM's cache on CPU."""


def engine_rows(
    config: Config, target_name: str, target: Architecture, gpu_memory: int | None
) -> tuple[tuple[EngineRow, ...], str]:
    """Returns the memory of each stage's engine, and the reasons for which engines are omitted.

    The engine of `invert` is included if its model runs on the cluster.

    Args:
        config: the configuration.
        target_name: the target's name.
        target: the target's shapes.
        gpu_memory: bytes of one GPU; None leaves `room` and `fits` open.
    """
    rows = list[EngineRow]()
    omitted = list[str]()
    engines = list[tuple[str, str, Architecture, ModelSection]]()
    if config.invert.engine != "openai" and config.invert.model:
        try:
            generator_name, generator = read_shapes(config.invert, "invert.model")
            engines.append(("invert", generator_name, generator, config.invert))
        except MeowError as error:  # training can be planned without the generator
            omitted.append(str(error))
    stages = ["memo", "evaluate", *(["audit"] if config.pipeline.audit else [])]
    engines += [(stage, target_name, target, config.target) for stage in stages]
    for stage, name, architecture, section in engines:
        if architecture.dtype == "quantized":
            omitted.append(
                f"{stage}: the weights of {name} are quantised; their memory is not estimated."
            )
            continue
        resources: EngineResources = getattr(config.resources, stage)
        rows.append(_engine_row(stage, name, architecture, section, resources, gpu_memory))
    return tuple(rows), " ".join(omitted)


def _engine_row(
    stage: str,
    name: str,
    architecture: Architecture,
    section: ModelSection,
    resources: EngineResources,
    gpu_memory: int | None,
) -> EngineRow:
    gpus = resources.tensor_parallel_size
    context = min(architecture.context, section.max_model_len or architecture.context)
    dtype = architecture.dtype if section.dtype == "auto" else section.dtype
    itemsize = 4 if dtype == "float32" else 2
    weights = itemsize * architecture.parameters // gpus
    heads = max(1, architecture.cache_heads // gpus)  # a head is never split
    cache = 2 * itemsize * architecture.layers * heads * architecture.head_size
    room = None
    if gpu_memory is not None:
        share = resources.gpu_memory_utilization * gpu_memory
        room = max(0, int(share - weights) // cache)
    return EngineRow(
        stage=stage,
        model=name,
        gpus=gpus,
        weights=weights,
        cache=cache,
        context=context,
        room=room,
        fits=None if room is None else room >= context,
        room_on_cpu=int(resources.kv_cache_gib * GIB) // cache,
    )
