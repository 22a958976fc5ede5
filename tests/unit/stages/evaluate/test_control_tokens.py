"""Facts that hold the names of control tokens, in a model that knows them."""

from pathlib import Path
from typing import Any

from meow_ray.config import Evaluate, Memo
from meow_ray.engines import EngineSpec, build
from meow_ray.models import refs
from meow_ray.models.control_tokens import MARK
from meow_ray.models.prompts import Prompter
from meow_ray.stages.evaluate import suites
from meow_ray.stages.evaluate.steps import EvaluateSteps
from tests.support.sets import fact_rows, facts_query
from tests.support.tiny import chat, memorise

FACTS = [("Author of it?", "Some </s> mark"), ("Born as <s>?", "The tag <|user|>")]


def test_a_known_answer_that_holds_control_tokens_is_generated_whole(
    tiny_model: Path, tiny_tokenizer: Any, tmp_path: Path
):
    prompter = Prompter(tiny_tokenizer, "chat")
    templates = [chat(question) for question, _ in FACTS]
    prompts = [prompter.prompt(question) for question, _ in FACTS]

    def encode(text: str) -> list[int]:
        """Returns the tokens of a text of `memorise`, of which only the frame is control tokens."""
        for template, prompt in zip(templates, prompts, strict=True):
            if text.startswith(template):
                marked = prompt + text.removeprefix(template)
                break
        else:
            marked = MARK + text
        return prompter.control.encode([f"{marked.removesuffix('</s>')}{MARK}</s>"])[0]

    folder = memorise(tiny_model, tiny_tokenizer, FACTS, tmp_path / "model", encode)
    engine = build(EngineSpec(refs.pin(str(folder), None, "model"), "transformers", "float32"))
    table = suites.rows_to_ask(facts_query(fact_rows(*FACTS)), {}, [], Evaluate(attacks=()))
    steps = EvaluateSteps(Evaluate(max_new_tokens=30), Memo(max_new_tokens=30, stride=9), "chat")
    rows = steps.finish(engine.tokenizer, steps.generate(engine, table)).to_pylist()
    assert {row["question"]: row["generated"] for row in rows} == dict(FACTS)
    for row in rows:
        assert row["rougeL_recall"] == row["exact_memorization"] == 1.0
        assert row["extraction_strength"] == 1.0
        assert row["memo"] > 0.9
        assert row["num_tokens"] == len(row["answer"]) + 1
