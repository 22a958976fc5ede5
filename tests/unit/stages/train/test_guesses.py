"""How much the generator's guesses shift the floors of answers and the twins of the stop."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from meow_ray.config import Train
from meow_ray.core.schema import SCHEMAS
from meow_ray.engines.base import TeacherForced
from meow_ray.errors import MeowError
from meow_ray.models.fact_tokens import novel_token_mask
from meow_ray.models.prompts import Prompter
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.invert.generators import LocalGenerator
from meow_ray.stages.train import guesses, objectives, steps, watched
from meow_ray.stages.train.pairs import pairs_of

FACTS = pa.Table.from_pylist(
    [
        {"fact_id": fact, "split": "forget", "question": f"Q{fact}?", "answer": f"{fact} true."}
        for fact in "ab"
    ],
    schema=SCHEMAS["facts"],
)
SELECTED = pa.Table.from_pylist(
    [
        {
            "fact_id": fact,
            "candidate_id": 0,
            "rank": 0,
            "question": f"Q{fact}?",
            "answer": f"{fact} false.",
            "memo": 0.0,
        }
        for fact in "ab"
    ],
    schema=SCHEMAS["selected"],
)
TWINS = pa.Table.from_pylist(
    [
        {
            "fact_id": "a",
            "twin_id": number,
            "half": half,
            "question": f"Q{number}?",
            "answer": f"Twin {number}.",
        }
        for number, half in enumerate(("calibration", "calibration", "stop"))
    ],
    schema=SCHEMAS["twins"],
)


def guess(role: str, fact: str, answer: str, value: float, tokens: int = 1) -> dict[str, Any]:
    return {
        "role": role,
        "fact_id": fact,
        "question": f"Q{fact}?",
        "answer": answer,
        "guess": value,
        "tokens": tokens,
    }


GUESSES = pa.Table.from_pylist(
    [
        guess("forget", "a", "a true.", -1.0),
        guess("forget", "b", "b true.", 20.0),
        guess("inverted", "a", "a false.", -5.0),
        guess("inverted", "b", "b false.", -3.0),
        # a mean of -4 over the tokens of both twins
        guess("twin", "a", "Twin 0.", -5.0, tokens=2),
        guess("twin", "a", "Twin 1.", -2.0, tokens=1),
    ],
    schema=SCHEMAS["guesses"],
)


def test_an_answer_is_shifted_by_its_guess_less_that_of_the_twins_of_its_fact():
    query = pairs_of(("inverted", "forget"), FACTS, SELECTED, guesses=GUESSES)
    shifts = {(row["role"], row["fact_id"]): row["shift"] for row in query.rows()}
    assert shifts == {
        ("forget", "a"): 3.0,
        ("inverted", "a"): -1.0,
        # the fact b has no twins, so that all twins count; 24 is cut at 8
        ("forget", "b"): 8.0,
        ("inverted", "b"): 1.0,
    }


@pytest.mark.parametrize(("role", "named"), [("inverted", "inverted"), ("twin", "")])
def test_guesses_of_another_run_are_refused(role: str, named: str):
    other = pa.Table.from_pylist(
        [row for row in GUESSES.to_pylist() if row["role"] != role], schema=GUESSES.schema
    )
    with pytest.raises(MeowError, match=f"`guesses`: there is no guess for the role {named}"):
        pairs_of(("inverted", "forget"), FACTS, SELECTED, guesses=other)


def test_without_guesses_nothing_is_shifted():
    rows = pairs_of(("inverted", "forget"), FACTS, SELECTED).rows()
    assert {row["shift"] for row in rows} == {None}


@pytest.mark.parametrize(("table", "shift"), [(GUESSES, 3.0), (None, 0.0)])
def test_the_twins_that_end_training_are_shifted_as_the_true_answer(
    table: pa.Table | None, shift: float, tiny_tokenizer: Any, tmp_path: Path
):
    uri = str(tmp_path / "watched.parquet")
    watched.write(FACTS, TWINS, Prompter(tiny_tokenizer, "raw"), 512, uri, table)
    pairs = watched.Watched.load(uri)
    assert [pair.shift for pair in pairs.stop] == [shift]
    assert {pair.shift for pair in (*pairs.truth, *pairs.calibration)} == {0.0}


class Half:
    """An engine to which every token has the probability 1/2, but the last of an answer 1/5."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = 512

    def teacher_force(self, prompts: Any, answers: Any) -> list[TeacherForced]:
        return [
            TeacherForced(
                log_probs=[math.log(0.5)] * (len(answer) - 1) + [math.log(0.2)],
                is_greedy=[False] * len(answer),
                ends=False,
            )
            for answer in answers
        ]


def test_a_guess_is_the_mean_log_odds_of_the_fact_bearing_tokens(tiny_tokenizer: Any):
    engine: Any = Half(tiny_tokenizer)
    batch = pa.table(
        {
            "fact_id": ["a", "b"],
            "question": ["Who is it?", "Who?"],
            "answer": ["It is Ann.", "It is Ann"],
        }
    )
    result = steps.guesses_batch(LocalGenerator(engine), batch)
    # the tokens are bytes, and the end of the answer bears no fact: log-odds of 1/2 are 0
    assert result["guess"].to_pylist() == pytest.approx([0.0, 0.0], abs=1e-9)
    masks = [
        novel_token_mask(LocalGenerator(engine).prompter, row["question"], row["answer"])
        for row in batch.to_pylist()
    ]
    assert result["tokens"].to_pylist() == [int(np.sum(mask)) for mask in masks]


def test_an_answer_that_the_generator_cannot_read_is_named_by_its_fact(tiny_tokenizer: Any):
    engine: Any = Half(tiny_tokenizer)
    batch = pa.table({"fact_id": ["a1"], "question": ["Who?"], "answer": ["x" * 600]})
    with pytest.raises(MeowError, match=r"fact a1 has \d+ tokens .* fewer than 512\. Raise"):
        steps.guesses_batch(LocalGenerator(engine), batch)


def test_an_endpoint_that_gives_no_probabilities_is_refused_before_the_run():
    config = load_config(None, ["invert.engine=openai", "train.guessed_floors=true"])
    (fault,) = guesses.GUESSES.checks[0](config, {})
    assert fault.startswith("`train.guessed_floors`: the generator is an endpoint")
    (fault,) = guesses.GUESSES.checks[0](load_config(None, ["train.guessed_floors=true"]), {})
    assert fault.startswith("`train.guessed_floors`: there is no generator")


def test_an_objective_without_floors_is_refused():
    with pytest.raises(MeowError, match="has no effect on meow, which reads no floors"):
        objectives.configured(Train(objective="meow", guessed_floors=True))
