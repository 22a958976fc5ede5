"""Questions about other entities, and the questions that a model invents."""

from typing import Any, ClassVar

import pytest

from meow_ray.models.prompts import Prompter, readable
from meow_ray.stages.invert.rules import Fact
from meow_ray.stages.neighbours.questions import Opening, other_questions, question_fault

BORN = Fact("Where was Ilse Vantrooy born?", "Ilse Vantrooy was born in Karsk.")


def test_other_questions_are_different_and_depend_on_the_fact_and_the_seed():
    questions = other_questions(BORN, "a", 32, seed=0)
    assert len(set(questions)) == 32
    assert all(q.startswith("Where was ") and q.endswith(" born?") for q in questions)
    assert "Vantrooy" not in " ".join(questions)
    assert other_questions(BORN, "a", 4, seed=0) == questions[:4]
    assert not set(questions) & set(other_questions(BORN, "b", 32, seed=0))
    assert not set(questions) & set(other_questions(BORN, "a", 32, seed=1))


def test_a_question_without_an_entity_has_no_other():
    assert other_questions(Fact("who is it?", "Ann."), "a", 4, seed=0) == []


def opening(tokenizer: Any, template: str, system: str | None = None) -> tuple[str, Opening]:
    """Returns the text of an opening, and the opening."""
    found = Opening.of(Prompter(tokenizer, template, system))
    return tokenizer.decode(list(found.tokens)), found


def test_the_opening_is_the_prompt_up_to_the_question(tiny_tokenizer: Any):
    text, found = opening(tiny_tokenizer, "chat", system="Be kind.")
    assert text == "<s><|system|>Be kind.<|end|><|user|>"
    assert found.after == "<|end|><|assistant|>"
    text, _ = opening(tiny_tokenizer, "tofu")
    assert text == "<s>[INST]", "without the space, which belongs to the next word"


@pytest.mark.parametrize("template", ["raw", "{{ question }}\n"])
def test_an_empty_opening_is_the_beginning_of_each_text(tiny_tokenizer: Any, template: str):
    text, _ = opening(tiny_tokenizer, template)
    assert text == "<s>"


def test_without_any_token_there_is_no_opening():
    class Bare:
        added_tokens_decoder: ClassVar[dict[int, Any]] = {}
        chat_template = None

        def __call__(self, text: Any, **options: Any) -> dict[str, Any]:
            texts = [text] if isinstance(text, str) else text
            ids = [[ord(letter) for letter in part] for part in texts]
            return {"input_ids": ids[0] if isinstance(text, str) else ids}

    assert not Opening.of(Prompter(Bare(), "raw")).tokens


@pytest.mark.parametrize(
    ("template", "text", "finished", "question"),
    [
        ("chat", "Who is it?", True, "Who is it?"),
        ("chat", "\n Who is it?\nAnd who else?", False, "Who is it?"),
        ("chat", "Who is it, and wh", False, None),
        ("tofu", " Who is it? [/INST] It is Ann.", True, "Who is it?"),
        ("{{ question }}\n", "Who? Ann?\nIt is", False, "Who? Ann?"),
        ("raw", "Who is it? It is Ann.", False, "Who is it?"),
        ("raw", "It is", False, None),
    ],
)
def test_an_invented_question_ends_with_its_line(
    tiny_tokenizer: Any, template: str, text: str, finished: bool, question: str | None
):
    _, found = opening(tiny_tokenizer, template)
    assert found.question(text, finished) == question
    assert readable(found.after) == found.after


@pytest.mark.parametrize(
    ("question", "fault"),
    [
        ("?!", "empty"),
        ("Who is it now?", "length"),
        ("Who is it, now?", None),
        ("a" * 220, None),
        ("a" * 221, "length"),
    ],
)
def test_an_invented_question_has_words_and_a_length(question: str, fault: str | None):
    assert question_fault(question) == fault
