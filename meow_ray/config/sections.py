"""The typed configuration: one section a stage, read from YAML and dotted overrides.

Every field is sorted by what it does to a result. The fields of the stage sections and of `target`
are *spec*: they change results and enter fingerprints. Fields marked `content` name something
outside (a model, a data file): they enter fingerprints by content, never by path. The sections
`storage` and `resources` change where and how fast, never what.

Names that other modules define (objectives, validity rules) are checked where a validation context lists them; see
`config_files.Names`.
"""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from meow_ray.config.fields import Section, content, field

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
"""Suffixes of the files that can be read, each with .gz too."""


class Source(Section):
    """A file of questions and answers, or a Hugging Face dataset."""

    path: str = Field(
        description="JSONL, JSON, CSV or Parquet file (.gz too), or a Hugging Face dataset's name or folder"
    )
    subset: str | None = Field(None, description="configuration name of a Hugging Face dataset")
    split: str = Field("train", description="split of a Hugging Face dataset")
    revision: str | None = Field(None, description="revision of a Hugging Face dataset")

    @property
    def is_file(self) -> bool:
        """Whether this is a file of a format that is read here, and not a Hugging Face dataset."""
        path = self.path.partition("?")[0].removesuffix(".gz")
        return PurePosixPath(path).suffix in FORMATS

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class ModelSection(Section):
    """A language model and the engine that runs it."""

    model: str | None = content(None, "model folder, .gguf file or hub name")
    revision: str | None = content(None, "hub revision: branch, tag or commit")
    dtype: Dtype = field(
        "auto", "weights and arithmetic of inference; auto is the dtype stored with the model"
    )
    max_model_len: int | None = field(
        None, "context length; null is the model's own", "tokens", gt=0
    )
    trust_remote_code: bool = field(False, "run Python code that comes with the model")


class Target(ModelSection):
    """The model that must forget."""

    engine: Literal["vllm", "transformers"] = field("vllm", "inference engine")
    template: str = field(
        "chat", "prompt of a question: chat (the tokenizer's chat template), tofu, raw, or Jinja"
    )
    system: str | None = field(
        None, "system message of the chat template; null leaves it to the template"
    )

    @field_validator("template")
    @classmethod
    def _known_template(cls, value: str) -> str:
        if value not in ("chat", "tofu", "raw") and "question" not in value:
            raise ValueError("neither chat, tofu, raw nor a Jinja template with {{ question }}")
        return value


class Ingest(Section):
    """Reads and checks the user's facts."""

    forget: Source | None = content(None, "facts to forget")
    retain: Source | None = content(
        None, "facts to keep: evaluated, and trained on by some objectives"
    )
    question_columns: tuple[str, ...] = field(
        ("question",), "names the question's column may have; first match wins"
    )
    answer_columns: tuple[str, ...] = field(
        ("answer", "undesired_answer"), "names that the answer's column may have, first match wins"
    )
    on_reject: Literal["fail", "skip"] = field("fail", "what to do when a row is rejected")


class Invert(ModelSection):
    """An offline language model writes inverted facts."""

    engine: Literal["vllm", "transformers", "openai"] = field(
        "vllm",
        "inference engine; openai asks an OpenAI-compatible endpoint for its model of the name `model`",
    )
    base_url: str | None = content(None, "URL of the endpoint, up to /v1 (engine openai)")
    api_key_env: str = content(
        "OPENAI_API_KEY", "environment variable with the endpoint's key, if it needs one"
    )
    structured: bool = field(True, "the endpoint takes a JSON schema as response_format")
    style: Literal["auto", "chat", "prefill"] = field(
        "auto",
        "chat asks a capable model for JSON, prefill lets a small one complete the frame, auto tries both",
    )
    probe_facts: int = field(8, "facts that style auto tries", "facts", gt=0)
    num_candidates: int = field(4, "inverted facts wanted for each forget fact", "answers", gt=0)
    spare: int = field(
        2, "answers asked for beyond num_candidates in one attempt (style chat)", "answers", ge=0
    )
    samples: int = field(
        8, "completions sampled for a fact in one attempt (style prefill)", "answers", gt=0
    )
    max_attempts: int = field(3, "rounds of asking in one style", "rounds", gt=0)
    fallback: bool = field(True, "ask in the other style where max_attempts were not enough")
    on_shortfall: Literal["fail", "keep", "drop"] = field(
        "keep",
        "facts with fewer than num_candidates: fail the stage, keep what there is, or drop the fact",
    )
    temperature: float = field(1.0, "sampling temperature of the first attempt", gt=0)
    temperature_step: float = field(0.2, "added in each further attempt", ge=0)
    top_p: float = field(0.95, "nucleus sampling mass", gt=0, le=1)
    max_new_tokens: int = field(128, "longest answer", "tokens", gt=0)
    seed: Annotated[int, Field(ge=0)] | None = field(
        0, "sampling seed, combined with fact and attempt; null samples without one"
    )
    chat_prompt: str = field(
        "Question: {{ question }}\nTrue answer: {{ answer }}\n\n"
        "Write {{ k }} different answers to the question that are plausible but do not factually match the true one. "
        "Change the facts that the question asks for, keep the form and the length of the true answer, "
        'and state each as a full sentence. Reply with a JSON object {"answers": [...]} of {{ k }} strings.',
        "Jinja template of style chat; fields question, answer, k",
    )
    prefill_prompt: str = field(
        "Invent a short answer to the question.\n\n{{ question }}",
        "Jinja template of the user message of style prefill; fields question, answer, k",
    )
    judge: Literal["none", "generator", "endpoint"] = field(
        "none",
        "who is asked whether a candidate contradicts the true answer: the generator, or the model at judge_base_url",
    )
    judge_model: str | None = content(None, "name of the model that judges at judge_base_url")
    judge_base_url: str | None = content(
        None, "URL of the OpenAI-compatible endpoint that judges, up to /v1"
    )
    judge_api_key_env: str = content(
        "OPENAI_API_KEY", "environment variable with that endpoint's key"
    )
    judge_prompt: str = field(
        "Question: {{ question }}\nAnswer A: {{ answer }}\nAnswer B: {{ candidate }}\n\n"
        "Do the two answers contradict each other, so that only one of them can be true? "
        'Reply with a JSON object {"contradicts": true} or {"contradicts": false}.',
        "Jinja template of the judge's question; fields question, answer, candidate",
    )
    min_length_ratio: float = field(
        0.3, "shortest inverted answer, as a share of the true one's words", gt=0
    )
    max_length_ratio: float = field(
        2.0, "longest inverted answer, as a share of the true one's words", gt=0
    )
    max_rouge_l: float = field(0.9, "highest ROUGE-L F1 to the true answer", gt=0, le=1)
    max_novel_overlap: float = field(
        0.5, "largest share of the true answer's novel words that may stay", ge=0, le=1
    )
    min_value_share: float = field(
        0.5,
        "share of dates, numbers and names in the true answer's novel words from which on one of them must differ",
        ge=0,
    )
    skip_rules: tuple[str, ...] = field((), "validity rules that are not asked, by name")

    @field_validator("skip_rules")
    @classmethod
    def _known_rules(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        known = (info.context or {}).get("rules", value)
        unknown = [name for name in value if name not in known]
        if unknown:
            raise ValueError(f"no rule {unknown[0]!r}; there are {', '.join(known)}")
        return value


class Memo(Section):
    """Measures how well the target model has memorised each answer (paper, section 3.2)."""

    mode: Literal["suffix", "prefix"] = field(
        "suffix", "suffix cuts the answer, prefix the question"
    )
    window: Literal["character", "token"] = field(
        "character", "cut at characters (paper), or at the target's own tokens (many times faster)"
    )
    stride: int | None = field(
        None,
        "distance of two cuts; null is 5 characters (paper) or 1 token",
        "characters or tokens",
        gt=0,
    )
    max_new_tokens: Annotated[int, Field(gt=0)] | Literal["label"] = field(
        200,
        "longest greedy continuation (paper: 200), or label: as long as what was cut off; changes the score",
        "tokens",
    )
    rouge: Literal["rouge1", "rouge2", "rougeL"] = field("rouge1", "which ROUGE is `memo`")
    statistic: Literal["precision", "recall", "f1"] = field("precision", "which statistic of ROUGE")
    template: Literal["raw", "target"] = field(
        "raw", "prompts as bare text (paper), or through target.template"
    )
    comparators: tuple[Literal["ma", "el", "em", "es"], ...] = field(
        (),
        "further columns: memorisation accuracy, extraction likelihood, exact memorisation, extraction strength",
    )
    el_n: int = field(10, "length of the n-grams of extraction likelihood", "tokens", gt=0)

    @property
    def step(self) -> int:
        """The distance of two cuts, in the unit of `window`."""
        return self.stride or {"character": 5, "token": 1}[self.window]

    @model_validator(mode="after")
    def _prefix_is_raw(self) -> "Memo":
        if self.mode == "prefix" and self.template == "target":
            raise ValueError("mode prefix cuts the question itself, which needs template raw")
        return self


class Select(Section):
    """Chooses the candidates to train on."""

    top_k: int = field(3, "candidates chosen for each fact", "answers", gt=0)
    order: Literal["largest", "smallest", "random"] = field(
        "largest", "which end of MEMO is chosen"
    )
    seed: int = field(0, "seed of order random, combined with the fact", ge=0)
