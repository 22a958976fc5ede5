"""The section `resources`: where stages run and how fast, which never changes what they compute."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from meow_ray.config.fields import Section, field


class NodeType(Section):
    """A kind of node that an autoscaling cluster adds on demand."""

    cpus: float = field(1.0, "CPUs of each node", "CPUs", gt=0)
    gpus: int = field(0, "GPUs of each node", "GPUs", ge=0)
    max_nodes: int = field(1, "largest number of these nodes", "nodes", gt=0)
    labels: dict[str, str] = field({}, "labels of these nodes in the configuration of the cluster")


NODE_LABELS: dict[str, Any] = {
    "default": {},
    "description": "use only nodes with these labels, such as {meow-group: training}; {} is all",
}


class EngineResources(Section):
    """The actors of a stage that generates or scores text."""

    num_actors: (
        Annotated[int, Field(gt=0)]
        | tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    ) = field(
        1,
        "number of actors, each with its own engine; [min, max] lets the number grow and shrink",
        "actors",
    )
    gpus_per_actor: Annotated[int, Field(ge=0)] | Literal["auto"] = field(
        "auto", "GPUs per actor; auto is tensor_parallel_size, or 0 on a cluster without GPUs"
    )
    cpus_per_actor: float = field(0.5, "CPUs that Ray reserves per actor", "CPUs", ge=0)
    threads: int | None = field(
        None,
        "compute threads per engine on CPU; null is the node's cores divided by the most actors",
        gt=0,
    )
    tensor_parallel_size: int = field(1, "GPUs that share the weights of one engine", "GPUs", gt=0)
    batch_size: int = field(64, "rows that an actor gets at once", "rows", gt=0)
    cpu_tasks: bool | Literal["auto"] = field(
        "auto",
        "tokenise and score in separate CPU tasks; auto does so if the engine has GPUs",
    )
    kv_cache_gib: float = field(1.0, "size of vLLM's KV cache on CPU", "GiB", gt=0)
    node_labels: dict[str, str] = field(**NODE_LABELS)
    gpu_memory_utilization: float = field(
        0.9, "share of a GPU's memory that vLLM may use", gt=0, le=1
    )

    @property
    def actors(self) -> tuple[int, int]:
        """The smallest and the largest number of actors."""
        return (
            self.num_actors
            if isinstance(self.num_actors, tuple)
            else (self.num_actors, self.num_actors)
        )

    @model_validator(mode="after")
    def _pool_in_order(self) -> "EngineResources":
        if self.actors[0] > self.actors[1]:
            raise ValueError("num_actors is [min, max], but min is larger than max")
        return self


class InvertResources(EngineResources):
    """The actors of `invert`, and the requests to an endpoint."""

    concurrency: int = field(
        16, "requests that an actor has in flight at an endpoint", "requests", gt=0
    )
    timeout: float = field(120.0, "time limit of a request to an endpoint", "s", gt=0)
    max_retries: int = field(
        6, "retries, with back-off, of a request that an endpoint refuses or fails", ge=0
    )


class TrainResources(Section):
    """The workers of a stage that trains."""

    num_workers: Annotated[int, Field(gt=0)] | Literal["auto"] = field(
        "auto",
        "number of ZeRO workers; auto is one per GPU, or one per node on a cluster without GPUs",
        "workers",
    )
    max_workers: int | None = field(
        None, "largest number of workers that num_workers auto may choose", "workers", gt=0
    )
    min_workers: int | None = field(
        None,
        "continue with this many or more if nodes are lost, until they return; null waits for them",
        "workers",
        gt=0,
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] | Literal["auto"] = field(
        "auto",
        "CPUs that Ray reserves per worker, which computes with as many threads if it has no GPU; "
        "auto is 1 beside a GPU, else as many as the nodes have for each worker",
        "CPUs",
    )
    node_labels: dict[str, str] = field(**NODE_LABELS)
    micro_batch_size: int = field(4, "pairs per forward pass of one worker", "pairs", gt=0)
    zero_stage: Literal[1, 2, 3] = field(2, "DeepSpeed ZeRO stage")
    packing: bool = field(True, "pack the pairs of a forward pass into one row without padding")
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = field(
        "auto",
        "attention kernel; auto is flash_attention_2 if it is installed and the model runs in "
        "bfloat16 on a GPU, else the default of the model",
    )
    gradient_checkpointing: bool = field(False, "compute activations twice to save memory")
    offload: Literal["none", "cpu", "nvme"] = field(
        "none", "where optimiser states are held; with zero_stage 3 the weights as well"
    )
    nvme_path: str | None = field(None, "folder on a local disk of each node, for offload nvme")
    max_failures: int = field(
        3, "worker failures after which training resumes; one more fails the stage", ge=0
    )
    checkpoint_every: int = field(1, "epochs between checkpoints", "epochs", gt=0)

    def workers(self, available: int) -> int:
        """Returns `num_workers`; for `auto` the number of available workers, at least 1.

        Args:
            available: number of workers that the cluster can hold.
        """
        if self.num_workers != "auto":
            return self.num_workers
        return max(1, min(available, self.max_workers or available))


class Resources(Section):
    """Hardware of the stages. It never changes a result beyond rounding."""

    autoscaling: tuple[NodeType, ...] = field(
        (),
        "kinds of nodes that an autoscaling cluster can add, each with cpus, gpus, max_nodes and "
        "labels; [] if the cluster cannot grow",
    )
    memorize: TrainResources = TrainResources()
    invert: InvertResources = InvertResources()
    memo: EngineResources = EngineResources(batch_size=16)
    train: TrainResources = TrainResources()
    evaluate: EngineResources = EngineResources()
    audit: EngineResources = EngineResources()
