"""Objectives that a program registers: a function becomes source text that every worker can run."""

import ast
import dis
import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any, Literal, TypeVar, overload

from meow_ray.errors import MeowError
from meow_ray.stages.train.objectives import PRESETS, REGISTERED

_F = TypeVar("_F", bound=Callable[..., Any])


@overload
def register_objective(function: _F) -> _F: ...


@overload
def register_objective(
    *, name: str | None = None, reference: Literal["none", "log_probs", "model"] = "none"
) -> Callable[[_F], _F]: ...


def register_objective(
    function: Any = None,
    *,
    name: str | None = None,
    reference: Literal["none", "log_probs", "model"] = "none",
) -> Any:
    """Registers a function as an objective, so that `train.objective` can name it.

    Its positional parameters are the roles that it reads (`inverted`, `forget`, `retain`, `idk`),
    each as `losses.Sequences`; its keyword parameters are its settings. It returns shares of a mean
    over the global batch, by `token_mean` or `sequence_mean`. The source text of the function
    travels to the workers and enters the fingerprint of `train`. The function may use imported
    modules and functions, and constants; everything else it has to define inside itself.

    Args:
        function: the function, when this is used as a plain decorator.
        name: the name of the objective; None takes the function's.
        reference: what it reads of the model before training: nothing, log-probabilities that are
            computed once, or a frozen copy.

    Raises:
        MeowError: the source of the function cannot be read, or it uses something that a worker
            could not import.

    Example:
        >>> import meow_ray
        >>> @meow_ray.register_objective
        ... def soft_ascent(forget, *, beta=0.5):
        ...     return forget.token_mean(forget.log_probs.exp() ** beta)
    """

    def register(function: _F) -> _F:
        objective = name or function.__name__
        if objective in PRESETS:
            raise MeowError(f"register_objective: {objective} is a method of meow_ray. Rename it.")
        REGISTERED[objective] = _self_contained(function, objective, reference)
        return function

    return register if function is None else register(function)


def _self_contained(function: Callable[..., Any], name: str, reference: str) -> str:
    """Returns a module's text that defines the function, with all that it uses, under `name`."""
    where = f"register_objective: {name}"
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        raise MeowError(
            f"{where}: its source cannot be read. Define it with `def` in a file or a notebook."
        ) from None
    (definition,) = tree.body
    if not isinstance(definition, ast.FunctionDef):
        raise MeowError(f"{where}: it is no plain function. Define it with `def`.")
    if function.__code__.co_freevars:
        captured = ", ".join(function.__code__.co_freevars)
        raise MeowError(f"{where}: it uses {captured} of the function around it. Move that inside.")
    definition.name = name
    definition.decorator_list = []
    definition.args.kw_defaults = [
        ast.Constant(parameter.default) if parameter.default is not parameter.empty else None
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    lines = ["from __future__ import annotations"]
    lines += [
        _definition_of(used, function, where)
        for used in sorted(set(_globals_of(function.__code__)))
        if used in function.__globals__
    ]
    lines += [ast.unparse(definition), f"{name}.reference = {reference!r}"]
    return "\n".join(lines) + "\n"


def _globals_of(code: CodeType) -> Iterator[str]:
    """Yields the names that code reads from its module, in nested functions too."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)


def _definition_of(name: str, function: Callable[..., Any], where: str) -> str:
    """Returns a line of source that gives a global name the value that it has in the program."""
    value = function.__globals__[name]
    if isinstance(value, ModuleType):
        return f"import {value.__name__} as {name}"
    if value is None or isinstance(value, bool | int | float | str):
        return f"{name} = {value!r}"
    module, attribute = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if module in (None, "__main__", function.__module__) or not attribute.isidentifier():
        raise MeowError(
            f"{where}: it uses {name}, which only this program defines. Move it inside the "
            "function, or put both into a file and set train.objective=FILE.py:FUNCTION."
        )
    return f"from {module} import {attribute} as {name}"
