"""The tokens that end an answer: what a model's chat template and its files say."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from meow_ray.errors import MeowError
from meow_ray.models.control_tokens import control_tokens, template_source

GENERATION = "generation_config.json"
_QUESTION = "Which one was asked?"
_ANSWER = "That one was answered."
_NEXT = "And which one is next?"


def declared_ends(folder: Path) -> list[int]:
    """Returns the end tokens that a model's folder declares for generation, the first one first."""
    for name in (GENERATION, "config.json"):
        path = folder / name
        declared = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        if declared is not None:
            return list(declared) if isinstance(declared, list) else [int(declared)]
    return []


def end_of_turn(tokenizer: Any, variables: Mapping[str, Any] | None = None) -> int | None:
    """Returns the first control token that the chat template writes after an assistant's turn.

    None if there is no chat template, or if it writes none.
    """
    encoded = json.dumps(dict(variables or {}), sort_keys=True)
    return _end_of_turn(tokenizer, template_source(tokenizer), encoded)


@lru_cache(maxsize=64)
def _end_of_turn(tokenizer: Any, template: str, encoded_variables: str) -> int | None:
    if not template:
        return None
    variables = json.loads(encoded_variables)
    turn = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    after = _written_after_answer(tokenizer, turn, variables)
    if not after:  # some templates drop or leave open a last turn that is the assistant's
        turn.append({"role": "user", "content": _NEXT})
        after = _written_after_answer(tokenizer, turn, variables)
    return control_tokens(tokenizer).names[after[0]] if after else None


def _written_after_answer(
    tokenizer: Any, messages: list[dict[str, str]], variables: Mapping[str, Any]
) -> list[str]:
    """Returns the control tokens between the answer and the next question or the end.

    Those before the first question open a turn. They do not count if another turn follows.
    """
    from jinja2 import TemplateError

    tokens = control_tokens(tokenizer)
    try:
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, **variables))
    except (TemplateError, TypeError, ValueError):
        return []
    before, _, rest = tokens.mark(rendered).partition(_QUESTION)
    _, found, after = rest.rpartition(_ANSWER)
    if not found:
        return []
    end, another_turn, _ = after.partition(_NEXT)
    opening = tokens.written(before) if another_turn else []
    return [name for name in tokens.written(end) if name not in opening]


def ends_of(tokenizer: Any) -> set[int]:
    """Returns the tokens at which a reply ends: the tokenizer's, and that of the chat template."""
    ends = {tokenizer.eos_token_id, end_of_turn(tokenizer)}
    return {end for end in ends if end is not None}


def check_end(tokenizer: Any, key: str) -> None:
    """Refuses a model without an end-of-sequence token.

    Args:
        tokenizer: the tokenizer, from `refs.load_tokenizer`.
        key: the configuration key that names the model.

    Raises:
        MeowError: neither the tokenizer nor the model's configuration names such a token.
    """
    if tokenizer.eos_token_id is not None:
        return
    turn = end_of_turn(tokenizer)
    written = tokenizer.convert_ids_to_tokens(turn) if turn is not None else None
    hint = f" The chat template ends a turn with {written}." if written else ""
    raise MeowError(
        f"`{key}`: its tokenizer has no end-of-sequence token, so no answer would ever end.{hint} "
        "Set `eos_token` in the model's tokenizer_config.json, or `eos_token_id` in its "
        f"{GENERATION}."
    )


def declare_end(folder: Path, end: int) -> None:
    """Adds an end token to those at which a model's folder lets generation stop."""
    declared = declared_ends(folder)
    if end in declared:
        return
    path = folder / GENERATION
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(settings | {"eos_token_id": [*declared, end]}, indent=2) + "\n")
