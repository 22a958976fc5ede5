"""The whole configuration: one section a stage, and those of the run."""

from pydantic import model_validator

from meow_ray.config.evaluation import Evaluate, Report
from meow_ray.config.fields import Section, field
from meow_ray.config.resources import Resources
from meow_ray.config.sections import Ingest, Invert, Memo, Select, Target
from meow_ray.config.training import Memorize, Train


class PipelineSection(Section):
    """The run as a whole."""

    rounds: int = field(
        1,
        "times that what is still memorised goes round again, with fresh inverted facts",
        "rounds",
        gt=0,
    )
    threshold: float = field(
        0.5, "facts whose MEMO in the tuned model is above it go round again", ge=0, le=1
    )


class Tracking(Section):
    """Where training writes its curves; never changes a result."""

    tensorboard: bool = field(True, "event files below the storage root")
    mlflow: str | None = field(None, "tracking URI of an MLflow server or folder")
    wandb: str | None = field(
        None, "project on Weights & Biases; its key comes from the environment"
    )


class Storage(Section):
    """Where artifacts live."""

    root: str = field("runs/meow", "URI that all nodes reach: local path, NFS, s3://, gs://")


class Config(Section):
    """The whole configuration."""

    target: Target = Target()
    memorize: Memorize | None = None
    ingest: Ingest = Ingest()
    invert: Invert = Invert()
    memo: Memo = Memo()
    select: Select = Select()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    pipeline: PipelineSection = PipelineSection()
    tracking: Tracking = Tracking()
    storage: Storage = Storage()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _moments(self) -> "Config":
        if "min_k_pp" in self.evaluate.membership and self.target.engine != "transformers":
            raise ValueError(
                "evaluate.membership: min_k_pp needs whole distributions: set target.engine=transformers"
            )
        return self
