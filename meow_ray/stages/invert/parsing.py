"""What a reply says: reasoning is left out, answers and verdicts are read from JSON or lines."""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from meow_ray.stages.invert.forms import in_form_of
from meow_ray.stages.invert.rules import Proposal

_TAG_NAME = r"(?:\w+:)?(?:think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratchpad)"
_OPENING_TAG = rf"(?:<{_TAG_NAME}(?:\s[^<>]*)?>|\[think(?:ing)?\]|◁{_TAG_NAME}▷)"
_CLOSING_TAG = rf"(?:</{_TAG_NAME}\s*>|\[/think(?:ing)?\]|◁/{_TAG_NAME}▷)"
_REASONING = (
    re.compile(rf"{_OPENING_TAG}.*?{_CLOSING_TAG}", re.IGNORECASE | re.DOTALL),
    re.compile(rf"^.*{_CLOSING_TAG}", re.IGNORECASE | re.DOTALL),
    re.compile(rf"{_OPENING_TAG}.*$", re.IGNORECASE | re.DOTALL),
    re.compile(r"^.*<\|channel\|>final<\|message\|>", re.DOTALL),
)
"""Patterns of reasoning: in tags, before a closing tag, after an opening tag, in a channel."""
_FENCE = re.compile(r"^\s*(?:```|~~~)")
_OPENING_BRACKET = re.compile(r"[\[{]")
_ARRAY_OF_ANSWERS = re.compile(r'"answers"\s*:\s*\[(?=\s*(?:"|$))', re.IGNORECASE)
_ARRAY = re.compile(r'\[(?=\s*")')
_ITEM = re.compile(r'\s*,?\s*"((?:[^"\\]|\\.)*)("|$)', re.DOTALL)
"""Matches a string of a JSON array and its closing quote, which a reply that was cut off lacks."""
_Answer = tuple[str, bool]
"""An answer in a reply, and whether it is complete."""
_NUMBERING = re.compile(
    r"^\s*(?:\(?\d{1,2}[.):]\s+|[-*•]\s+|answer(?:\s*\d+)?\s*:\s*)", re.IGNORECASE
)
_QUOTES = '"“”'
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\b(?:Dr|Mr|Ms|St|Jr))(?<!\bMrs)[.!?]['\"”’)]*(?=\s+[A-Z'\"“‘(]|\s*$)"
    r"|[。！？।۔]"
)


# --- reasoning ----------------------------------------------------------------------------------


def without_reasoning(text: str) -> str:
    """Returns a reply without its reasoning, whose opening or closing tag may be missing."""
    for pattern in _REASONING:
        text = pattern.sub("", text)
    return text.strip()


def is_reasoning_only(text: str, finished: bool) -> bool:
    """Tells whether a reply ended before it came to its answer.

    The reasoning may be in the reply, or an endpoint may have kept it: then the reply is empty.
    """
    has_reasoning = bool(text.strip()) or not finished
    return has_reasoning and not without_reasoning(text)


# --- answers ------------------------------------------------------------------------------------


def parse_reply(text: str, finished: bool, true_answer: str) -> list[Proposal]:
    """Returns the proposals of a chat reply, in the form of the true answer.

    They are the strings of the last JSON value that fits, or the reply's lines if none fits. A
    proposal that was cut off is not finished: the last line, or a string without its closing quote.
    """
    return [
        Proposal(_tidied(answer, true_answer), ended) for answer, ended in _strings(text, finished)
    ]


def parse_questions(text: str, finished: bool, question: str) -> list[Proposal]:
    """Returns the questions that a chat reply lists, read like the answers of `parse_reply`.

    They have neither number nor quotes if the given question has none.
    """
    return [
        Proposal(unicodedata.normalize("NFC", _bare(listed, question)), ended)
        for listed, ended in _strings(text, finished)
    ]


def _strings(text: str, finished: bool) -> list[_Answer]:
    """Returns the strings of the last JSON value that fits, or the reply's lines if none fits."""
    text = without_reasoning(text)
    strings = _in_json(text)
    return _lines(text, finished) if strings is None else strings


def _in_json(text: str) -> list[_Answer] | None:
    """Returns the answers of the last JSON value that holds some; None if there is no such value.

    `answers` of an object go before a plain array, and an array before single answers. Each may be
    broken or cut off.
    """
    named: list[str] | None = None
    end_of_named = 0
    arrays: list[list[str]] = []
    single: list[str] = []
    for value, end in _json_values(text):
        answers = _named_answers(value)
        if answers is not None:
            named, end_of_named = answers, end
        elif _is_array_of_strings(value):
            arrays.append(value)
        elif _is_single_answer(value):
            single.append(value["answer"])
    broken = _broken_array(text[end_of_named:], _ARRAY_OF_ANSWERS)
    if broken:
        return broken
    if named is not None:
        return _complete(named)
    if arrays or single:
        return _complete(arrays[-1] if arrays else single)
    return _broken_array(text, _ARRAY) or None


def _complete(answers: Iterable[str]) -> list[_Answer]:
    return [(answer, True) for answer in answers]


def _named_answers(value: Any) -> list[str] | None:
    """Returns the strings under the key `answers` of an object or of an object inside it."""
    if not isinstance(value, dict):
        return None
    answers = value.get("answers")
    if isinstance(answers, dict):
        answers = list(answers.values())
    if isinstance(answers, list):
        strings = [_string_of(answer) for answer in answers]
        return None if None in strings else [string for string in strings if string is not None]
    inner = (_named_answers(part) for part in value.values())
    return next((found for found in inner if found is not None), None)


class _Number(str):
    """A number of a JSON text, as it is written there."""


def _string_of(answer: Any) -> str | None:
    """Returns an answer that is a string or a number, or an object with one of these."""
    if isinstance(answer, dict):
        strings = [part for part in answer.values() if isinstance(part, str)]
        return strings[0] if len(strings) == 1 else None
    return answer if isinstance(answer, str) else None


def _is_array_of_strings(value: Any) -> bool:
    """Tells whether a JSON value is an array of strings; `[1]` is a reference in prose."""
    is_array = isinstance(value, list) and bool(value)
    return is_array and all(isinstance(v, str) and not isinstance(v, _Number) for v in value)


def _is_single_answer(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("answer"), str)


def _json_values(text: str) -> Iterator[tuple[Any, int]]:
    """Yields the JSON objects and arrays in a text, each with its end; not those inside another."""
    decoder = json.JSONDecoder(strict=False, parse_int=_Number, parse_float=_Number)
    position = 0
    while bracket := _OPENING_BRACKET.search(text, position):
        try:
            value, position = decoder.raw_decode(text, bracket.start())
        except (ValueError, RecursionError):
            position = bracket.end()
        else:
            yield value, position


def _broken_array(text: str, start: re.Pattern[str]) -> list[_Answer]:
    """Returns the strings of the last array with this start, which need not be valid JSON."""
    starts = [*start.finditer(text)]
    if not starts:
        return []
    position = starts[-1].end()
    strings = []
    while item := _ITEM.match(text, position):
        content, closing_quote = item.groups()
        try:
            strings.append((json.loads(f'"{content}"', strict=False), bool(closing_quote)))
        except json.JSONDecodeError:
            strings.append((content, False))
        position = item.end()
    return strings


def _lines(text: str, finished: bool) -> list[_Answer]:
    """Returns the lines of a reply, each with whether it is complete."""
    lines = [line for line in text.splitlines() if line.strip() and not _FENCE.match(line)]
    last = len(lines) - 1
    return [(line, finished or i < last) for i, line in enumerate(lines)]


def _tidied(text: str, true_answer: str) -> str:
    """Returns an answer without what the true answer lacks: number, quotes and final stop."""
    return unicodedata.normalize("NFC", in_form_of(true_answer, _bare(text, true_answer)))


def _bare(text: str, like: str) -> str:
    """Returns a text without number and quotes if another text has none."""
    if not _NUMBERING.match(like):
        text = _NUMBERING.sub("", text)
    text = text.strip()
    return text[1:-1].strip() if _is_quoted(text) and not _is_quoted(like) else text


def _is_quoted(text: str) -> bool:
    """Tells whether quotes enclose a whole text."""
    is_enclosed = len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES
    return is_enclosed and not set(text[1:-1]) & set(_QUOTES)


def cut_to_sentences(text: str, answer: str, finished: bool) -> Proposal:
    """Returns a continuation, cut to as many sentences as the true answer has, in its form.

    Small models do not know where to end. A continuation that was cut off by its token limit counts
    as finished if it has that many whole sentences.
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    wanted = max(1, len(_SENTENCE_END.findall(answer)))
    is_longer = len(ends) > wanted
    ends_in_fragment = len(ends) == wanted and not finished
    if is_longer or ends_in_fragment:
        return Proposal(in_form_of(answer, text[: ends[wanted - 1]].strip()), finished=True)
    return Proposal(in_form_of(answer, text.strip()), finished)


def whole_sentences(text: str) -> str:
    """Returns a text up to the end of its last whole sentence; empty if it has none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""


# --- verdicts -----------------------------------------------------------------------------------


def parse_verdict(text: str, name: str = "contradicts") -> bool | None:
    """Returns the verdict that a judge's reply states in JSON, such as `{"contradicts": true}`.

    The last verdict counts. The result is None if the reply states none.

    Args:
        text: the reply.
        name: the key of the verdict.
    """
    pattern = rf"""["']{name}["']\s*:\s*["']?(true|false)\b"""
    verdicts: list[str] = re.findall(pattern, without_reasoning(text), re.IGNORECASE)
    return verdicts[-1].casefold() == "true" if verdicts else None
