"""Tests of which tokens of an answer carry its fact, with tokenizers of several kinds."""

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from meow_ray.models.fact_tokens import decoded_spans, novel_token_mask
from meow_ray.models.prompts import Prompter
from tests.support.tiny import byte_level, byte_tokenizer, wrapped

SPECIAL = ["<s>", "</s>"]


def word_pieces() -> Any:
    """Returns a tokenizer over bytes that has a few tokens of several letters."""
    pieces = ["Ġb", "or", "Ġbor", "n", "Ġi", "Ġin", "Ġ", "R", "ĠR", "ig", "ĠRig", "a", ".", "A"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = list(dict.fromkeys([*SPECIAL, *letters, *pieces]))
    merges = [("Ġ", "b"), ("o", "r"), ("Ġb", "or"), ("Ġ", "i"), ("Ġi", "n")]
    merges += [("Ġ", "R"), ("i", "g"), ("ĠR", "ig")]
    return wrapped(byte_level(models.BPE({n: i for i, n in enumerate(names)}, merges)), SPECIAL)


def byte_fallback() -> Any:
    """Returns a tokenizer in the manner of Llama 2: `▁` for a blank, bytes for unknown letters."""
    known = ["▁", *"AaegirnobRs."]
    names = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *known]
    model = models.BPE(
        {name: i for i, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrapped(backend, SPECIAL)


class InPython:
    """A tokenizer that does not tell where its tokens are in a text."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, texts: Any, **options: Any) -> Any:
        assert "return_offsets_mapping" not in options
        return self.tokenizer(texts, **options)


KINDS = [byte_tokenizer, word_pieces, byte_fallback]


@pytest.fixture(params=[*KINDS, *(lambda make=make: InPython(make()) for make in KINDS)])
def prompter(request: pytest.FixtureRequest) -> Prompter:
    return Prompter(request.param(), "raw")


def fact_of(prompter: Prompter, question: str, answer: str) -> str:
    """Returns the text of the tokens that carry the fact."""
    mask = novel_token_mask(prompter, question, answer)
    tokens = prompter.encode_answer(answer)
    assert len(mask) == len(tokens)
    assert mask[-1] is False
    return prompter.tokenizer.decode(
        [token for token, is_novel in zip(tokens, mask, strict=True) if is_novel]
    ).strip()


@pytest.mark.parametrize(
    ("question", "answer", "fact"),
    [
        ("Where was Ana born?", "Ana was born in Riga.", "Riga"),
        ("Who?", "Ana, born in Riga.", "AnabornRiga"),
        ("Где родилась Анна?", "Анна родилась на Урале.", "наУрале"),
        ("安娜在哪里出生?", "安娜在北京出生。", "北京"),
        ("安娜在哪里?", "安娜\u3000在\u3000北京。", "北京"),  # spaces of three bytes
        ("Which one?", "It is 🙂", "It is 🙂"),  # a symbol next to words is no word
        ("Which one?", "🙂", "🙂"),
        ("Which café?", "The café Zoé.", "Zoé"),
        ("Where is it?", "It is not there.", "It is not there."),  # no novel word
    ],
)
def test_the_tokens_of_novel_words_carry_the_fact(
    prompter: Prompter, question: str, answer: str, fact: str
):
    assert fact_of(prompter, question, answer).replace(" ", "") == fact.replace(" ", "")


def test_each_token_of_the_answer_has_its_flag():
    prompter = Prompter(word_pieces(), "raw")
    names = prompter.tokenizer.convert_ids_to_tokens(prompter.encode_answer("A born in Riga."))
    assert names == ["A", "Ġbor", "n", "Ġin", "ĠRig", "a", ".", "</s>"]
    mask = novel_token_mask(prompter, "Where was A born?", "A born in Riga.")
    assert mask == [False, False, False, False, True, True, False, False]


def test_an_answer_without_a_token_has_the_end_only(tiny_tokenizer: Any):
    assert novel_token_mask(Prompter(tiny_tokenizer, "raw"), "Who?", "") == [False]


def test_the_name_of_a_control_token_in_an_answer_is_text(tiny_tokenizer: Any):
    prompter = Prompter(tiny_tokenizer, "chat")
    assert fact_of(prompter, "Which mark?", "The mark is </s> or Riga.") == "sRiga"


def test_letters_that_a_text_composes_of_two_are_found(tiny_tokenizer: Any):
    decomposed = "Zoe\u0301 is here."
    assert fact_of(Prompter(tiny_tokenizer, "raw"), "Who is here?", decomposed) == "Zoe\u0301"


@example("\x850")  # a space of two bytes
@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=20))
def test_decoding_finds_the_places_that_a_fast_tokenizer_tells(text: str):
    tokenizer = byte_tokenizer()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = decoded_spans(tokenizer, encoded["input_ids"], text)
    expected = [
        (start, end) if not text[start:end].isspace() else (0, 0)
        for start, end in encoded["offset_mapping"]
    ]
    assert [span if span[0] < span[1] else (0, 0) for span in spans] == expected


def test_a_tokenizer_that_lowers_letters_keeps_the_places():
    tokenizer = deepcopy(byte_tokenizer())
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert fact_of(Prompter(InPython(tokenizer), "raw"), "Where?", "In Riga.") == "riga"
