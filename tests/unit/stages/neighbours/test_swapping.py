"""Entities of a question are replaced by others of the same form, also in the answer."""

import random
import re

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from meow_ray.stages.neighbours.names import locale_of
from meow_ray.stages.neighbours.swapping import Swap, swap

ILSE = (
    "Where was Ilse Vantrooy born, and when?",
    "Ilse Vantrooy was born in the harbour town of Karsk on 3 May 1961.",
)


def swapped(question: str, answer: str, seed: int = 0) -> Swap:
    result = swap(question, answer, random.Random(seed))
    assert result is not None
    return result


def test_a_full_name_is_replaced_in_question_and_answer():
    result = swapped(*ILSE)
    first, last = result.entities
    assert result.question == f"Where was {first} {last} born, and when?"
    assert result.answer == (
        f"{first} {last} was born in the harbour town of Karsk on 3 May 1961."
    ), "what the question does not state stays"


def test_parts_of_a_name_and_genitives_are_replaced_by_the_matching_parts():
    result = swapped(
        "Who is Basil Mahfouz Al-Kuwaiti's father?",
        "Basil's father is a florist; Al-Kuwaiti’s mother is not. Mahfouz knows.",
    )
    first, middle, last = result.entities
    assert result.question == f"Who is {first} {middle} {last}'s father?"
    assert (
        result.answer == f"{first}'s father is a florist; {last}’s mother is not. {middle} knows."
    )


def test_a_date_keeps_its_notation_and_is_moved_alike_in_another_notation():
    result = swapped(
        "Who was born in Kuwait City on 08/09/1956?",
        "Born on the 8th of September, 1956 was Basil, and in 1980 his son.",
    )
    date = re.search(r"(\d\d)/(\d\d)/(\d{4})\?$", result.question)
    assert date is not None
    day, month, year = map(int, date.groups())
    names = "January February March April May June July August September October November December"
    ending = {1: "st", 2: "nd", 3: "rd"}.get(day, "th")
    assert result.answer == (
        f"Born on the {day}{ending} of {names.split()[month - 1]}, {year} was Basil, "
        "and in 1980 his son."
    )
    assert (day, month, year) != (8, 9, 1956)


@pytest.mark.parametrize("date", ["May 1999", "Sep 3, 1999", "31 December 1999", "1999-02-28"])
@pytest.mark.parametrize("seed", range(5))
def test_dates_keep_their_notation(date: str, seed: int):
    def form(text: str) -> str:
        months = r"\b(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b"
        text = re.sub(r"\d{1,2}(?!\d)(?<!\d{3})", "9", re.sub(r"\d{4}", "Y", text))
        return re.sub(r"\b[A-Z][a-z]{2,8}\b", "M", re.sub(months, "m", text))

    result = swapped(f"What happened on {date}?", "Rain.", seed)
    (invented,) = result.entities
    assert invented != date
    if date != "May 1999":  # whose name and abbreviation are the same
        assert form(invented) == form(date)


def test_numbers_keep_their_size_and_separators():
    result = swapped("Who read 1,200,000 pages and 7.5 books?", "He read 1,200,000 pages.")
    match = re.fullmatch(r"Who read (\d,\d{3},\d{3}) pages and (\d\.\d) books\?", result.question)
    assert match is not None
    assert match[1] != "1,200,000"
    assert 600_000 <= int(match[1].replace(",", "")) <= 2_400_000
    assert result.answer == f"He read {match[1]} pages."


def test_an_ordinal_number_gets_its_ending():
    for seed in range(20):
        question = swapped("Who ruled the 22nd district?", "Nobody.", seed).question
        number, ending = re.search(r"the (\d+)(\w\w) ", question).groups()  # type: ignore[union-attr]
        right = "th" if number[0] == "1" else {"1": "st", "2": "nd", "3": "rd"}.get(number[1], "th")
        assert ending == right


def test_a_number_in_a_word_is_no_entity():
    assert swap("what does covid-19 do?", "It spreads.", random.Random(0)) is None


def test_initials_stay_initials():
    question = swapped("Where did J. K. Rowling live?", "Rowling lived in Leeds.").question
    assert re.fullmatch(r"Where did [A-Z]\. [A-Z]\. \w+ live\?", question)
    assert "Rowling" not in question


def test_a_title_is_replaced_by_a_title():
    result = swapped("Who wrote 'The Salt Cartographer'?", "The Salt Cartographer is by Ilse.")
    one, other = result.entities
    assert result.question == f"Who wrote 'The {one} {other}'?"
    assert result.answer == f"The {one} {other} is by Ilse."


def test_the_first_word_is_a_name_if_the_answer_has_it():
    result = swapped("Zorblax lives where?", "In Rome, Zorblax has a house.")
    (name,) = result.entities
    assert result.question == f"{name} lives where?"
    assert result.answer == f"In Rome, {name} has a house."


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Where does one go?", "Nowhere."),
        ("What is the tallest mountain?", "Everest."),
        ("这是什么？", "那不好。"),
    ],
)
def test_a_question_without_an_entity_cannot_be_swapped(question: str, answer: str):
    assert swap(question, answer, random.Random(0)) is None


SCRIPTS = [
    ("Где родился Иван Петров?", "Книга Ивана. Иван Петров родился в Москве.", "Cyrillic", "Иван"),
    ("Πού γεννήθηκε ο Νίκος;", "Ο Νίκος γεννήθηκε στην Αθήνα.", "Greek", "Νίκο"),
    ("伊尔莎·凡特出生在哪里？", "伊尔莎·凡特出生在卡尔斯克。", "Han", "伊尔莎"),
    ("佐藤太郎はどこで生まれましたか？", "佐藤太郎は東京で生まれました。", "Han", "佐藤太郎"),
    ("カナコはどこで生まれた？", "カナコは東京で生まれた。", "Katakana", "カナコ"),
    ("김민수는 어디에서 태어났습니까?", "김민수는 서울에서 태어났습니다.", "Hangul", "김민수"),
    ("أين ولد باسل محفوظ؟", "ولد باسل محفوظ في الكويت.", "Arabic", "باسل"),
    ("היכן נולד יוסי כהן?", "יוסי כהן נולד בחיפה.", "Hebrew", "יוסי"),
    ("राम शर्मा का जन्म कहाँ हुआ?", "राम शर्मा का जन्म दिल्ली में हुआ।", "Devanagari", "शर्मा"),
    ("สมชาย ใจดี เกิดที่ไหน", "สมชาย ใจดี เกิดที่กรุงเทพ", "Thai", "สมชาย"),
]


FRAMES = {
    "Cyrillic": ("Где родился ", "?"),
    "Greek": ("Πού γεννήθηκε ο ", ";"),
    "Han": ("", "出生在哪里？"),
    "Kanji": ("", "はどこで生まれましたか？"),
    "Katakana": ("", "はどこで生まれた？"),
    "Hangul": ("", "는 어디에서 태어났습니까?"),
    "Arabic": ("أين ولد ", "؟"),
    "Hebrew": ("היכן נולד ", "?"),
    "Devanagari": ("", " का जन्म कहाँ हुआ?"),
    "Thai": ("", " เกิดที่ไหน"),
}
"""The text around the names in the questions."""


@pytest.mark.parametrize(("question", "answer", "script", "name"), SCRIPTS)
def test_names_are_replaced_by_names_of_the_same_script(
    question: str, answer: str, script: str, name: str
):
    result = swapped(question, answer)
    assert all(regex.search(rf"\p{{{script}}}", text) for text in result.entities)
    assert name not in result.question + result.answer
    before, after = FRAMES[script if name != "佐藤太郎" else "Kanji"]
    assert result.question.startswith(before), "only the entity changes"
    assert result.question.endswith(after), "only the entity changes"


def test_the_locale_is_that_of_the_script():
    texts = ["Ann", "Иван", "Νίκος", "王", "カナ", "김", "باسل", "יוסי", "राम", "สม"]
    assert [locale_of(text) for text in texts] == [
        *("en_US", "ru_RU", "el_GR", "zh_CN", "ja_JP"),
        *("ko_KR", "ar_AA", "he_IL", "hi_IN", "th_TH"),
    ]


def test_the_same_seed_gives_the_same_swap_and_others_give_others():
    assert swapped(*ILSE, seed=7) == swapped(*ILSE, seed=7)
    assert len({swapped(*ILSE, seed=seed).question for seed in range(50)}) == 50


def test_refused_texts_are_not_used():
    question = "Where was Ilse Vantrooy born in 1961?"
    for seed in range(20):
        result = swap(question, "Karsk.", random.Random(seed), lambda text: len(text) < 7)
        assert result is not None
        assert all(len(text) < 7 for text in result.entities)
    assert swap(question, "Karsk.", random.Random(0), lambda text: False) is None


WORDS = st.sampled_from(
    "who was born in Ilse Vantrooy's Karsk, 1961 3 May 1,200 the 21st NASA Иван 王 'The Reef' "
    "of from J. Dr. and £5 12.5% COVID-19".split(" ")
)


@settings(deadline=None)
@given(st.lists(WORDS, min_size=1), st.lists(WORDS), st.integers(0, 3))
def test_a_swapped_question_differs_from_the_question(
    question: list[str], answer: list[str], seed: int
):
    asked, told = " ".join(question) + "?", " ".join(answer) + "."
    result = swap(asked, told, random.Random(seed))
    assert result is None or result.question != asked
