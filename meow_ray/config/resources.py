"""The sections of the configuration that say where and how fast, never what."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from meow_ray.config.fields import Section, field


class NodeType(Section):
    """Nodes that an autoscaling cluster adds on demand."""

    cpus: float = field(1.0, "CPUs of such a node", "CPUs", gt=0)
    gpus: int = field(0, "GPUs of such a node", "GPUs", ge=0)
    max_nodes: int = field(1, "how many of them there may be", "nodes", gt=0)
    labels: dict[str, str] = field({}, "their labels, as the cluster's configuration gives them")


NODE_LABELS: dict[str, Any] = {
    "default": {},
    "description": "labels that a node must have to be used, such as {meow-group: training}; {}: any node",
}


class EngineResources(Section):
    """The actor pool of a generating or scoring stage."""

    num_actors: (
        Annotated[int, Field(gt=0)]
        | tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    ) = field(
        1,
        "actors, each with an engine of its own; [min, max] is a pool that grows and shrinks",
        "actors",
    )
    gpus_per_actor: Annotated[int, Field(ge=0)] | Literal["auto"] = field(
        "auto", "GPUs of one actor; auto is tensor_parallel_size where there are GPUs"
    )
    cpus_per_actor: float = field(0.5, "CPUs that Ray reserves for one actor", "CPUs", ge=0)
    threads: int | None = field(
        None,
        "compute threads of an engine on CPU; null is the node's cores over the most actors",
        gt=0,
    )
    tensor_parallel_size: int = field(
        1, "GPUs that one engine's weights are cut over", "GPUs", gt=0
    )
    batch_size: int = field(64, "rows given to an actor at once", "rows", gt=0)
    cpu_tasks: bool | Literal["auto"] = field(
        "auto",
        "tokenise and score in tasks of their own; auto: if the engine has GPUs, else they share its cores",
    )
    kv_cache_gib: float = field(1.0, "KV cache of vLLM on CPU", "GiB", gt=0)
    node_labels: dict[str, str] = field(**NODE_LABELS)
    gpu_memory_utilization: float = field(
        0.9, "share of a GPU's memory that vLLM may take", gt=0, le=1
    )

    @property
    def actors(self) -> tuple[int, int]:
        """The least and the most actors of the pool."""
        return (
            self.num_actors
            if isinstance(self.num_actors, tuple)
            else (self.num_actors, self.num_actors)
        )

    @model_validator(mode="after")
    def _pool_in_order(self) -> "EngineResources":
        if self.actors[0] > self.actors[1]:
            raise ValueError("num_actors: [min, max] with min above max")
        return self


class InvertResources(EngineResources):
    """The actor pool of `invert`, and how an endpoint is asked."""

    concurrency: int = field(
        16, "requests that one actor has under way at an endpoint", "requests", gt=0
    )
    timeout: float = field(120.0, "patience with one request to an endpoint", "s", gt=0)
    max_retries: int = field(
        6, "retries with back-off of a request that an endpoint refuses or fails", ge=0
    )


class TrainResources(Section):
    """The workers of a fine-tuning stage."""

    num_workers: Annotated[int, Field(gt=0)] | Literal["auto"] = field(
        "auto", "ZeRO workers; auto is one a GPU, or on CPU two", "workers"
    )
    max_workers: int | None = field(None, "upper bound of auto", "workers", gt=0)
    min_workers: int | None = field(
        None,
        "go on with as few when nodes are lost, back up when they return; null waits for all",
        "workers",
        gt=0,
    )
    cpus_per_worker: float = field(1.0, "CPUs that Ray reserves for one worker", "CPUs", gt=0)
    node_labels: dict[str, str] = field(**NODE_LABELS)
    micro_batch_size: int = field(4, "pairs in one forward pass of one worker", "pairs", gt=0)
    zero_stage: Literal[1, 2, 3] = field(2, "DeepSpeed ZeRO stage")
    packing: bool = field(True, "put the pairs of a forward pass into one row without padding")
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = field(
        "auto",
        "attention kernel; auto is flash attention where it is installed, the model is in bfloat16 and on a GPU",
    )
    gradient_checkpointing: bool = field(False, "compute activations twice instead of keeping them")
    offload: Literal["none", "cpu", "nvme"] = field(
        "none", "where optimiser states live, with ZeRO 3 weights too"
    )
    nvme_path: str | None = field(None, "folder on a local disk of each node (offload nvme)")
    max_failures: int = field(3, "worker failures survived before the stage gives up", ge=0)
    checkpoint_every: int = field(1, "epochs between two checkpoints", "epochs", gt=0)

    def workers(self, available: int) -> int:
        """Returns the number of workers where `auto` may take so many, and takes one at least."""
        if self.num_workers != "auto":
            return self.num_workers
        return max(1, min(available, self.max_workers or available))


class Resources(Section):
    """Hardware a stage may use; never changes a result beyond rounding."""

    autoscaling: tuple[NodeType, ...] = field(
        (),
        "nodes that the cluster may have if it grows: cpus, gpus, max_nodes and labels of each kind; (): those there",
    )
    memorize: TrainResources = TrainResources()
    invert: InvertResources = InvertResources()
    memo: EngineResources = EngineResources(batch_size=16)
    train: TrainResources = TrainResources()
    evaluate: EngineResources = EngineResources()
