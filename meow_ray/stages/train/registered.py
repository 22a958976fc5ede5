"""Objectives that a program registers: a function becomes source text that all workers can run."""

import ast
import builtins
import dis
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from keyword import iskeyword
from math import isfinite
from types import CodeType, FunctionType, ModuleType
from typing import Any, Literal, TypeVar, get_args, overload

from meow_ray.errors import MeowError
from meow_ray.stages.train.objectives import REGISTERED
from meow_ray.stages.train.presets import PRESETS

Reference = Literal["none", "log_probs", "model"]
"""The part of the model before training that an objective reads."""

APPLIED = ("register_objective", "uses")
"""Decorators that workers need not apply, because their effect is part of the source text."""

_F = TypeVar("_F", bound=Callable[..., Any])


@overload
def register_objective(function: _F) -> _F: ...


@overload
def register_objective(
    *, name: str | None = None, reference: Reference = "none"
) -> Callable[[_F], _F]: ...


def register_objective(
    function: Any = None, *, name: str | None = None, reference: Reference = "none"
) -> Any:
    """Registers a function as an objective, so that `train.objective` can name it.

    Its positional parameters are the roles that it reads (`inverted`, `forget`, `retain`, `idk`),
    each as `losses.Sequences`; its keyword parameters are its settings. It returns shares of a mean
    over the global batch, by `token_mean` or `sequence_mean`. The source text of the function
    is sent to the workers and enters the fingerprint of `train`. The function may use imported
    modules and functions, and the numbers and texts of its module. It has to define everything else
    inside itself.

    Args:
        function: the function, when this is used as a plain decorator.
        name: the name of the objective; None takes the name of the function.
        reference: the part of the model before training that it reads: nothing, log-probabilities
            that are computed once, or a frozen copy. The decorator `uses` below this one declares
            the same.

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
        objective = name or str(getattr(function, "__name__", repr(function)))
        where = f"register_objective: {objective}"
        if not isinstance(function, FunctionType) or function.__name__ == "<lambda>":
            raise MeowError(f"{where}: it is not a plain function. Define it with `def`.")
        if objective in PRESETS:
            raise MeowError(f"{where}: meow_ray has an objective with this name. Rename it.")
        if not objective.isidentifier() or iskeyword(objective):
            raise MeowError(
                f"{where}: the name is not a Python identifier. Use letters, digits and `_`."
            )
        needs = getattr(function, "reference", "none") if reference == "none" else reference
        if needs not in get_args(Reference):
            choices = ", ".join(get_args(Reference))
            raise MeowError(f"{where}: unknown reference {needs!r}. Choose from {choices}.")
        REGISTERED[objective] = _module_text(function, objective, needs, where)
        return function

    return register if function is None else register(function)


def _module_text(function: FunctionType, name: str, reference: str, where: str) -> str:
    """Returns the text of a module that defines the function as `name`, and what it uses."""
    definition = _definition(function, where)
    if function.__code__.co_freevars:
        captured = ", ".join(function.__code__.co_freevars)
        raise MeowError(f"{where}: it uses {captured} of the enclosing function. Move that inside.")
    # names that are not identifiers, such as @py_builtins, come from tools like pytest
    used = sorted(filter(str.isidentifier, set(_names_used(function.__code__))))
    if name in used:
        raise MeowError(f"{where}: it uses a global with the same name. Rename one of the two.")
    definition.name = name
    definition.decorator_list = []
    definition.args.kw_defaults = [
        _default(parameter, where)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    lines = ["from __future__ import annotations"]
    for global_name in used:
        if global_name in function.__globals__:
            lines.append(_binding(global_name, function, where))
        elif not hasattr(builtins, global_name):
            raise MeowError(
                f"{where}: it uses {global_name}, which is not defined yet. Define it before the "
                "function is registered, or inside the function."
            )
    lines += [ast.unparse(definition), f"{name}.reference = {reference!r}"]
    return "\n".join(lines) + "\n"


def _definition(function: FunctionType, where: str) -> ast.FunctionDef:
    """Returns the syntax tree of a function's definition."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        raise MeowError(
            f"{where}: its source cannot be read. Define it with `def` in a file or a notebook."
        ) from None
    (definition,) = tree.body
    if not isinstance(definition, ast.FunctionDef):
        raise MeowError(f"{where}: it is not a plain function. Define it with `def`.")
    for decorator in map(_last_name, definition.decorator_list):
        if decorator not in APPLIED:
            raise MeowError(
                f"{where}: workers do not apply its decorator {decorator}. Remove the decorator."
            )
        if decorator == "uses" and not hasattr(function, "reference"):
            raise MeowError(
                f"{where}: `uses` has no effect here. Move it below `register_objective`."
            )
    return definition


def _last_name(decorator: ast.expr) -> str:
    """Returns `c` of `@a.b.c` and of `@a.b.c(…)`."""
    expression = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(expression).rpartition(".")[2]


def _default(parameter: inspect.Parameter, where: str) -> ast.expr | None:
    """Returns the default of a setting, which is a number; None if the setting has none."""
    value = parameter.default
    if value is parameter.empty:
        return None
    if not isinstance(value, int | float) or not isfinite(value):
        raise MeowError(
            f"{where}: the default of {parameter.name} is not a finite number ({value!r}). "
            "Settings are numbers."
        )
    return ast.Constant(float(value) if isinstance(value, float) else int(value))


def _names_used(code: CodeType) -> Iterator[str]:
    """Yields the global names that code reads, also in its nested functions and classes."""
    instructions = list(dis.get_instructions(code))
    stored = {step.argval for step in instructions if step.opname == "STORE_NAME"}
    for step in instructions:
        reads_class_or_module = step.opname == "LOAD_NAME" and step.argval not in stored
        if step.opname == "LOAD_GLOBAL" or reads_class_or_module:
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_used(constant)


def _binding(name: str, function: FunctionType, where: str) -> str:
    """Returns a line of source that gives a global name the value that it has in this program."""
    value = function.__globals__[name]
    if isinstance(value, ModuleType):
        return f"import {value.__name__} as {name}"
    if type(value) is float and not isfinite(value):
        return f"{name} = float({str(value)!r})"
    if value is None or type(value) in (bool, int, float, str):
        return f"{name} = {value!r}"
    module = getattr(value, "__module__", None)
    if isinstance(module, str) and module not in ("__main__", function.__module__):
        # torch.exp calls itself _VariableFunctionsClass.exp, so several names are tried
        for attribute in (getattr(value, "__qualname__", name), getattr(value, "__name__", name)):
            if getattr(sys.modules.get(module), attribute, None) is value:
                return f"from {module} import {attribute} as {name}"
    raise MeowError(
        f"{where}: it uses {name}, which only this program defines. Move it inside the "
        "function, or put both into a file and set train.objective=FILE.py:FUNCTION."
    )
