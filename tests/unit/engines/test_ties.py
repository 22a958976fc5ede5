"""Which tokens are greedy where several have the same largest log-probability."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from meow_ray.engines.transformers import TransformersEngine
from meow_ray.engines.vllm import _teacher_forced


def entry(logprob: float, rank: int) -> SimpleNamespace:
    """An entry of vLLM's log-probabilities; its rank counts tokens of the same one as above it."""
    return SimpleNamespace(logprob=logprob, rank=rank)


def test_vllm_tokens_of_the_largest_log_probability_are_greedy_whatever_their_rank():
    result = SimpleNamespace(
        prompt_logprobs=[
            None,
            {7: entry(-0.7, 2), 8: entry(-0.7, 2)},
            {8: entry(-0.7, 2), 7: entry(-0.7, 1)},
            {3: entry(-0.2, 1)},
            {4: entry(-2.5, 2), 9: entry(-0.1, 1)},
        ],
        outputs=[SimpleNamespace(finish_reason="length")],
    )
    forced = _teacher_forced(result, [1, 7, 8, 3, 4], 1)
    assert forced.is_greedy == [True, True, True, False]
    assert forced.log_probs == [-0.7, -0.7, -0.2, -2.5]
    whole = _teacher_forced(result, [1, 7, 8, 3, 4], 0)
    assert whole.is_greedy == [False, True, True, True, False]


@pytest.mark.parametrize("token", [0, 1, 2])
def test_transformers_tokens_of_the_largest_logit_are_greedy(token: int):
    engine = engine_with_logits([1.5, 0.5, 1.5], ends={2})
    (forced,) = engine.teacher_force([[0]], [[token]])
    assert forced.is_greedy == [token != 1]
    assert forced.ends, "the end has the largest logit, as another token has"


def test_a_model_without_an_end_never_ends():
    (forced,) = engine_with_logits([1.5, 0.5, 1.5], ends={None}).teacher_force([[0]], [[1]])
    assert not forced.ends


def engine_with_logits(logits: list[float], ends: set[Any]) -> TransformersEngine:
    """Returns an engine whose model has the same logits at each position."""

    def model(input_ids: Any, attention_mask: Any) -> Any:
        return SimpleNamespace(logits=torch.tensor(logits).expand(*input_ids.shape, -1))

    engine = object.__new__(TransformersEngine)
    engine.torch = torch
    engine.device = "cpu"
    engine.tokenizer = SimpleNamespace(pad_token_id=0)
    engine.ends = ends
    engine.model = model
    engine.keeps_logits = False
    return engine
