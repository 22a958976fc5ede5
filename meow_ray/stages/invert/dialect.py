"""The fields of a request that an endpoint takes: one that it refuses is no longer sent."""

import json
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

from meow_ray.engines import Sampling

LIMITS = ("max_completion_tokens", "max_tokens")
"""Names of the largest number of new tokens; the first that is not refused is sent."""
_WORD_OF = {
    "n": r"""['"`]n['"`]"""
    r"|\b(?:parameter|argument|property|field)s?(?: supplied)?:? n\b"
    r"|\bn\b(?=\s*(?:[=<>]|must|should|is|cannot))",
    "response_format": r"\bresponse_format\b|\bjson_schema\b|\bstructured[ _]outputs?\b",
}
"""How a message names a field, if not by the bare word."""
_ABOUT_LENGTH = re.compile(r"context|prompt|input tokens|too long|reduce the length", re.IGNORECASE)
"""Matches the message about a prompt that is too long, which often names the limit as well."""


class Dialect:
    """The fields that an endpoint takes, as far as its refusals have shown."""

    def __init__(self, structured: bool) -> None:
        self.structured = structured
        self.refused: list[str] = []
        """Names of refused fields, in the order of their refusals."""

    def fields(self, sampling: Sampling, n: int, seed: int | None) -> dict[str, Any]:
        """Returns the fields of a request for n completions, other than model and messages."""
        fields: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        limit = next((name for name in LIMITS if name not in self.refused), None)
        if limit is not None:
            fields[limit] = sampling.max_new_tokens
        if n > 1:
            fields["n"] = n
        if seed is not None:
            fields["seed"] = seed
        if sampling.json_schema and self.structured:
            schema = {"name": "reply", "schema": json.loads(sampling.json_schema), "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        return {name: value for name, value in fields.items() if name not in self.refused}

    def refuse(self, name: str) -> None:
        """Leaves a field out of all further requests."""
        if name not in self.refused:
            self.refused.append(name)


def refused_field(body: object, sent: Mapping[str, Any]) -> str | None:
    """Returns which field of a request an error refuses; None if it names none that was sent.

    Args:
        body: the body of the reply, in the form of OpenAI, FastAPI or Mistral, or plain text.
        sent: the fields of the request.
    """
    messages = list(_messages(body))
    names = [*_located(body, sent), *_mentioned(messages, sent)]
    name = next(iter(names), None)
    is_about_length = any(_ABOUT_LENGTH.search(message) for message in messages)
    return None if name in LIMITS and is_about_length else name


def places(body: object) -> list[str]:
    """Returns the places in a request that an error names, such as `body.messages`."""
    return list(dict.fromkeys(".".join(place) for place in _places(body)))


def _located(body: object, sent: Container[str]) -> Iterator[str]:
    """Yields the sent fields that are named as the place of the error."""
    for place in _places(body):
        yield from (part for part in place if part in sent)


def _places(body: object) -> Iterator[list[str]]:
    """Yields the parts of each `param` and each `loc` in a body."""
    for key, value in _entries(body):
        if key == "param" and isinstance(value, str):
            yield re.findall(r"\w+", value)
        if key == "loc" and isinstance(value, list):
            yield [str(part) for part in value]


def _mentioned(messages: list[str], sent: Mapping[str, Any]) -> Iterator[str]:
    """Yields the sent fields that a message names, in the order of the message."""
    for message in messages:
        found = {
            name: match.start()
            for name in sent
            if (match := re.search(_WORD_OF.get(name, rf"\b{name}\b"), message))
        }
        yield from sorted(found, key=found.__getitem__)


def _messages(body: object) -> Iterator[str]:
    """Yields the texts for people in a body."""
    if isinstance(body, str):
        yield body
    for key, value in _entries(body):
        if key in ("message", "msg", "detail", "error", "title") and isinstance(value, str):
            yield value


def _entries(body: object) -> Iterator[tuple[str, object]]:
    """Yields all keys with their values in a JSON value, at any depth."""
    if isinstance(body, dict):
        for key, value in body.items():
            yield key, value
            yield from _entries(value)
    if isinstance(body, list):
        for value in body:
            yield from _entries(value)
