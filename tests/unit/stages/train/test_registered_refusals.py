"""What `register_objective` refuses: functions that could not run on a worker, and bad names."""

import functools
import math
import re
from collections.abc import Callable, Iterator
from math import exp as exponential
from math import inf
from typing import Any

import pytest
from torch import Tensor

from meow_ray import register_objective, uses
from meow_ray.errors import MeowError
from meow_ray.stages.train.losses import Sequences
from meow_ray.stages.train.objectives import REGISTERED
from meow_ray.stages.train.presets import PRESETS

PAIR = (1, 2)


def helper(value: Tensor) -> Tensor:
    return value * 2


@pytest.fixture(autouse=True)
def registered_objectives_are_removed() -> Iterator[None]:
    REGISTERED.clear()
    yield
    REGISTERED.clear()


def refusal(function: Any, **options: Any) -> str:
    """Returns the message with which a function is refused."""
    with pytest.raises(MeowError) as caught:
        register_objective(**options)(function)
    assert not REGISTERED
    return str(caught.value)


def test_a_function_of_the_same_program_is_refused_with_its_name():
    def mine(forget: Sequences) -> Tensor:
        return helper(forget.log_probs)

    assert refusal(mine) == (
        "register_objective: mine: it uses helper, which only this program defines. Move it "
        "inside the function, or put both into a file and set train.objective=FILE.py:FUNCTION."
    )


def test_other_values_of_the_program_are_refused_with_their_names():
    def mine(forget: Sequences) -> Tensor:
        return forget.log_probs * PAIR[0]

    assert refusal(mine).startswith("register_objective: mine: it uses PAIR, which only this")


def test_a_name_that_is_not_defined_yet_is_refused():
    def mine(forget: Sequences) -> Tensor:
        return defined_later(forget.log_probs)  # type: ignore[name-defined] # noqa: F821

    assert refusal(mine) == (
        "register_objective: mine: it uses defined_later, which is not defined yet. Define it "
        "before the function is registered, or inside the function."
    )


def test_a_closure_is_refused_with_what_it_captures():
    first, second = 1.0, 2.0

    def mine(forget: Sequences) -> Tensor:
        return forget.log_probs * first * second

    assert refusal(mine) == (
        "register_objective: mine: it uses first, second of the enclosing function. "
        "Move that inside."
    )


class Loss:
    def __call__(self, forget: Sequences) -> Tensor:
        return forget.log_probs


async def asynchronous(forget: Sequences) -> Tensor:
    return forget.log_probs


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda forget: forget.log_probs, "<lambda>"),
        (asynchronous, "asynchronous"),
        (math.exp, "exp"),
        (functools.partial(helper), "functools.partial"),
        (Loss(), "<.*Loss"),
    ],
)
def test_an_object_that_is_not_a_plain_function_is_refused(function: Any, name: str):
    message = r"it is not a plain function\. Define it with `def`\."
    assert re.fullmatch(rf"register_objective: {name}.*: {message}", refusal(function))


def test_a_lambda_with_a_name_is_refused():
    message = "register_objective: mine: it is not a plain function. Define it with `def`."
    assert refusal(lambda forget: forget.log_probs, name="mine") == message


def test_a_function_without_source_is_refused():
    scope: dict[str, Any] = {}
    exec("def mine(forget):\n    return forget.log_probs", scope)
    assert refusal(scope["mine"]) == (
        "register_objective: mine: its source cannot be read. "
        "Define it with `def` in a file or a notebook."
    )


@pytest.mark.parametrize("name", ["meow", "npo_kl"])
def test_the_name_of_a_preset_is_refused(name: str):
    def mine(forget: Sequences) -> Tensor:
        return forget.log_probs

    assert name in PRESETS
    message = f"register_objective: {name}: meow_ray has an objective with this name. Rename it."
    assert refusal(mine, name=name) == message


@pytest.mark.parametrize("name", ["my-loss", "a.py:b", "class", "2x"])
def test_a_name_that_no_function_can_have_is_refused(name: str):
    def mine(forget: Sequences) -> Tensor:
        return forget.log_probs

    assert refusal(mine, name=name) == (
        f"register_objective: {name}: the name is not a Python identifier. "
        "Use letters, digits and `_`."
    )


def test_a_name_is_refused_if_the_function_uses_a_global_with_this_name():
    def mine(forget: Sequences) -> Tensor:
        return forget.log_probs * exponential(1)

    message = (
        "register_objective: exponential: it uses a global with the same name. "
        "Rename one of the two."
    )
    assert refusal(mine, name="exponential") == message


def test_an_unknown_reference_is_refused():
    def mine(forget: Sequences) -> Tensor:
        return forget.log_probs

    assert refusal(mine, reference="logprobs") == (
        "register_objective: mine: unknown reference 'logprobs'. "
        "Choose from none, log_probs, model."
    )


@pytest.mark.parametrize("value", ["x", None, math.nan, inf, (1,)])
def test_a_default_that_is_not_a_finite_number_is_refused(value: Any):
    def mine(forget: Sequences, *, beta: Any = value) -> Tensor:
        return forget.log_probs * beta

    assert refusal(mine) == (
        f"register_objective: mine: the default of beta is not a finite number ({value!r}). "
        "Settings are numbers."
    )


def negated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    function.negated = True  # type: ignore[attr-defined]
    return function


def test_a_decorator_that_workers_would_not_apply_is_refused():
    with pytest.raises(MeowError) as caught:

        @register_objective
        @negated
        def mine(forget: Sequences) -> Tensor:
            return forget.log_probs

    assert str(caught.value) == (
        "register_objective: mine: workers do not apply its decorator negated. "
        "Remove the decorator."
    )


def test_uses_above_the_decorator_is_refused():
    with pytest.raises(MeowError) as caught:

        @uses("model")
        @register_objective
        def mine(forget: Sequences) -> Tensor:
            return forget.log_probs

    message = (
        "register_objective: mine: `uses` has no effect here. Move it below `register_objective`."
    )
    assert str(caught.value) == message
