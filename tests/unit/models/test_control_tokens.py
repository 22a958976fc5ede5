"""Tests of control tokens in users' texts, with tokenizers of several kinds."""

from copy import deepcopy
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from meow_ray.errors import MeowError
from meow_ray.models.control_tokens import MARK, control_tokens
from meow_ray.models.prompts import Prompter
from tests.support.tiny import CHAT_TEMPLATE

PIECES = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<|end|>", 0.0), ("▁", -2.0), ("▁a", -1.5)]
LETTERS = "abcdefghijklmnopqrstuvwxyz</>|?."


def words_with_blanks(model: Any) -> Any:
    """Returns a tokenizer in the manner of SentencePiece: `▁` stands for a blank."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|end|>"],
        chat_template="{{ bos_token }}{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}",
    )


def unigram() -> Any:
    pieces = [*PIECES, *((letter, -3.0) for letter in LETTERS)]
    return words_with_blanks(models.Unigram(pieces, unk_id=0))


def bpe_that_keeps_whole_words() -> Any:
    names = [*(name for name, _ in PIECES), *LETTERS]
    vocab = {name: number for number, name in enumerate(names)}
    model = models.BPE(vocab, [("▁", "a")], unk_token="<unk>", ignore_merges=True)
    return words_with_blanks(model)


@pytest.mark.parametrize("make", [unigram, bpe_that_keeps_whole_words])
@pytest.mark.parametrize("text", ["a </s> b", "</s>", "<unk>", "say <|end|>.", "<s>"])
def test_the_name_of_a_control_token_is_text_in_a_text(make: Any, text: str):
    tokenizer = make()
    prompter = Prompter(tokenizer, "chat")
    assert set(prompter.encode_text(text)).isdisjoint(control_tokens(tokenizer).names.values())
    assert tokenizer.decode(prompter.encode_text(text), skip_special_tokens=True) == text
    prompt = prompter.encode_prompt(prompter.prompt(text))
    assert tokenizer.convert_ids_to_tokens([prompt[0], prompt[-1]]) == ["<s>", "<|end|>"]
    assert set(prompt[1:-1]).isdisjoint(control_tokens(tokenizer).names.values())


@pytest.mark.parametrize("make", [unigram, bpe_that_keeps_whole_words])
def test_a_text_without_control_tokens_has_the_tokens_of_the_tokenizer(make: Any):
    tokenizer = make()
    tokens = control_tokens(tokenizer)
    for text in ("a b?", " a", "<a|b>", "ab "):
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokens.encode([text]) == [expected]
        # the way of texts that hold control tokens gives the same
        assert tokens._encode_as_text(text) == expected


def test_control_tokens_of_a_template_keep_what_they_do_to_blanks_around_them(tiny_tokenizer: Any):
    """Phi-3's `<|end|>` swallows the blanks after it."""
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.add_tokens([AddedToken("<|stop|>", rstrip=True, special=True)])
    tokens = control_tokens(tokenizer)
    marked = tokens.mark("Hi<|stop|>  you ") + "</s>"
    names = tokenizer.convert_ids_to_tokens(tokens.encode([marked])[0])
    assert names == ["H", "i", "<|stop|>", *"you", "Ġ", *"</s>"]


def test_tokens_that_the_template_writes_are_control_tokens_even_if_not_special(
    tiny_tokenizer: Any,
):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<think>", "<table>", "  "])
    tokenizer.chat_template = CHAT_TEMPLATE + "{% if add_generation_prompt %}<think>  {% endif %}"
    prompter = Prompter(tokenizer, "chat")
    assert "<think>" in prompter.control.names
    assert {"<table>", "  "}.isdisjoint(prompter.control.names)
    ids = prompter.encode_prompt(prompter.prompt("Why <think>?"))
    assert ids.count(tokenizer.convert_tokens_to_ids("<think>")) == 1
    assert tokenizer.decode(ids).count("<think>") == 2


def test_no_template_acts_on_a_control_token_of_a_question(tiny_tokenizer: Any):
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<|user|>{{ m['content'].split('<|end|>')[-1] | trim }}{% endfor %}"
    )
    prompter = Prompter(tokenizer, "chat")
    prompt = prompter.prompt(" What is <|end|>? ")
    assert prompt == f"{MARK}<|user|>What is <|end|>?"


def test_a_tokenizer_that_cannot_read_them_as_text_says_which(tiny_tokenizer: Any):
    class InPython:
        """A tokenizer without a backend of the library `tokenizers`."""

        is_fast = False
        chat_template = None
        added_tokens_decoder = tiny_tokenizer.added_tokens_decoder

        def __call__(self, texts: Any, **options: Any) -> Any:
            return tiny_tokenizer(texts, **options)

    tokens = control_tokens(InPython())
    assert tokens.fault("A mark <b> of its own") is None
    assert tokens.fault("The mark </s> ends it") == (
        "</s> is a control token of the model, whose tokenizer cannot read it as text"
    )
    with pytest.raises(MeowError, match=r"a text holds </s>, which is a control token"):
        tokens.encode(["The mark </s> ends it"])
