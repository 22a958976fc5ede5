"""The sections of the target model and of the stages from `ingest` to `select`.

Each field is of one of three kinds, by its effect on results:

- The fields of the stages and of `target` are the spec. They enter fingerprints by their value.
- Fields marked as content name a model or a file. They enter fingerprints by its content.
- The fields of `storage`, `tracking` and `resources` never change a result. They enter none.

Names that other modules define (objectives, validity rules) are checked only if a validation
context lists them; see `files.Names`.
"""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from meow_ray.config.fields import Section, content, field

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


_DATA_SUFFIXES = frozenset(
    ".jsonl .ndjson .json .csv .tsv .txt .parquet .arrow .feather .gz .bz2 .xz .zst .lz4 .zip .tar "
    ".xlsx .xls .ods .orc .avro".split()
)
"""Suffixes of data files, which names of hub datasets do not have."""

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


RESERVED_VARIABLES = (
    "add_generation_prompt",
    "bos_token",
    "chat_template",
    "continue_final_message",
    "conversation",
    "documents",
    "eos_token",
    "max_length",
    "messages",
    "padding",
    "question",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
)
"""Names that a template gets from the package or from transformers."""


def _not_reserved(variables: dict[str, Any]) -> dict[str, Any]:
    reserved = sorted(set(variables).intersection(RESERVED_VARIABLES))
    if reserved:
        raise ValueError(f"{reserved[0]} is set for each prompt and cannot be given. Remove it")
    return variables


TemplateVariables = Annotated[
    dict[str, str | int | float | bool | None], AfterValidator(_not_reserved)
]


class Source(Section):
    """A file of questions and answers, or a Hugging Face dataset."""

    path: str = Field(
        min_length=1,
        description="JSON, CSV, Parquet or Arrow file, also compressed, a folder of them, or the "
        "name of a Hugging Face dataset",
    )
    subset: str | None = Field(None, description="configuration name of a Hugging Face dataset")
    split: str = Field("train", description="split of a Hugging Face dataset")
    revision: str | None = Field(None, description="revision of a Hugging Face dataset")

    @property
    def can_be_hub_name(self) -> bool:
        """Whether this can be the name of a hub dataset; otherwise it can only be a path."""
        suffix = PurePosixPath(self.path).suffix.lower()
        return bool(_HUB_NAME.fullmatch(self.path)) and suffix not in _DATA_SUFFIXES

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class ModelSection(Section):
    """A language model and the engine that runs it."""

    model: str | None = content(None, "model: a folder, a .gguf file or a hub name")
    revision: str | None = content(None, "hub revision: branch, tag or commit")
    dtype: Dtype = field(
        "auto", "dtype of weights and activations; auto is the dtype stored with the model"
    )
    max_model_len: int | None = field(
        None, "context length; null is that of the model", "tokens", gt=0
    )
    trust_remote_code: bool = field(False, "allow Python code in the model's files to run")


class Target(ModelSection):
    """The model that must forget."""

    engine: Literal["vllm", "transformers"] = field("vllm", "inference engine")
    template: str = field(
        "chat",
        "prompt for a question: chat (the tokenizer's chat template), tofu, raw, or your own Jinja "
        "template",
    )
    system: str | None = field(None, "system message; null uses the default of the chat template")
    template_variables: TemplateVariables = field(
        {}, "variables of the template, such as enable_thinking or date_string"
    )

    @field_validator("template")
    @classmethod
    def _known_template(cls, value: str) -> str:
        if value not in ("chat", "tofu", "raw") and "question" not in value:
            raise ValueError(
                "Input should be chat, tofu, raw or a Jinja template with {{ question }}"
            )
        return value


class Ingest(Section):
    """Reads and checks the user's facts."""

    forget: Source | None = content(None, "facts to forget")
    retain: Source | None = content(
        None, "facts to retain; they are evaluated, and some objectives train on them"
    )
    question_columns: tuple[str, ...] = field(
        ("question",), "possible names of the column with the question; the first match wins"
    )
    answer_columns: tuple[str, ...] = field(
        ("answer", "undesired_answer"),
        "possible names of the column with the answer; the first match wins",
    )
    encoding: str | None = field(
        None,
        "encoding of text files that are neither UTF-8 nor have a byte order mark, such as "
        "windows-1252",
    )
    on_reject: Literal["fail", "skip"] = field(
        "fail", "what to do if a row is rejected: fail the stage or skip the row"
    )

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                "".encode(value)
        except LookupError:
            raise ValueError(
                f"no encoding {value!r}. Write a name such as windows-1252, cp1251 or gbk"
            ) from None
        return value


class Invert(ModelSection):
    """An offline language model writes inverted facts."""

    engine: Literal["vllm", "transformers", "openai"] = field(
        "vllm",
        "inference engine; openai sends requests for `model` to an OpenAI-compatible endpoint",
    )
    base_url: str | None = content(None, "URL of the endpoint up to /v1, for engine openai")
    api_key_env: str = content(
        "OPENAI_API_KEY", "environment variable with the API key of the endpoint"
    )
    template_variables: TemplateVariables = field(
        {},
        "variables of the generator's chat template, such as enable_thinking; an endpoint gets "
        "them as chat_template_kwargs",
    )
    structured: bool = field(
        True, "send a JSON schema as response_format; set false if the endpoint does not support it"
    )
    style: Literal["auto", "chat", "prefill"] = field(
        "auto",
        "chat asks a capable model for JSON, prefill lets a small model complete the true answer's "
        "beginning, auto tries both",
    )
    probe_facts: int = field(8, "facts on which style auto compares the two styles", "facts", gt=0)
    num_candidates: int = field(4, "inverted facts per fact to forget", "answers", gt=0)
    spare: int = field(
        2,
        "answers to request in addition to num_candidates per attempt, for style chat",
        "answers",
        ge=0,
    )
    samples: int = field(
        8, "completions to sample per fact and attempt, for style prefill", "answers", gt=0
    )
    max_attempts: int = field(3, "attempts per fact in one style", "attempts", gt=0)
    fallback: bool = field(True, "try the other style if max_attempts in the first were not enough")
    on_shortfall: Literal["fail", "keep", "drop"] = field(
        "keep",
        "what to do with a fact that has fewer than num_candidates inverted facts: fail the stage, "
        "keep the fact, or drop it",
    )
    temperature: float = field(1.0, "sampling temperature of the first attempt", gt=0)
    temperature_step: float = field(0.2, "added to the temperature in each later attempt", ge=0)
    top_p: float = field(0.95, "probability mass of nucleus sampling", gt=0, le=1)
    max_new_tokens: int = field(128, "longest answer", "tokens", gt=0)
    seed: Annotated[int, Field(ge=0)] | None = field(
        0, "sampling seed, combined with fact and attempt; null samples without a seed"
    )
    chat_prompt: str = field(
        "Question: {{ question }}\nTrue answer: {{ answer }}\n\n"
        "Write {{ k }} different answers to the question that are plausible but do not factually "
        "match the true one. Change the facts that the question asks for, keep the form and the "
        "length of the true answer, and {% if bare %}write no sentences, because the true answer "
        "is none{% else %}state each as a full sentence{% endif %}. Reply with a JSON object "
        '{"answers": [...]} of {{ k }} strings.',
        "Jinja template of the user message for style chat; fields question, answer, k, and bare "
        "(whether the true answer is no sentence)",
    )
    prefill_prompt: str = field(
        "Invent a short answer to the question{% if bare %}, without a sentence around it"
        "{% endif %}.\n\n{{ question }}",
        "Jinja template of the user message for style prefill; fields question, answer, k, bare",
    )
    judge: Literal["none", "generator", "endpoint"] = field(
        "none",
        "model that decides whether a candidate contradicts the true answer: none, the generator, "
        "or the model at judge_base_url",
    )
    judge_model: str | None = content(None, "name of the judging model at judge_base_url")
    judge_base_url: str | None = content(
        None, "URL of the OpenAI-compatible endpoint of the judge, up to /v1"
    )
    judge_api_key_env: str = content(
        "OPENAI_API_KEY", "environment variable with the API key of the judge's endpoint"
    )
    judge_prompt: str = field(
        "Question: {{ question }}\nAnswer A: {{ answer }}\nAnswer B: {{ candidate }}\n\n"
        "Do the two answers contradict each other, so that only one of them can be true? "
        'Reply with a JSON object {"contradicts": true} or {"contradicts": false}.',
        "Jinja template of the message to the judge; fields question, answer, candidate",
    )
    judge_max_new_tokens: int = field(
        512, "longest reply of the judge, with its reasoning", "tokens", gt=0
    )
    min_length_ratio: float = field(
        0.3, "shortest inverted answer, as a share of the true answer's number of words", gt=0
    )
    max_length_ratio: float = field(
        2.0, "longest inverted answer, as a share of the true answer's number of words", gt=0
    )
    max_rouge_l: float = field(
        0.9, "highest ROUGE-L F1 between inverted and true answer", gt=0, le=1
    )
    max_novel_overlap: float = field(
        0.5,
        "largest share of the true answer's novel words that an inverted answer may repeat",
        ge=0,
        le=1,
    )
    min_value_share: float = field(
        0.5,
        "if dates, numbers and names are at least this share of the true answer's novel words, one "
        "of them must differ",
        ge=0,
    )
    skip_rules: tuple[str, ...] = field((), "names of validity rules that are not applied")

    @field_validator("skip_rules")
    @classmethod
    def _known_rules(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        known = (info.context or {}).get("rules", value)
        unknown = [name for name in value if name not in known]
        if unknown:
            raise ValueError(f"no rule {unknown[0]!r}. The rules are {', '.join(known)}")
        return value


class Memo(Section):
    """Measures how well the target model has memorised each answer (paper, section 3.2).

    `exact` is marked as content, because it changes the table `memo` alone: `selection` adds the
    settings of `select` that the table then depends on to the fingerprint of that stage.
    """

    mode: Literal["suffix", "prefix"] = field(
        "suffix", "suffix cuts the answer at each window, prefix cuts the question"
    )
    window: Literal["character", "token"] = field(
        "character", "cut at characters (paper) or at the target's tokens (many times faster)"
    )
    stride: int | None = field(
        None,
        "distance between two cuts; null is 5 characters (paper) or 1 token",
        "characters or tokens",
        gt=0,
    )
    max_new_tokens: Annotated[int, Field(gt=0)] | Literal["label"] = field(
        200,
        "longest greedy continuation (paper: 200), or label for the length of the part that was "
        "cut off; changes the score",
        "tokens",
    )
    rouge: Literal["rouge1", "rouge2", "rougeL"] = field(
        "rouge1", "variant of ROUGE that gives MEMO"
    )
    statistic: Literal["precision", "recall", "f1"] = field(
        "precision", "statistic of ROUGE that gives MEMO"
    )
    template: Literal["raw", "target"] = field(
        "raw", "prompts as plain text (paper) or in target.template"
    )
    exact: Literal["all", "selection"] = content(
        "all",
        "answers that get an exact MEMO: all, or those that the selection depends on (the others "
        "get bounds)",
    )
    comparators: tuple[Literal["ma", "el", "em", "es", "pz"], ...] = field(
        (),
        "additional columns: memorisation accuracy (ma), extraction likelihood (el), exact "
        "memorisation (em), extraction strength (es), log-probability of the answer (pz)",
    )
    el_n: int = field(10, "length of the n-grams of extraction likelihood", "tokens", gt=0)

    @property
    def step(self) -> int:
        """The distance between two cuts, in the unit of `window`."""
        return self.stride or {"character": 5, "token": 1}[self.window]

    @model_validator(mode="after")
    def _prefix_is_raw(self) -> "Memo":
        if self.mode == "prefix" and self.template == "target":
            raise ValueError(
                "mode prefix cuts the question itself and needs template raw. Set memo.template=raw"
            )
        return self


class Select(Section):
    """Chooses the candidates to train on."""

    top_k: int = field(3, "candidates to choose per fact", "answers", gt=0)
    order: Literal["largest", "smallest", "random"] = field(
        "largest", "choose the candidates with the largest or smallest MEMO, or at random"
    )
    seed: int = field(0, "seed for order random, combined with the fact", ge=0)
