"""The sections `evaluate` and `report`."""

from typing import Any, Literal

from pydantic import field_validator, model_validator

from meow_ray.config.fields import Section, content, field
from meow_ray.config.sections import Source

OPEN_UNLEARNING = {"max_new_tokens": 200, "min_k_share": 0.4}
"""The defaults of `evaluate` that differ with `definitions: open_unlearning`."""

RESERVED_SUITES = ("text", "tofu", "membership", "lm_eval", "twins", "never_seen", "composite")
"""Names of suites that are not sets of the user."""


class LmEval(Section):
    """Tasks of lm-evaluation-harness, run before and after. They need `meow_ray[lm-eval]`."""

    tasks: tuple[str, ...] = field(
        (), "names of tasks, such as arc_challenge, arc_easy, piqa or mmlu"
    )
    num_fewshot: int | None = field(
        None, "examples in each prompt; null uses the number of the task", "examples", ge=0
    )
    limit: int | None = field(
        None, "run only the first examples of each task; null runs all", "examples", gt=0
    )
    backend: Literal["hf", "vllm"] = field(
        "hf", "library that runs the model: transformers (hf) or vLLM"
    )


class Evaluate(Section):
    """Measures forgetting and utility before and after training.

    Some names of sets have a meaning. `forget` and `retain` replace the splits of `ingest` and have
    the columns of TOFU's perturbed files. `real_authors` and `world_facts` are parts of model
    utility. `holdout` has questions that no model was trained on.
    """

    sets: dict[str, Source] = content({}, "additional sets of questions and answers, by name")
    retain_model: str | None = content(
        None,
        "model that never saw the forget set: a folder, a hub name, or its results in "
        "eval_log_aggregated.json (TOFU) or TOFU_EVAL.json (open-unlearning)",
    )
    definitions: Literal["meow", "open_unlearning"] = field(
        "meow",
        "open_unlearning measures as open-unlearning does, so that figures can be compared; "
        "max_new_tokens is then 200 and min_k_share 0.4, if not set",
    )
    text: str | None = content(
        None,
        "text file with one passage per line, for perplexity and BLEU of the second half of each",
    )
    attacks: tuple[Literal["paraphrase", "prefix", "affirmative"], ...] = field(
        ("paraphrase", "prefix", "affirmative"),
        "ask for the forget set in other words, with the first 10, 30 and 50 % of the true answer "
        "given, and with an affirmative start of the reply",
    )
    membership: tuple[Literal["loss", "zlib", "min_k", "min_k_pp", "retain_model"], ...] = field(
        ("loss", "zlib", "min_k", "retain_model"),
        "membership inference against the set holdout; min_k_pp needs target.engine transformers",
    )
    min_k_share: float = field(
        0.2, "share of the least probable tokens that min_k and min_k_pp use", gt=0, le=1
    )
    twins: bool | None = content(
        None,
        "compare with facts that no model has seen: the reference-free forget quality; null does "
        "so if training reads twins",
    )
    lm_eval: LmEval = LmEval()
    task_folder: str | None = content(
        None, "folder with your own task files for lm_eval, which all nodes can reach"
    )
    max_new_tokens: int = field(
        64,
        "longest greedy answer; continuations in `text` are as long as the rest of the passage",
        "tokens",
        gt=0,
    )
    sample: int | None = field(
        None, "facts to evaluate in each set except forget; null evaluates all", "facts", gt=0
    )
    memo: bool = field(True, "score the true answers with MEMO")
    memo_sample: int | None = field(
        None, "facts to score with MEMO in each set except forget; null scores all", "facts", gt=0
    )
    bootstrap_resamples: int = field(1000, "bootstrap resamples for each 95 % interval", gt=0)
    seed: int = field(0, "seed of samples and bootstrap", ge=0)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_definitions(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("definitions") == "open_unlearning":
            return OPEN_UNLEARNING | values
        return values

    @field_validator("membership", mode="before")
    @classmethod
    def _attack_names(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and "reference" in value:
            raise ValueError("the attack reference is now called retain_model")
        return value

    @field_validator("sets")
    @classmethod
    def _suite_names(cls, value: dict[str, Source]) -> dict[str, Source]:
        for name in value:
            if name in RESERVED_SUITES or name.startswith("forget_"):
                raise ValueError(f"the set name {name!r} is reserved; choose another name")
        return value


class Report(Section):
    """Writes one self-contained HTML page."""

    title: str = field("MEOW unlearning report", "heading of the page")
    show_text: bool = field(False, "show questions and answers of the forget set on the page")
    note: str = field("", "sentence below the heading")
    soup: str | None = content(
        None, "folder that `meow soup` wrote, whose curve the page shows; null shows none"
    )
