"""The columns of questions and answers: their names, and how other tools lay them out."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CHAT_COLUMNS = ("messages", "conversations")
"""Columns with a list of messages: OpenAI's and ShareGPT's names."""

ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""The roles of a question and its answer."""

KNOWN_PAIRS = (
    ("input", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "gt"),
    ("prompt", "answer"),
    ("question", "response"),
    ("query", "answer"),
    ("query", "response"),
    ("question", "output"),
)
"""Names of the two columns in published data, for advice in error messages."""


@dataclass(frozen=True)
class Columns:
    """The names that the columns of question and answer may have; the first match is used."""

    questions: Sequence[str] = ("question",)
    answers: Sequence[str] = ("answer", "undesired_answer")

    def num_matches(self, names: Collection[str]) -> int:
        """Returns how many of the two columns are among the names, in any case: 0, 1 or 2."""
        lowered = {name.lower() for name in names if isinstance(name, str)}
        return sum(
            any(name.lower() in lowered for name in wanted)
            for wanted in (self.questions, self.answers)
        )

    def recognise(self, names: Collection[str]) -> bool:
        """Tells whether one of the names is a column of facts, of a chat or of instructions."""
        others = {*CHAT_COLUMNS, "instruction", *(name for pair in KNOWN_PAIRS for name in pair)}
        return self.num_matches(names) > 0 or bool(others.intersection(names))

    def missing(self, names: Collection[str]) -> Sequence[str]:
        """Returns the possible names of the first column that is absent; none if both are there."""
        for wanted in (self.questions, self.answers):
            if not any(name in names for name in wanted):
                return wanted
        return ()


@dataclass(frozen=True)
class Pair:
    """The question and the answer of a row, or why the row has none."""

    question: Any = None
    answer: Any = None
    fault: str = ""


def pair_of(record: Mapping[str, Any], columns: Columns) -> Pair:
    """Returns the values of the two columns of a row."""
    return Pair(
        _text_of(_first_column(record, columns.questions)),
        _text_of(_first_column(record, columns.answers)),
    )


def _first_column(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Returns the value of the first column in `names` that a record has, or None."""
    return next((record[name] for name in names if name in record), None)


# --- layouts of other tools ---------------------------------------------------------------------


def has_layout(names: Collection[str]) -> bool:
    """Tells whether rows with these columns are chats or instructions."""
    return any(name in names for name in CHAT_COLUMNS) or {"instruction", "output"} <= set(names)


def pair_in_layout(record: Mapping[str, Any]) -> Pair:
    """Returns the question and the answer of a chat or of an instruction.

    The user's message is the question, the assistant's the answer. The question of an instruction
    is `instruction`, followed by `input` on a line of its own if that is not empty.
    """
    for name in CHAT_COLUMNS:
        if name in record:
            return _pair_of_chat(record[name])
    if record.get("system"):
        return Pair(fault="has a system prompt; set `target.system` and leave it out of the row")
    if record.get("history"):
        return Pair(fault="has earlier turns in `history`; a fact is one question and one answer")
    instruction, text = record.get("instruction"), record.get("input")
    if text and isinstance(instruction, str):
        instruction = f"{instruction}\n{text}"
    return Pair(instruction, record.get("output"))


def is_chat(value: Any) -> bool:
    """Tells whether a value is a list of messages."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _pair_of_chat(messages: Any) -> Pair:
    if not is_chat(messages):
        return Pair(fault="its messages are not a list of objects with a role and a text")
    turns = [(_role(message), _content(message)) for message in messages]
    if turns[0][0] == "system":
        if turns[0][1]:
            return Pair(
                fault="has a system message; set `target.system` and leave it out of the row"
            )
        turns = turns[1:]
    if [ROLES.get(role) for role, _ in turns] != ["user", "assistant"]:
        return Pair(
            fault=f"has {len(turns)} messages; a fact is one message of the user and one of the "
            "assistant"
        )
    return Pair(turns[0][1], turns[1][1])


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and (
        {"role", "content"} <= set(value) or {"from", "value"} <= set(value)
    )


def _role(message: Mapping[str, Any]) -> Any:
    return message["role"] if "role" in message else message["from"]


def _content(message: Mapping[str, Any]) -> Any:
    """Returns the text of a message, which may be its only part."""
    content = message["content"] if "content" in message else message["value"]
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], Mapping):
        return content[0].get("text", content)
    return content


def _text_of(value: Any) -> Any:
    """Returns the text of a list of one message, and any other value as it is."""
    return _content(value[0]) if is_chat(value) and len(value) == 1 else value


# --- advice -------------------------------------------------------------------------------------


def advice(names: Collection[str], columns: Columns) -> str:
    """Returns what to do about rows without the wanted columns.

    It names only columns from lists of this module and of the configuration: in a file without a
    header, the columns are facts.
    """
    if "paragraphs" in names:
        return (
            "These are SQuAD's articles. Write one row for each question, with the text of one "
            "answer."
        )
    if {"prompt", "chosen", "rejected"} <= set(names):
        return (
            "These are preference pairs. Say which text is the true answer: "
            "`ingest.question_columns=[prompt]` and `ingest.answer_columns=[chosen]` or "
            "`[rejected]`."
        )
    if {"chosen", "rejected"} <= set(names):
        return "These are preference pairs. Write one row per fact, with its question and answer."
    for question, answer in KNOWN_PAIRS:
        if question in names and answer in names:
            return (
                f"Its {question} and {answer} may be meant: set "
                f"`ingest.question_columns=[{question}]` and `ingest.answer_columns=[{answer}]`."
            )
    wanted = {*columns.questions, *columns.answers}
    in_other_case = {name for name in names if name not in wanted and name.lower() in _low(wanted)}
    if in_other_case:
        return (
            f"It has {', '.join(sorted(in_other_case))}, but upper and lower case count. Name "
            "yours in `ingest.question_columns` and `ingest.answer_columns`."
        )
    if set(names) == {"text"}:
        return "These are passages. Facts to forget are questions and answers; write them as such."
    return (
        "Name yours in `ingest.question_columns` and `ingest.answer_columns`, or add a header to a "
        "CSV file that has none."
    )


def _low(names: Collection[str]) -> set[str]:
    return {name.lower() for name in names}
