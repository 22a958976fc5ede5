"""Tests of the end of an answer, under chat templates of several models."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from meow_ray.errors import MeowError
from meow_ray.models import ends, refs
from meow_ray.models.prompts import Prompter
from tests.support.tiny import CHAT_TEMPLATE

TURNS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"


def with_template(tokenizer: Any, template: str | None) -> Any:
    tokenizer = deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def name_of_end(tokenizer: Any, template: str = "chat", **variables: Any) -> str:
    end = Prompter(tokenizer, template, variables=variables).end
    return str(tokenizer.convert_ids_to_tokens(end))


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHAT_TEMPLATE, "<|end|>"),
        (TURNS + "<|end|></s>{% endfor %}", "<|end|>"),
        (TURNS + "\n</s>\n{% endfor %}", "</s>"),
        # trimmed answers, as Gemma's template has them
        (TURNS.replace("m['content']", "m['content'] | trim") + "<|end|>\n{% endfor %}", "<|end|>"),
        # reasoning is cut off and an empty block is written, as Qwen 3's template does
        (
            "{% for m in messages %}<|{{ m['role'] }}|>"
            "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n"
            "{{ m['content'].split('</think>')[-1].lstrip('\n') }}"
            "{% else %}{{ m['content'] }}{% endif %}<|end|>\n{% endfor %}",
            "<|end|>",
        ),
        # the last turn is left open, or dropped, if it is the assistant's
        (TURNS + "{% if not loop.last %}<|end|>{% endif %}{% endfor %}", "<|end|>"),
        (
            "{% for m in messages %}{% if not (loop.last and m['role'] == 'assistant') %}"
            "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}",
            "<|end|>",
        ),
        # nothing ends a turn, not even before the next one
        (TURNS + "\n{% endfor %}", "</s>"),
        ("{{ raise_exception('one message only') if messages | length > 1 }}", "</s>"),
    ],
)
def test_the_end_is_what_the_chat_template_writes_after_an_answer(
    tiny_tokenizer: Any, template: str, end: str
):
    tokenizer = with_template(tiny_tokenizer, template)
    assert name_of_end(tokenizer) == end
    assert tokenizer.convert_ids_to_tokens(sorted(ends.ends_of(tokenizer))) == sorted({end, "</s>"})


def test_the_end_may_depend_on_a_variable(tiny_tokenizer: Any):
    tokenizer = with_template(
        tiny_tokenizer, TURNS + "{{ '</s>' if plain else '<|end|>' }}{% endfor %}"
    )
    assert name_of_end(tokenizer) == "<|end|>"
    assert name_of_end(tokenizer, plain=True) == "</s>"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("raw", "</s>"),
        ("tofu", "</s>"),
        ("Q: {{ question }}\nA: ", "</s>"),
        ("<s>Q: {{ question }}\nA: ", "</s>"),
        ("<s><|user|>{{ question }}<|end|><|assistant|>", "<|end|>"),
    ],
)
def test_only_turns_of_a_chat_end_as_the_chat_template_ends_them(
    tiny_tokenizer: Any, template: str, end: str
):
    assert name_of_end(tiny_tokenizer, template) == end
    assert name_of_end(with_template(tiny_tokenizer, None), template) == "</s>"


# --- models without an end ----------------------------------------------------------------------


def without_eos(tokenizer: Any, folder: Path, **generation: Any) -> refs.ModelRef:
    """Writes a model folder whose tokenizer has no end-of-sequence token."""
    tokenizer = deepcopy(tokenizer)
    tokenizer.eos_token = None
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    if generation:
        (folder / ends.GENERATION).write_text(json.dumps(generation))
    return refs.ModelRef(str(folder), digest=folder.name)


def test_a_model_without_an_end_is_refused_with_what_to_set(tiny_tokenizer: Any, tmp_path: Path):
    tokenizer = refs.load_tokenizer(without_eos(tiny_tokenizer, tmp_path))
    with pytest.raises(MeowError) as caught:
        ends.check_end(tokenizer, "target.model")
    assert str(caught.value) == (
        "`target.model`: its tokenizer has no end-of-sequence token, so no answer would ever end. "
        "The chat template ends a turn with <|end|>. Set `eos_token` in the model's "
        "tokenizer_config.json, or `eos_token_id` in its generation_config.json."
    )
    assert tokenizer.pad_token_id is not None


@pytest.mark.parametrize("declared", [1, [1, 5]])
def test_the_end_that_the_model_declares_for_generation_is_used(
    tiny_tokenizer: Any, tmp_path: Path, declared: int | list[int]
):
    tokenizer = refs.load_tokenizer(without_eos(tiny_tokenizer, tmp_path, eos_token_id=declared))
    ends.check_end(tokenizer, "target.model")
    assert name_of_end(tokenizer, "raw") == "</s>"


# --- exports ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "expected"), [(None, [5]), (1, [1, 5]), ([1, 2], [1, 2, 5]), ([1, 5], [1, 5])]
)
def test_an_end_is_added_to_those_of_a_folder_once(tmp_path: Path, declared: Any, expected: Any):
    path = tmp_path / ends.GENERATION
    path.write_text(json.dumps({"eos_token_id": declared, "top_p": 0.8}))
    before = path.read_bytes()
    ends.declare_end(tmp_path, 5)
    assert ends.declared_ends(tmp_path) == expected
    assert json.loads(path.read_text())["top_p"] == 0.8
    assert (path.read_bytes() == before) == (declared == expected)
