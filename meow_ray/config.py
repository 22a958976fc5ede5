"""The typed configuration: one section a stage, read from YAML and dotted overrides.

Every field is sorted by what it does to a result. The fields of the stage sections and of `target`
are *spec*: they change results and enter fingerprints. Fields marked `content` name something
outside (a model, a data file): they enter fingerprints by content, never by path. The sections
`storage` and `resources` change where and how fast, never what.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from meow_ray.errors import MeowError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def _content(default: Any, description: str, **kwargs: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"content": True}, **kwargs)


def _field(default: Any, description: str, unit: str = "", **kwargs: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"unit": unit}, **kwargs)


class Section(BaseModel):
    """A frozen group of keys that knows no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    def spec(self) -> dict[str, Any]:
        """Returns the fields that change results, without those that enter by content."""
        content = {name for name, field in type(self).model_fields.items() if _extra(field).get("content")}
        return self.model_dump(mode="json", exclude=content)


class Source(Section):
    """A file of questions and answers, or a Hugging Face dataset."""

    path: str = Field(
        description="JSONL, JSON, CSV or Parquet file (.gz too), or a Hugging Face dataset's name or folder"
    )
    subset: str | None = Field(None, description="configuration name of a Hugging Face dataset")
    split: str = Field("train", description="split of a Hugging Face dataset")
    revision: str | None = Field(None, description="revision of a Hugging Face dataset")

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class ModelSection(Section):
    """A language model and the engine that runs it."""

    model: str | None = _content(None, "model folder, .gguf file or hub name")
    revision: str | None = _content(None, "hub revision: branch, tag or commit")
    dtype: Dtype = _field("auto", "weights and arithmetic of inference; auto is the dtype stored with the model")
    engine: Literal["vllm", "transformers"] = _field("vllm", "inference engine")
    max_model_len: int | None = _field(None, "context length; null is the model's own", "tokens", gt=0)
    trust_remote_code: bool = _field(False, "run Python code that comes with the model")


class Target(ModelSection):
    """The model that must forget."""

    template: str = _field("chat", "prompt of a question: chat (the tokenizer's chat template), tofu, raw, or Jinja")
    system: str | None = _field(None, "system message of the chat template; null leaves it to the template")

    @field_validator("template")
    @classmethod
    def _known_template(cls, value: str) -> str:
        if value not in ("chat", "tofu", "raw") and "question" not in value:
            raise ValueError("neither chat, tofu, raw nor a Jinja template with {{ question }}")
        return value


class Ingest(Section):
    """Reads and checks the user's facts."""

    forget: Source | None = _content(None, "facts to forget")
    retain: Source | None = _content(None, "facts to keep: evaluated, and trained on by some objectives")
    question_columns: tuple[str, ...] = _field(("question",), "names the question's column may have; first match wins")
    answer_columns: tuple[str, ...] = _field(
        ("answer", "undesired_answer"), "names that the answer's column may have, first match wins"
    )
    on_reject: Literal["fail", "skip"] = _field("fail", "what to do when a row is rejected")


class Invert(ModelSection):
    """An offline language model writes inverted facts."""

    style: Literal["chat", "prefill"] = _field(
        "chat", "chat asks a capable model; prefill lets a small one complete the frame"
    )
    num_candidates: int = _field(4, "inverted facts wanted for each forget fact", "answers", gt=0)
    samples: int = _field(16, "completions sampled for a fact in one attempt (style prefill)", "answers", gt=0)
    max_attempts: int = _field(3, "rounds of sampling before a shortfall is recorded", "rounds", gt=0)
    temperature: float = _field(1.0, "sampling temperature", gt=0)
    top_p: float = _field(0.95, "nucleus sampling mass", gt=0, le=1)
    max_new_tokens: int = _field(128, "longest completion", "tokens", gt=0)
    seed: int = _field(0, "sampling seed, combined with fact and attempt; vLLM's CPU build samples without one", ge=0)
    chat_prompt: str = _field(
        "Question: {{ question }}\nTrue answer: {{ answer }}\n\n"
        "Write {{ k }} different answers to the question that are plausible but do not factually match the true one. "
        "Change the facts that the question asks for, keep the form and the length of the true answer, "
        "and state each as a full sentence. Write one answer a line and nothing else.",
        "Jinja template of style chat; fields question, answer, k",
    )
    prefill_prompt: str = _field(
        "Invent a short answer to the question.\n\n{{ question }}",
        "Jinja template of the user message of style prefill; fields question, answer",
    )
    min_length_ratio: float = _field(0.3, "shortest inverted answer, as a share of the true one's words", gt=0)
    max_length_ratio: float = _field(2.0, "longest inverted answer, as a share of the true one's words", gt=0)
    max_rouge_l: float = _field(0.9, "highest ROUGE-L F1 to the true answer", gt=0, le=1)
    max_novel_overlap: float = _field(0.5, "largest share of the true answer's novel words that may stay", ge=0, le=1)


class Memo(Section):
    """Measures how well the target model has memorised each answer (paper, section 3.2)."""

    mode: Literal["suffix", "prefix"] = _field("suffix", "suffix cuts the answer, prefix the question")
    stride: int = _field(5, "distance of two cuts", "characters", gt=0)
    max_new_tokens: int = _field(200, "longest greedy continuation; changes the score", "tokens", gt=0)
    rouge: Literal["rouge1", "rouge2", "rougeL"] = _field("rouge1", "which ROUGE is `memo`")
    statistic: Literal["precision", "recall", "f1"] = _field("precision", "which statistic of ROUGE")
    template: Literal["raw", "target"] = _field("raw", "prompts as bare text (paper), or through target.template")

    @model_validator(mode="after")
    def _prefix_is_raw(self) -> "Memo":
        if self.mode == "prefix" and self.template == "target":
            raise ValueError("mode prefix cuts the question itself, which needs template raw")
        return self


class Select(Section):
    """Chooses the candidates to train on."""

    top_k: int = _field(3, "candidates chosen for each fact", "answers", gt=0)
    order: Literal["largest", "smallest", "random"] = _field("largest", "which end of MEMO is chosen")
    seed: int = _field(0, "seed of order random, combined with the fact", ge=0)


class FineTuning(Section):
    """What `train` and `memorize` share."""

    learning_rate: float = _field(2e-5, "peak learning rate of AdamW", gt=0)
    epochs: int = _field(5, "passes over the pairs", "epochs", gt=0)
    batch_size: int = _field(8, "pairs in one optimiser step over all workers", "pairs", gt=0)
    warmup_ratio: float = _field(
        0.1, "share of the steps with a rising learning rate; a linear decay follows", ge=0, lt=1
    )
    weight_decay: float = _field(0.0, "decoupled weight decay of AdamW", ge=0)
    max_grad_norm: float = _field(1.0, "gradient norm is clipped to this", gt=0)
    max_length: int = _field(512, "longest prompt with answer; longer pairs are an error", "tokens", gt=0)
    train_dtype: Literal["float32", "bfloat16"] = _field(
        "float32", "arithmetic of training; AdamW's states are float32"
    )
    seed: int = _field(0, "order of the pairs", ge=0)


class Train(FineTuning):
    """Fine-tunes the target so that it forgets."""

    objective: Literal["meow"] = _field("meow", "what is minimised")


class Memorize(FineTuning):
    """Fine-tunes a base model on facts, to make a target or a reference model."""

    model: str | None = _content(None, "base model: folder, .gguf file or hub name")
    revision: str | None = _content(None, "hub revision: branch, tag or commit")
    trust_remote_code: bool = _field(False, "run Python code that comes with the model")
    data: tuple[Source, ...] = _content((), "question–answer data to memorise, columns as in `ingest`")


class Evaluate(Section):
    """Measures forgetting and utility before and after."""

    sets: dict[str, Source] = _content({}, "further sets of questions and answers, by suite name")
    max_new_tokens: int = _field(64, "longest greedy answer", "tokens", gt=0)
    sample: int | None = _field(None, "facts evaluated in each set but forget; null is all", "facts", gt=0)
    memo_sample: int | None = _field(None, "facts scored with MEMO in each set but forget; null is all", "facts", gt=0)
    bootstrap_resamples: int = _field(1000, "resamples behind a 95 % interval", gt=0)
    seed: int = _field(0, "seed of samples and bootstrap", ge=0)


class Report(Section):
    """One self-contained page for people."""

    title: str = _field("MEOW unlearning report", "heading of the page")
    show_text: bool = _field(False, "print questions and answers of the forget set on the page")
    note: str = _field("", "a sentence printed under the heading")


class Storage(Section):
    """Where artefacts live."""

    root: str = _field("runs/meow", "URI that all nodes reach: local path, NFS, s3://, gs://")


class EngineResources(Section):
    """The actor pool of a generating or scoring stage."""

    num_actors: int = _field(1, "actors, each with an engine of its own", "actors", gt=0)
    gpus_per_actor: Annotated[int, Field(ge=0)] | Literal["auto"] = _field(
        "auto", "GPUs of one actor; auto is tensor_parallel_size where there are GPUs"
    )
    cpus_per_actor: float = _field(0.5, "CPUs that Ray reserves for one actor", "CPUs", ge=0)
    threads: int | None = _field(
        None, "compute threads of an engine on CPU; null is the node's cores over num_actors", gt=0
    )
    tensor_parallel_size: int = _field(1, "GPUs that one engine's weights are cut over", "GPUs", gt=0)
    batch_size: int = _field(64, "rows given to an actor at once", "rows", gt=0)
    kv_cache_gib: float = _field(1.0, "KV cache of vLLM on CPU", "GiB", gt=0)
    gpu_memory_utilization: float = _field(0.9, "share of a GPU's memory that vLLM may take", gt=0, le=1)


class TrainResources(Section):
    """The workers of a fine-tuning stage."""

    num_workers: Annotated[int, Field(gt=0)] | Literal["auto"] = _field(
        "auto", "ZeRO workers; auto is one a GPU, or on CPU two", "workers"
    )
    max_workers: int | None = _field(None, "upper bound of auto", "workers", gt=0)
    cpus_per_worker: float = _field(1.0, "CPUs that Ray reserves for one worker", "CPUs", gt=0)
    micro_batch_size: int = _field(4, "pairs in one forward pass of one worker", "pairs", gt=0)
    zero_stage: Literal[1, 2, 3] = _field(2, "DeepSpeed ZeRO stage")
    max_failures: int = _field(3, "worker failures survived before the stage gives up", ge=0)
    checkpoint_every: int = _field(1, "epochs between two checkpoints", "epochs", gt=0)


class Resources(Section):
    """Hardware a stage may use; never changes a result beyond rounding."""

    autoscaling: bool = _field(False, "the cluster grows on demand: do not refuse what is not there yet")
    memorize: TrainResources = TrainResources()
    invert: EngineResources = EngineResources()
    memo: EngineResources = EngineResources()
    train: TrainResources = TrainResources()
    evaluate: EngineResources = EngineResources()


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
    storage: Storage = Storage()
    resources: Resources = Resources()

    @field_validator("evaluate")
    @classmethod
    def _suite_names(cls, value: Evaluate) -> Evaluate:
        taken = {"forget", "retain"} & set(value.sets)
        if taken:
            raise ValueError(f"the suite name {sorted(taken)[0]!r} is taken: it is a split of `ingest`")
        return value


def _package_folder(name: str) -> str:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"${{package:{name}}}: the Python package {name} is not installed")
    return str(spec.submodule_search_locations[0])


OmegaConf.register_resolver("package", _package_folder, replace=True)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies overrides such as `select.top_k=2`, and checks the whole.

    Raises:
        MeowError: names every mistake at once, each with file, line, key, value and the nearest valid key.
    """
    text = _read(Path(path)) if path else ""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise MeowError(
                f"{path}: a configuration is a mapping of sections, this is a {node.tag.rpartition(':')[2]}."
            )
        base = OmegaConf.create(text)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise MeowError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise MeowError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)}).") from None
    lines = dict(_key_lines(node))
    for override in overrides:
        if "=" not in override:
            raise MeowError(f"Override {override!r} is not of the form section.key=value.")
        try:
            base = OmegaConf.merge(base, OmegaConf.from_dotlist([override]))
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
            raise MeowError(f"Override {override!r}: {getattr(error, 'problem', error)}.") from None
    try:
        values = OmegaConf.to_container(base, resolve=True)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise MeowError(f"{path or 'overrides'}: {error}") from None
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        overridden = {item.split("=", 1)[0] for item in overrides}
        mistakes = dict.fromkeys(_mistake(item, path, lines, overridden) for item in _merged(error))
        raise MeowError("Configuration:\n" + "\n".join(f"  {line}" for line in mistakes)) from None


def _merged(error: ValidationError) -> list[dict[str, Any]]:
    """Returns the errors with those of a union's branches made one, under the key of the field."""
    keys = set(valid_keys())
    out: dict[tuple[int | str, ...], dict[str, Any]] = {}
    for item in error.errors():
        loc = item["loc"]
        is_branch = ".".join(map(str, loc[:-1])) in keys and not isinstance(loc[-1], int)
        if is_branch and item["type"] not in ("missing", "extra_forbidden"):
            loc = loc[:-1]
        if loc in out:
            out[loc]["msg"] += f", or {item['msg']}"
        else:
            out[loc] = {**item, "loc": loc}
    return list(out.values())


def explain() -> Iterator[tuple[str, str, str, str, str]]:
    """Yields (key, type, default, unit, meaning) for every key of the configuration."""
    yield from _explain(Config, "")


def valid_keys() -> list[str]:
    """Returns every dotted key."""
    return [row[0] for row in explain()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MeowError(f"Cannot read the configuration {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise MeowError(f"The configuration {path} is not UTF-8 text.") from None


def _key_lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            yield from _key_lines(value, f"{name}.")


def _mistake(item: Any, path: str | Path | None, lines: dict[str, int], overridden: set[str]) -> str:
    parts = [str(part) for part in item["loc"]]
    key = ".".join(parts)
    if any(".".join(parts[:i]) in overridden for i in range(1, len(parts) + 1)):
        where = "override"
    else:
        line = next((lines[k] for i in range(len(parts), 0, -1) if (k := ".".join(parts[:i])) in lines), None)
        where = f"{path}, line {line}" if line else str(path or "override")
    if item["type"] == "extra_forbidden":
        near = nearest_key(key)
        return f"{where}: unknown key `{key}`" + (f"; did you mean `{near}`?" if near else ".")
    value = item["input"] if not isinstance(item["input"], dict) else "…"
    return f"{where}: `{key}` = {value!r}: {item['msg']}."


def nearest_key(key: str) -> str | None:
    """Returns the valid key most like `key`: one with the same last name, else the closest spelling."""
    keys = valid_keys()
    if "." not in key:
        section = get_close_matches(key, list(Config.model_fields), n=1)
        if section:
            return section[0]
    same_name = [k for k in keys if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    candidates = get_close_matches(key, same_name or keys, n=1, cutoff=0.3 if same_name else 0.6)
    return candidates[0] if candidates else (same_name[0] if same_name else None)


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _section_type(annotation: Any) -> type[Section] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _explain(section: type[Section], prefix: str) -> Iterator[tuple[str, str, str, str, str]]:
    for name, field in section.model_fields.items():
        inner = _section_type(field.annotation)
        if inner is not None and inner is not Source:
            yield from _explain(inner, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        kind = str(field.annotation).replace("typing.", "").replace("meow_ray.config.", "")
        kind = field.annotation.__name__ if isinstance(field.annotation, type) else kind
        yield f"{prefix}{name}", kind, default, str(_extra(field).get("unit", "")), field.description or ""
