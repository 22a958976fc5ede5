"""The sections `evaluate` and `report`."""

from typing import Any, Literal

from pydantic import field_validator

from meow_ray.config.fields import Section, content, field
from meow_ray.config.sections import Source


class LmEval(Section):
    """Tasks of lm-evaluation-harness, before and after; needs `meow_ray[lm-eval]`."""

    tasks: tuple[str, ...] = field((), "its tasks, such as arc_challenge, arc_easy, piqa, mmlu")
    num_fewshot: int | None = field(
        None, "examples in the prompt; null is the task's own", "examples", ge=0
    )
    limit: int | None = field(None, "first examples of each task; null is all", "examples", gt=0)
    backend: Literal["hf", "vllm"] = field("hf", "what runs the model: transformers or vLLM")


class Evaluate(Section):
    """Measures forgetting and utility before and after.

    Sets of some names have a meaning: forget and retain stand for the splits of `ingest`, with the columns of TOFU's
    perturbed files; real_authors and world_facts make model utility; holdout is what no model has seen.
    """

    sets: dict[str, Source] = content({}, "further sets of questions and answers, by suite name")
    retain_model: str | None = content(
        None,
        "model that never saw the forget set: folder, hub name, or its results as eval_log_aggregated.json (TOFU) "
        "or TOFU_EVAL.json (open-unlearning)",
    )
    text: str | None = content(
        None,
        "text file, a passage a line: perplexity and BLEU of the second halves behind the first",
    )
    attacks: tuple[Literal["paraphrase", "prefix", "affirmative"], ...] = field(
        ("paraphrase", "prefix", "affirmative"),
        "ask the forget set in other words, from 10, 30, 50 % of the true answer on, after an affirmative start",
    )
    membership: tuple[Literal["loss", "zlib", "min_k", "min_k_pp", "retain_model"], ...] = field(
        ("loss", "zlib", "min_k", "retain_model"),
        "membership inference against the set holdout; min_k_pp needs target.engine transformers",
    )
    min_k_share: float = field(
        0.2, "share of the tokens that min_k and min_k_pp look at", gt=0, le=1
    )
    lm_eval: LmEval = LmEval()
    task_folder: str | None = content(
        None, "folder with task files of one's own for lm_eval, which all nodes reach"
    )
    max_new_tokens: int = field(
        64, "longest greedy answer; passages of `text` have their own length", "tokens", gt=0
    )
    sample: int | None = field(
        None, "facts evaluated in each set but forget; null is all", "facts", gt=0
    )
    memo_sample: int | None = field(
        None, "facts scored with MEMO in each set but forget; null is all", "facts", gt=0
    )
    bootstrap_resamples: int = field(1000, "resamples behind a 95 % interval", gt=0)
    seed: int = field(0, "seed of samples and bootstrap", ge=0)

    def spec(self) -> dict[str, Any]:
        """Returns the fields that change results, without those that enter by content."""
        spec = super().spec()
        # caches of version 0.1 know the attack `retain_model` as `reference`
        names = {"retain_model": "reference"}
        spec["membership"] = [names.get(attack, attack) for attack in spec["membership"]]
        return spec

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
            if name in ("text", "tofu", "membership", "lm_eval") or name.startswith("forget_"):
                raise ValueError(f"the suite name {name!r} is taken by figures of our own")
        return value


class Report(Section):
    """One self-contained page for people."""

    title: str = field("MEOW unlearning report", "heading of the page")
    show_text: bool = field(False, "print questions and answers of the forget set on the page")
    note: str = field("", "a sentence printed under the heading")
