"""Tests of prompts: templates, chat messages, tokens, and labels of training pairs."""

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config.files import load_config
from meow_ray.errors import MeowError
from meow_ray.models.prompts import IGNORE, Prompter, fill, readable
from tests.support.tiny import CHAT_TEMPLATE

WORDS = ("</s>", "<|user|>", "<|end|>", "<s>", " ", "a")
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\ufdd0\ufdd1"), max_size=20),
    st.lists(st.sampled_from(WORDS), max_size=6).map("".join),
)
"""Texts, with noncharacters only where programs use them themselves, and with control tokens."""
TEMPLATES = ["raw", "tofu", "chat", "Q: {{ question }}\nA: "]


# --- the prompt as text -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("raw", "Who? "),
        # from locuslab/tofu, config/model_config.yaml, llama2-7b; its answer_tag is empty
        ("tofu", "[INST] Who? [/INST]"),
        ("chat", "<s><|user|>Who?<|end|><|assistant|>"),
        ("Q: {{ question }}\nA: ", "Q: Who?\nA: "),
        ("{{ question | upper }}\n", "WHO?\n"),
    ],
)
def test_a_template_turns_a_question_into_a_prompt(
    tiny_tokenizer: Any, template: str, expected: str
):
    assert readable(Prompter(tiny_tokenizer, template).prompt("Who?")) == expected


def test_a_chat_begins_with_the_system_message(tiny_tokenizer: Any):
    prompt = Prompter(tiny_tokenizer, "chat", "Be brief.").prompt("Who?")
    assert readable(prompt) == "<s><|system|>Be brief.<|end|><|user|>Who?<|end|><|assistant|>"
    assert "system" in Prompter(tiny_tokenizer, "chat", "").prompt("Who?")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("question", ["{{ 7 * 7 }}", "<b>R&D</b> 'x'", "{% raw %}", "two\nlines"])
def test_a_question_is_never_read_as_a_template(tiny_tokenizer: Any, template: str, question: str):
    assert question in Prompter(tiny_tokenizer, template).prompt(question)


def test_the_error_about_a_missing_chat_template_says_what_to_set(tiny_tokenizer: Any):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(MeowError, match=r"has no chat template\. Set `target\.template` to raw"):
        Prompter(tokenizer, "chat").prompt("Who?")
    assert Prompter(tokenizer, "raw").prompt("Who?") == "Who? "


def test_a_chat_template_that_refuses_a_system_message_is_an_error(tiny_tokenizer: Any):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    assert Prompter(tokenizer, "chat").prompt("Who?") == "Who?"
    with pytest.raises(MeowError, match=r"refuses the prompt \(System role not supported\)"):
        Prompter(tokenizer, "chat", "Be brief.").prompt("Who?")


@pytest.mark.parametrize(
    "template",
    [
        "{{ question",
        "{% if question %}",
        "{{ nonsense }}",
        "{{ question.nonsense }}",
        "{{ question | nonsense }}",
        "{{ question + 1 }}",
        "{{ question.__class__.__mro__ }}",
    ],
)
def test_the_error_about_a_bad_template_names_its_key_and_its_fields(template: str):
    with pytest.raises(
        MeowError, match=r"^`invert\.chat_prompt`: .*\. Its fields are question, k\.$"
    ):
        fill(template, "invert.chat_prompt", question="Who?", k=4)


def test_a_mistyped_template_name_is_refused():
    with pytest.raises(
        MeowError, match=r"`target\.template` = 'caht': .* should be chat, tofu, raw"
    ):
        load_config(None, ["target.template=caht"])


def test_fill_does_not_escape_values():
    assert fill("{{ a }} & {{ b }}\n", "key", a="<1>", b='"2"') == '<1> & "2"\n'


# --- tokens and labels --------------------------------------------------------------------------


def test_special_tokens_are_added_once_under_each_template(tiny_tokenizer: Any):
    for template in TEMPLATES:
        prompter = Prompter(tiny_tokenizer, template)
        ids = prompter.encode_prompt(prompter.prompt("Who?"))
        assert ids.count(tiny_tokenizer.bos_token_id) == 1
        assert ids[0] == tiny_tokenizer.bos_token_id


def test_an_answer_ends_with_the_end_of_sequence_token_only(tiny_tokenizer: Any):
    ids = Prompter(tiny_tokenizer, "raw").encode_answer("She.")
    assert tiny_tokenizer.decode(ids) == "She.</s>"
    assert len(ids) == 5


def test_the_tokens_and_labels_of_a_training_pair(tiny_tokenizer: Any):
    ids, labels = Prompter(tiny_tokenizer, "raw").encode_pair("Q", "AB")
    assert tiny_tokenizer.convert_ids_to_tokens(ids) == ["<s>", "Q", "Ġ", "A", "B", "</s>"]
    assert labels == [IGNORE, IGNORE, IGNORE, *ids[3:]]


@pytest.mark.parametrize("template", TEMPLATES)
@given(question=TEXT, answer=TEXT)
def test_the_labels_mask_the_prompt_only(
    tiny_tokenizer: Any, template: str, question: str, answer: str
):
    prompter = Prompter(tiny_tokenizer, template)
    ids, labels = prompter.encode_pair(question, answer)
    assert len(ids) == len(labels)
    target = [label for label in labels if label != IGNORE]
    assert labels == [IGNORE] * (len(ids) - len(target)) + target
    assert target == ids[-len(target) :] == prompter.encode_answer(answer)
    assert ids[: -len(target)] == prompter.encode_prompt(prompter.prompt(question))
    end = "<|end|>" if template == "chat" else "</s>"
    assert tiny_tokenizer.decode(target) == f"{answer}{end}"
    assert tiny_tokenizer.decode(target, skip_special_tokens=True) == answer
    expected = readable(prompter.prompt(question))
    beginning = "" if template == "chat" else "<s>"
    assert tiny_tokenizer.decode(ids[: -len(target)]) == beginning + expected


def test_pairs_that_are_encoded_together_equal_single_ones(tiny_tokenizer: Any):
    prompter = Prompter(tiny_tokenizer, "chat")
    questions, answers = ["Who?", "When?"], ["She.", "In 1762."]
    together = prompter.encode_pairs(questions, answers)
    assert together == [
        prompter.encode_pair(question, answer)
        for question, answer in zip(questions, answers, strict=True)
    ]


# --- variables and beginnings -------------------------------------------------------------------

THINKING = (
    CHAT_TEMPLATE
    + "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}"
)


def test_variables_reach_the_template(tiny_tokenizer: Any):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = THINKING
    plain = Prompter(tokenizer, "chat")
    without = Prompter(tokenizer, "chat", variables={"enable_thinking": False})
    assert readable(plain.prompt("Who?")).endswith("<|assistant|>")
    assert readable(without.prompt("Who?")).endswith("<|assistant|><think>\n\n</think>\n\n")
    assert plain.reads == ["enable_thinking"]
    own = Prompter(tokenizer, "{{ when }}: {{ question }} ", variables={"when": 1931})
    assert own.prompt("Who?") == "1931: Who? "


def test_the_variables_that_llama_reads_are_known(tiny_tokenizer: Any):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{{- bos_token }}{%- if custom_tools is defined %}{%- set tools = custom_tools %}"
        "{%- endif %}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}{%- endif %}"
        "{% generation %}{{ date_string }}{% endgeneration %}{% for m in messages %}"
        "{{ m['content'] }}{% if loop.last %}{% break %}{% endif %}{% endfor %}"
    )
    assert Prompter(tokenizer, "chat").reads == ["custom_tools", "date_string"]


@pytest.mark.parametrize("name", ["tokenize", "messages", "question", "eos_token"])
def test_a_variable_with_a_name_of_the_package_is_refused(name: str):
    with pytest.raises(MeowError, match=f"{name} is set for each prompt"):
        load_config(None, [f"target.template_variables.{name}=x"])


def test_variables_keep_their_types_in_overrides():
    overrides = ["a=false", "b=10 Apr 2025", "c=3", "d=null"]
    config = load_config(None, [f"target.template_variables.{item}" for item in overrides])
    expected = {"a": False, "b": "10 Apr 2025", "c": 3, "d": None}
    assert config.target.template_variables == expected


@pytest.mark.parametrize("template", ["<s>{{ question }} ", "\n<s>{{ question }} "])
def test_a_template_that_writes_the_beginning_gets_no_second_one(
    tiny_tokenizer: Any, template: str
):
    prompter = Prompter(tiny_tokenizer, template)
    ids = prompter.encode_prompt(prompter.prompt("What is <s>?"))
    assert ids.count(tiny_tokenizer.bos_token_id) == 1
    assert tiny_tokenizer.decode(ids) == template.replace("{{ question }}", "What is <s>?")


def test_a_template_of_the_text_of_a_chat_gives_the_pairs_of_the_chat(tiny_tokenizer: Any):
    own = Prompter(tiny_tokenizer, "<s><|user|>{{ question }}<|end|><|assistant|>")
    assert own.encode_pair("Who?", "She.") == Prompter(tiny_tokenizer, "chat").encode_pair(
        "Who?", "She."
    )
