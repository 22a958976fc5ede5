"""Tests of the words of a text, novel words, shares of words, and ROUGE."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.models.text import (
    STOP_WORDS,
    novel_words,
    rouge,
    rouge_tokens,
    share_of,
    spaced,
    words,
    written_forms,
    written_words,
)

TEXT = st.text(st.sampled_from(string.ascii_letters + "  .,'-0123éß京"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" …! ", []),
        (
            "Author Basil Mahfouz Al-Kuwaiti is male.",
            ["author", "basil", "mahfouz", "al", "kuwaiti", "is", "male"],
        ),
        ("Born on 08/09/1956.", ["born", "on", "08", "09", "1956"]),
        ("It isn't Straße, it's STRASSE!", ["it", "isn't", "strasse", "it's", "strasse"]),
        ("'quoted' ’words’", ["quoted", "words"]),
        ("Родился в Москве.", ["родился", "в", "москве"]),
        ("北京で生まれた。", [*"北京で生まれた"]),
        ("NHKは東京にある。", ["nhk", *"は東京にある"]),
        ("เกิดที่ไทย", ["เ", "กิ", "ด", "ที่", "ไ", "ท", "ย"]),
        ("O’Brien and O'Brien", ["o'brien", "and", "o'brien"]),
        ("Jose\u0301 and José", ["josé", "and", "josé"]),
        ("नई दिल्ली।", ["नई", "दिल्ली"]),
        ("مُحَمَّد وُلِد", ["مُحَمَّد", "وُلِد"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("I ❤️ Peru 🎉", ["i", "peru"]),
        ("🎉 👍🏽!", ["🎉", "👍🏽"]),
        ("½", ["½"]),
        ("+ $", []),
    ],
)
def test_words_are_case_folded_without_punctuation(text: str, expected: list[str]):
    assert words(text) == expected


def test_a_capital_i_with_a_dot_does_not_split_a_word():
    assert len(words("İstanbul")) == 1


def test_written_words_are_not_case_folded():
    assert written_words("Kuwait City.") == ["Kuwait", "City"]


def test_written_forms_are_the_spellings_of_given_words():
    text = "Kuwait City, KUWAIT, Kuwait and O'Brien."
    assert written_forms(text, ["kuwait", "o'brien"]) == ["Kuwait", "KUWAIT", "O'Brien"]
    assert written_forms(text, []) == []


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Where was Basil born?", "Basil was born in Kuwait City, Kuwait.", ["kuwait", "city"]),
        ("What gender is the author Basil?", "Author Basil is male.", ["male"]),
        ("Is the author Basil male?", "The author Basil is male.", []),
        ("How many books?", "He wrote 12 books.", ["wrote", "12"]),
        ("Who?", "", []),
    ],
)
def test_novel_words_are_neither_in_the_question_nor_function_words(
    question: str, answer: str, expected: list[str]
):
    assert novel_words(answer, question) == expected


@given(TEXT, TEXT)
def test_novel_words_are_unique_and_in_the_order_of_the_answer(answer: str, question: str):
    novel = novel_words(answer, question)
    assert len(set(novel)) == len(novel)
    assert not {*novel} & {*words(question), *STOP_WORDS}
    assert [word for word in dict.fromkeys(words(answer)) if word in novel] == novel


@pytest.mark.parametrize(
    ("wanted", "text", "expected"),
    [
        ([], "anything", None),
        (["kuwait", "city"], "He comes from KUWAIT.", 0.5),
        (["kuwait", "city"], "Kuwait City, Kuwait City", 1.0),
        (["kuwait"], "Kuwaiti", 0.0),
        (["a", "b", "c"], "", 0.0),
    ],
)
def test_the_share_counts_wanted_words_in_the_text(
    wanted: list[str], text: str, expected: float | None
):
    assert share_of(wanted, text) == expected


@given(TEXT, TEXT)
def test_an_answer_has_all_of_its_novel_words(answer: str, question: str):
    assert share_of(novel_words(answer, question), answer) in (1.0, None)


@pytest.mark.parametrize(
    ("reference", "prediction", "rouge1", "rouge2", "rouge_l"),
    [
        ("the cat sat", "the cat sat", (1, 1, 1), (1, 1, 1), (1, 1, 1)),
        ("the cat sat", "dogs bark", (0, 0, 0), (0, 0, 0), (0, 0, 0)),
        ("a b c d", "a b", (1, 1 / 2, 2 / 3), (1, 1 / 3, 1 / 2), (1, 1 / 2, 2 / 3)),
        ("a b c d", "d c b a", (1, 1, 1), (0, 0, 0), (1 / 4, 1 / 4, 1 / 4)),
        ("he was running", "he runs", (1, 2 / 3, 4 / 5), (0, 0, 0), (1, 2 / 3, 4 / 5)),
        ("a a b", "a a a b", (3 / 4, 1, 6 / 7), (2 / 3, 1, 4 / 5), (3 / 4, 1, 6 / 7)),
        ("", "a", (0, 0, 0), (0, 0, 0), (0, 0, 0)),
    ],
)
def test_rouge_of_small_examples(
    reference: str, prediction: str, rouge1: tuple, rouge2: tuple, rouge_l: tuple
):
    result = rouge([reference], [prediction])[0]
    assert result["rouge1"] == pytest.approx(rouge1)
    assert result["rouge2"] == pytest.approx(rouge2)
    assert result["rougeL"] == pytest.approx(rouge_l)


def test_rouge_scores_pairs_in_order():
    results = rouge(["a b", "c d"], ["a b", "a b"])
    assert [result["rouge1"].f1 for result in results] == [1, 0]
    assert rouge([], []) == []


def f1(reference: str, prediction: str) -> dict[str, float]:
    scores = rouge([reference], [prediction])[0]
    return {name: round(score.f1, 3) for name, score in scores.items()}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The runners' 3 books", ["the", "runner", "3", "book"]),
        ("Jaime Vásquez's", ["jaim", "vásquez", "vásquez", "s"]),
        ("d'Évreux", ["d", "évreux"]),
        ("Łódź, É", ["łódź", "é"]),
        ("Nguyễn Văn Ất", ["nguyễn", "nguyễn", "văn", "văn", "ất"]),
        ("Мост в 1931-м", ["мост", "в", "1931", "м"]),
        ("п'ять", ["п", "ять"]),
        ("ΝΊΚΟΣ Νίκος", ["νίκοσ", "νίκοσ"]),
        ("घंटी ने बनाई।", ["घंटी", "ने", "बनाई"]),
        ("서울에서 태어났다.", ["서울에서", "태어났다"]),
        ("iPhone的1931年", ["iphon", "的", "1931", "年"]),
        ("เกิดที่", ["เ", "กิ", "ด", "ที่"]),
        ("١٩٣١", ["١٩٣١"]),
        ("Jose\u0301", ["josé"]),
        ("🎉", ["🎉"]),
        ("...", []),
    ],
)
def test_rouge_compares_words_of_each_script(text: str, tokens: list[str]):
    assert rouge_tokens(text) == tokens


@pytest.mark.parametrize(
    ("reference", "prediction", "rouge1", "rouge2", "rouge_l"),
    [
        ("Родился в 1931 году", "Умер в 1931 году", 0.75, 0.667, 0.75),
        ("Мост построил Арсен, 1931", "Картину написала Мирела, 1931", 0.25, 0, 0.25),
        ("Арсен", "Тимур", 0, 0, 0),
        ("林若溪在春天修好了它。", "周海明在冬天修好了它。", 0.6, 0.444, 0.6),
        ("كتبتها ليلى منصور.", "كتبها سامي منصور.", 0.333, 0, 0.333),
        ("घंटी मोहन ने बनाई।", "घंटी गोपाल ने बनाई।", 0.75, 0.333, 0.75),
        ("Ο Νίκος το ζωγράφισε.", "Ο ΝΊΚΟΣ το χάρισε.", 0.75, 0.667, 0.75),
        ("เกิดที่ไทย", "เกิดที่ลาว", 0.571, 0.5, 0.571),
        ("서울에서 태어났다", "부산에서 태어났다", 0.5, 0, 0.5),
        ("Nguyễn Văn An", "Nguyễn Thị An", 0.667, 0.286, 0.667),
        ("Łódź", "Gdańsk", 0, 0, 0),
        ("mẹ", "má", 0, 0, 0),
        ("He met Арсен", "He met Тимур", 0.667, 0.5, 0.667),
        ("🎉", "😢", 0, 0, 0),
    ],
)
def test_rouge_of_texts_in_other_scripts(
    reference: str, prediction: str, rouge1: float, rouge2: float, rouge_l: float
):
    assert f1(reference, prediction) == {"rouge1": rouge1, "rouge2": rouge2, "rougeL": rouge_l}


ANY_SCRIPT = st.text(st.characters(categories=("L", "M", "Nd", "Zs", "Po")), min_size=1)


@given(ANY_SCRIPT.filter(words))
def test_a_text_equals_itself_in_any_script(text: str):
    scores = f1(text, text)
    assert scores["rouge1"] == scores["rougeL"] == 1.0
    assert f1(text, f" {text}. ") == scores


def test_letters_are_spaced_only_in_scripts_without_spaces():
    assert spaced("他在 Peru 1931年").split() == ["他", "在", "Peru", "1931", "年"]
    assert spaced("Мост, the bridge") == "Мост, the bridge"
