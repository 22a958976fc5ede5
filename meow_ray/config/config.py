"""The whole configuration: one section per stage, and the sections of the run."""

from pydantic import model_validator

from meow_ray.config.auditing import Audit
from meow_ray.config.evaluation import Evaluate, Report
from meow_ray.config.fields import Section, field
from meow_ray.config.resources import Resources
from meow_ray.config.sections import Ingest, Invert, Memo, Select, Target
from meow_ray.config.synthetic import Neighbours, Paraphrases, Twins
from meow_ray.config.training import Memorize, Train


class PipelineSection(Section):
    """Rounds of forgetting, and whether the result is audited."""

    rounds: int = field(
        1,
        "largest number of rounds; a fact that is still memorised gets new inverted facts",
        "rounds",
        gt=0,
    )
    threshold: float = field(
        0.5, "facts with a higher MEMO in the tuned model take part in the next round", ge=0, le=1
    )
    audit: bool = field(False, "attack the tuned model after `evaluate`; see the section `audit`")


class Tracking(Section):
    """Where training writes its curves. These settings never change a result."""

    tensorboard: bool = field(True, "write event files to the storage root")
    mlflow: str | None = field(None, "tracking URI of an MLflow server or folder; null writes none")
    wandb: str | None = field(
        None,
        "project on Weights & Biases; the API key comes from the environment; null writes none",
    )


class Storage(Section):
    """Where artifacts are stored."""

    root: str = field(
        "runs/meow", "URI that all nodes can reach: a local path, NFS, s3:// or gs://"
    )


class Config(Section):
    """The whole configuration."""

    target: Target = Target()
    memorize: Memorize | None = None
    ingest: Ingest = Ingest()
    invert: Invert = Invert()
    paraphrases: Paraphrases = Paraphrases()
    neighbours: Neighbours = Neighbours()
    twins: Twins = Twins()
    memo: Memo = Memo()
    select: Select = Select()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    audit: Audit = Audit()
    report: Report = Report()
    pipeline: PipelineSection = PipelineSection()
    tracking: Tracking = Tracking()
    storage: Storage = Storage()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _moments(self) -> "Config":
        if "min_k_pp" in self.evaluate.membership and self.target.engine != "transformers":
            raise ValueError(
                "evaluate.membership: min_k_pp needs the whole distribution of each token. "
                "Set target.engine=transformers or remove min_k_pp"
            )
        return self
